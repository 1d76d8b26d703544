# fitserve: from a PyTorch model to a served, proven ONNX model. `make help` lists the targets.

RECIPE      ?= lenet
DATA_DIR    ?=
REPOSITORY  ?= repository
PORT        ?= 8001
DEVICE      ?= auto
SEEDS       ?= 0 1 2
RUNS        ?= runs
RESULTS     ?= results
PEERS       ?= none
PYTHON      ?= python3
TORCH_INDEX ?=
VENV        ?= .venv

BIN := $(VENV)/bin
RECIPES := linreg-scratch linreg line thermometer two-layer softmax lenet bert-multilabel
# An empty DATA_DIR must not reach the programs as a folder of that name.
ifneq ($(DATA_DIR),)
export DATA_DIR
else
unexport DATA_DIR
endif

SOURCES  := protos/fitserve_contract protos/fitserve_oip training exporters service benchmarks
PACKAGES := fitserve_contract fitserve_oip fitserve_training fitserve_exporters fitserve_service fitserve_client fitserve_benchmarks

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-locked demo train-and-export serve bench bench-serve drill-data bench-overload gpu-check hostile chaos soak sbom test check check-slow lint types layers protos protos-check format reproduce clean

help: ## list the targets and variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  variables: RECIPE=$(RECIPE) DATA_DIR=$(DATA_DIR) REPOSITORY=$(REPOSITORY) PORT=$(PORT) DEVICE=$(DEVICE)"
	@echo "             PYTHON=$(PYTHON) TORCH_INDEX=$(TORCH_INDEX) RUNS=$(RUNS) RESULTS=$(RESULTS) SEEDS=$(SEEDS)"
	@echo "  example:   make train-and-export RECIPE=lenet DATA_DIR=~/data"

setup: $(VENV)/.installed ## build the virtual environment in .venv, with pinned versions

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 15) else "setup: expected Python 3.11 to 3.14, got " + sys.version.split()[0] + "; name another with PYTHON=")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "setup: this Python has no venv module; on Debian: apt-get install python3-venv"; exit 1; }
	@command -v c++ >/dev/null || echo "setup: no C++ compiler found: torch.compile will not work, training runs eagerly"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python setup/plan_downloads.py $(BIN)/python constraints.txt torch onnxruntime-gpu transformers -- $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --disable-pip-version-check --index-url $(TORCH_INDEX) -c constraints.txt torch)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup-locked: ## the same from requirements.lock, every archive held against its hash; torch itself by its pinned version
	@$(PYTHON) setup/check_lock.py requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@$(BIN)/python -m pip check --disable-pip-version-check
	@touch $(VENV)/.installed

demo: setup ## train, export, serve, predict, evaluate and benchmark LeNet, with a table at the end
	$(BIN)/fitserve-bench demo --repository $(REPOSITORY) --runs $(RUNS) --device $(DEVICE)

train-and-export: setup ## train RECIPE, verify it and publish it into REPOSITORY; RECIPE=all for all eight
ifeq ($(RECIPE),all)
	$(BIN)/python -m fitserve_training.all_recipes --runs $(RUNS) --device $(DEVICE) || test $$? -eq 1
	for recipe in $(RECIPES); do $(BIN)/fitserve-export $(RUNS)/$$recipe --repository $(REPOSITORY) || exit 1; done
	$(BIN)/fitserve-train --index $(RUNS)
	@$(BIN)/python -m fitserve_training.all_recipes --runs $(RUNS) --table-only
else
	$(BIN)/fitserve-train $(RECIPE) --run-dir $(RUNS)/$(RECIPE) --device $(DEVICE)
	$(BIN)/fitserve-export $(RUNS)/$(RECIPE) --repository $(REPOSITORY)
endif

serve: setup ## serve REPOSITORY on PORT
	$(BIN)/fitserve-serve --repository $(REPOSITORY) --port $(PORT) --device $(DEVICE)

bench: setup ## latency of torch eager, torch.compile and ONNX Runtime, into RESULTS
	$(BIN)/fitserve-bench latency --repository $(REPOSITORY) --model $(RECIPE) --run-dir $(RUNS)/$(RECIPE) --output-dir $(RESULTS)

bench-serve: setup ## requests per second of our transports, the floors and, with PEERS=all, of other servers
	$(BIN)/fitserve-bench serve --repository $(REPOSITORY) --models $(RECIPE) --peers $(PEERS) --output-dir $(RESULTS)

gpu-check: setup ## train, export, serve and benchmark LeNet on a GPU, and report what was run
	$(BIN)/fitserve-bench gpu-check

hostile: setup ## 1,000,000 hostile requests and 1,000 hostile models while innocents measure
	$(BIN)/fitserve-bench hostile --requests 1000000 --models 1000 --output-dir $(RESULTS)

drill-data: setup ## train on data larger than memory, made by the drill, under a limit of 4 GB, into RESULTS
	$(BIN)/fitserve-bench large-data --output-dir $(RESULTS)

bench-overload: setup ## ten times what a server can do, and what it does meanwhile, into RESULTS
	$(BIN)/fitserve-bench overload --output-dir $(RESULTS)

chaos: setup ## faults by seeded chance under load that knows every answer
	$(BIN)/fitserve-bench chaos

soak: setup ## half an hour of load, and what a server holds after it
	$(BIN)/fitserve-bench soak

sbom: setup ## a bill of materials (CycloneDX) of what is installed, into RESULTS
	@mkdir -p $(RESULTS)
	$(BIN)/python setup/write_sbom.py $(RESULTS)/sbom.json

test: setup ## run the tests
	$(BIN)/python -m pytest -n 2

check: setup lint types layers protos-check test ## what CI runs first: all but check-slow

check-slow: setup $(VENV)/architectures ## the tests that take long: what joins, 32 callers, the demo, ... (CI runs them after check)
	$(BIN)/python -m pytest -n 2 -m slow --show-capture=stdout tests

# Beside the environment, not in it: transformers behaves otherwise where torchvision is there.
$(VENV)/architectures: tests/architectures/requirements.txt | setup
	@rm -rf $@
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ -r $< && touch $@ || \
		{ rm -rf $@; echo "check-slow: the tests of torchvision and timm are skipped: pip could not install them"; }

lint: setup ## ruff, formatting included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## let ruff write the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## mypy --strict
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES))

layers: setup ## who may import whom
	$(BIN)/lint-imports

protos: setup ## make the stubs again
	protos/generate.sh

protos-check: setup ## fail where the committed stubs are not those of the .proto files
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && protos/generate.sh "$$out" && \
	cd protos && (cd "$$out" && find . -type f) | while read -r file; do \
		cmp -s "$$out/$$file" "$$file" || { echo "protos/$$file: not what protos/generate.sh makes; run make protos"; exit 1; }; \
	done

reproduce: setup ## hold the published figures on the real data: make reproduce DATA_DIR=...
	@test -n "$(DATA_DIR)" || { echo "reproduce: expected DATA_DIR=<folder with fashion-mnist/>"; exit 2; }
	$(BIN)/fitserve-bench reproduce --runs $(RUNS)/reproduce --seeds $(SEEDS) --output-dir $(RESULTS)

clean: ## leave the checkout as cloned
	rm -rf $(VENV) $(RUNS) $(REPOSITORY) $(RESULTS) build dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name '*.egg-info' -type d -prune -exec rm -rf {} +
