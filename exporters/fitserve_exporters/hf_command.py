"""The command `fitserve-export hf`: a checkpoint of Hugging Face to a published version.

torch, onnx and transformers are imported when they are needed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from fitserve_contract.repository import check_model_name
from fitserve_exporters.interruption import Interruption
from fitserve_exporters.publishing.repository_check import repository_problem

_EXAMPLES = """\
examples:
  fitserve-export hf ./my-checkpoint --repository repository --name sentiment
  fitserve-export hf sentence-transformers/all-MiniLM-L6-v2 --repository repository --name embeddings
  (fetch it first: hf download sentence-transformers/all-MiniLM-L6-v2)

exit codes: 0 published; 1 not verified, nothing published; 2 it could not be exported, one sentence says why;
130 or 143 interrupted (Ctrl-C, SIGTERM), nothing published

Reads safetensors alone. Runs no code and no pickle of a checkpoint, and downloads nothing.
(a run directory that is called hf is exported as ./hf)
"""

TASKS = ("text-classification", "token-classification", "image-classification", "embedding")


def hf_parser() -> argparse.ArgumentParser:
    """Makes the parser of the arguments behind `hf`."""
    parser = argparse.ArgumentParser(
        prog="fitserve-export hf",
        description="Turns a checkpoint of transformers or sentence-transformers (text, token and image "
        "classification, embeddings) into a verified version with tokenizer or preprocessing, class names and task.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", metavar="DIR_OR_ID", help="its directory, or its id in the hub's cache")
    parser.add_argument("--repository", metavar="DIR", type=Path, required=True, help="model repository to publish in")
    parser.add_argument("--name", required=True, help="model name")
    parser.add_argument("--task", choices=TASKS, help="what it is for (default: by its architecture)")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit in the hub's cache (default: main)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs that it is verified on (0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object for programs")
    return parser


def run_hf(options: argparse.Namespace, interruption: Interruption, fail: Callable[[str, int], int]) -> int:
    """Runs the command.

    Args:
        options: Of `hf_parser`.
        interruption: Settled when the command ends with a message.
        fail: Prints a message and returns its exit code.

    Returns:
        Exit code.
    """
    try:
        check_model_name(options.name)
    except ValueError as error:
        return fail(str(error), 2)
    if problem := repository_problem(options.repository, options.name):
        return fail(problem, 2)
    missing = [name for name in ("transformers", "tokenizers", "huggingface_hub") if find_spec(name) is None]
    if missing:
        return fail(f"hf: expected {', '.join(missing)} to be installed; pip install 'fitserve[bert,exporters]'", 2)
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's library is imported: nothing is downloaded, nor asked
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
    from fitserve_exporters.errors import ExportError, NotVerifiedError
    from fitserve_exporters.huggingface.publish_checkpoint import publish_checkpoint
    from fitserve_exporters.report import published_text

    try:
        published = publish_checkpoint(
            options.checkpoint,
            options.repository,
            options.name,
            task=options.task,
            revision=options.revision,
            seed=options.seed,
        )
    except ExportError as error:
        interruption.settle()
        return fail(str(error), 2)
    except NotVerifiedError as error:
        return fail(str(error), 1)
    print(json.dumps(published.to_json(), sort_keys=True) if options.json else published_text(published))
    return 0
