"""How one model is served: what the file says, what the server's defaults are, what `<model>/model.toml` overrides."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from fitserve_contract.repository import MAX_TEXT_BYTES, OVERRIDES_FILE, check_model_name
from fitserve_contract.repository_view import Root, read_settled
from fitserve_contract.tasks import Scores, Task, TaskKind
from fitserve_service.variants import is_variant_name

DEFAULT_MAX_BATCH_SIZE: Final = 256
DEFAULT_SPOT_CHECK_SHARE: Final = 0.001

_MOST: Final = (1 << 31) - 1
"""Of a count: the Open Inference Protocol's ModelConfig has 32 bits for it."""
_MOST_VERSION: Final = (1 << 63) - 1
_MOST_BYTES: Final = 1 << 62

_SHORT_RUN_MS: Final = 1.0
_QUEUE_MS: Final = 10_000.0
_QUEUED_REQUESTS: Final = 64


class ModelConfigError(ValueError):
    """A `model.toml` that cannot be taken; the message names the key, what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """How a version is served. Every field can stand in `model.toml` under its name.

    Args:
        max_batch_size: Most examples in one run of joined requests, and in one request where `model.toml` says so; 0:
            requests are never joined.
        joinable: Requests of different callers may share a run; proof and trial decide where `model.toml` does not.
        max_queue_delay_ms: How long a request may wait for others to join, >= 0; 0: runs with whatever has arrived.
        max_queued_examples: Examples that may wait; more are refused with QUEUE_FULL.
        batch_size_buckets: Sizes that runs are padded to, ascending; empty: no padding. Each is run before READY.
        intra_op_num_threads: Threads inside an operator; 0: one for a model that answers within 2 ms, else all cores.
        parallel_runs: Runs of it at a time, of those too long for the loop; 0: on the CPU as many as its threads have
            cores, one on a GPU.
        device: "auto", "cpu", "cuda" or "cuda:N"; "" takes the server's.
        keep_versions: The policy: how many of the highest versions are kept loaded, >= 1.
        versions: The policy instead: exactly these; empty: `keep_versions` decides.
        p99_target_ms: What 99 of 100 requests should take at most, from arrival to the end of their run: it sets delay
            and size by itself, from `max_queue_delay_ms` 0 and up to `max_batch_size`; 0: they stay as they are.
        variant: "auto", "fp32" or the name of a variant that the version holds; "" takes the server's.
        max_queued_bytes: Bytes of inputs that may wait; more are refused with QUEUE_FULL. An empty queue takes any
            single request.
        max_queue_ms: How long all that waits may take to run, by measured costs; more is refused with QUEUE_FULL. 0: no
            bound in time. Where nobody says, `settle_queue` decides. What waits to be evaluated does not count.
        least_queued_requests: Beside `max_queue_ms`: requests that may wait however long they take to run, >= 1.
        max_cpu_nodes: On device "cuda": nodes that the CUDA provider may leave to the CPU, arithmetic of shapes aside;
            where it leaves more, the version does not load.
        cuda_graphs: On a GPU: runs of `batch_size_buckets` are captured as CUDA graphs where they can be.
        device_memory_limit_bytes: On a GPU: most memory that the model's arena takes there; 0: all that is free.
        spot_check_share: How many of the joined requests are run again and compared, 0..1; 0: none. A mismatch turns
            joining off.
        task: "classification", "token_classification", "multi_label" or "regression": what Evaluate scores of a version
            whose manifest names no task, as of a bare ONNX file; "": nothing.
        task_output: Name of the output that is scored; "": the only one.
        task_scores: For classification, per position too, "logits" or "probabilities": what that output's numbers are;
            "": "probabilities" for multi_label, "values" for regression.
        class_names: One name per column of that output, in order; none for regression.
    """

    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    joinable: bool = True
    max_queue_delay_ms: float = 0.0
    max_queued_examples: int = 1 << 20
    batch_size_buckets: tuple[int, ...] = ()
    intra_op_num_threads: int = 0
    parallel_runs: int = 0
    device: str = ""
    keep_versions: int = 1
    versions: tuple[int, ...] = ()
    p99_target_ms: float = 0.0
    variant: str = ""
    max_queued_bytes: int = 256 << 20
    max_queue_ms: float = 0.0
    least_queued_requests: int = 1
    max_cpu_nodes: int = 0
    cuda_graphs: bool = True
    device_memory_limit_bytes: int = 0
    spot_check_share: float = DEFAULT_SPOT_CHECK_SHARE
    task: str = ""
    task_output: str = ""
    task_scores: str = ""
    class_names: tuple[str, ...] = ()

    def task_of(self, outputs: Sequence[str]) -> Task | None:
        """Returns the task that `model.toml` gives a version; None where it gives none.

        Args:
            outputs: Names of the version's outputs.

        Raises:
            ModelConfigError: `task_output` is not one of them, or is not given where there are several.
        """
        if not self.task:
            return None
        output = self.task_output or (outputs[0] if len(outputs) == 1 else "")
        if output not in outputs:
            raise ModelConfigError(
                f"{OVERRIDES_FILE}: task_output: expected one of the outputs {', '.join(outputs)[:400]}, got "
                f"{repr(self.task_output)[:80]}"
            )
        kind = TaskKind(self.task)
        return Task(kind, output, Scores(self.task_scores or _ONLY_SCORES[kind]), self.class_names)

    def to_toml(self, comments: Mapping[str, str] | None = None) -> str:
        """Writes the configuration as the TOML file that would say it, with where each value comes from."""
        lines = []
        for entry in fields(self):
            text = _toml_text(getattr(self, entry.name))
            comment = "".join(c if c.isprintable() else "?" for c in (comments or {}).get(entry.name, ""))
            lines.append(f"{entry.name} = {text}" + (f"  # {comment}" if comment else ""))
        return "\n".join(lines) + "\n"


def settle_queue(config: ModelConfig, run_ms: float) -> tuple[ModelConfig, str]:
    """Decides how much work may wait for a model that does not say.

    With a latency target it is half of that: the other half is for the run under way. Else a closed loop of callers is
    queued, not refused: a model whose runs are long has room for 10 s of work, and for 64 requests however long they
    take. Deadlines and bytes bound it besides. Short runs need no bound in time: their bytes are bounded.

    Args:
        config: Without a bound in time.
        run_ms: The shortest run measured; 0: none was.

    Returns:
        The configuration with a bound where there is to be one, and where it comes from.
    """
    if config.p99_target_ms:
        return replace(config, max_queue_ms=config.p99_target_ms / 2), "half of p99_target_ms"
    if run_ms < _SHORT_RUN_MS:
        return config, ""
    comment = f"10 s of work; a run takes {run_ms:.1f} ms"
    return replace(config, max_queue_ms=_QUEUE_MS, least_queued_requests=_QUEUED_REQUESTS), comment


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a `model.toml` says.

    Args:
        values: The keys it has, checked.
        notes: Where a value comes from that is not from there: what the server had to put right.
    """

    values: Mapping[str, Any]
    notes: Mapping[str, str] = field(default_factory=dict)

    def apply(self, config: ModelConfig) -> ModelConfig:
        """Gives the configuration with the overrides in it."""
        return replace(config, **self.values)

    def put_right(self, key: str, value: Any, reason: str) -> Overrides:
        """Gives the overrides with another value for a key, and why."""
        return Overrides({**self.values, key: value}, {**self.notes, key: reason})


def read_overrides(root: Root, model: str) -> Overrides:
    """Reads a model's `model.toml`; none where there is no file.

    Raises:
        ModelConfigError: no TOML, an unknown key, or a value out of its range; the message names it.
    """
    try:
        where = f"{check_model_name(model)}/{OVERRIDES_FILE}"
        content = read_settled(root, lambda view: view.read(where, max_bytes=MAX_TEXT_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return Overrides({})
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ModelConfigError(f"{where}: expected TOML, got {str(error)[:200]}") from None
    values = {key: _checked(where, key, value) for key, value in document.items()}
    _check_task(where, values)
    return Overrides(values)


def _checked(where: str, key: str, value: Any) -> Any:
    if key not in _CHECKS:
        raise ModelConfigError(f"{where}: expected one of {', '.join(_CHECKS)}, got an unknown key '{key[:64]}'")
    expected, is_valid = _CHECKS[key]
    if not is_valid(value):
        raise ModelConfigError(f"{where}: {key}: expected {expected}, got {repr(value)[:80]}")
    return tuple(value) if isinstance(value, list) else value


def _check_task(where: str, values: Mapping[str, Any]) -> None:
    """Checks the keys of the task against each other."""
    kind = values.get("task", "")
    if not kind:
        given = [key for key in ("task_output", "task_scores", "class_names") if values.get(key)]
        if given:
            kinds = ", ".join(map(repr, _TASKS))
            raise ModelConfigError(f"{where}: task: expected one of {kinds} beside {given[0]}, found none")
        return
    scores, names = values.get("task_scores", ""), values.get("class_names", ())
    fitting = _FITTING_SCORES[TaskKind(kind)]
    if scores not in fitting:
        cure = '; for example task_scores = "logits" for scores before a softmax' if "logits" in fitting else ""
        expected = " or ".join(f"'{one}'" for one in fitting if one)
        raise ModelConfigError(f"{where}: task_scores: expected {expected} for task '{kind}', got '{scores}'{cure}")
    if bool(names) == (kind == TaskKind.REGRESSION):
        expected = "none" if names else 'one per column of the output, such as class_names = ["cat", "dog"]'
        raise ModelConfigError(f"{where}: class_names: expected {expected} for task '{kind}', got {len(names)}")


def _toml_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_text, value))}]"
    # JSON's escapes are TOML's, which has DEL escaped too.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else f"{value}"


def _is_int(lowest: int, highest: int = _MOST) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and lowest <= value <= highest


def _is_ascending(highest: int) -> Callable[[Any], bool]:
    is_one = _is_int(1, highest)
    return lambda value: isinstance(value, list) and all(map(is_one, value)) and value == sorted(set(value))


def _is_delay(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 60_000


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _is_device(value: Any) -> bool:
    if value in ("auto", "cpu", "cuda"):
        return True
    return isinstance(value, str) and value.startswith("cuda:") and value[5:].isdecimal()


def _is_variant(value: Any) -> bool:
    return isinstance(value, str) and is_variant_name(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_NAME and value.isprintable()


def _are_names(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > _MOST_CLASSES:
        return False
    return all(_is_text(name) and name for name in value) and len(set(value)) == len(value)


_LONGEST_NAME: Final = 1000
_MOST_CLASSES: Final = 1 << 20

_TASKS: Final = tuple(kind.value for kind in TaskKind)
_ONLY_SCORES: Final = {TaskKind.MULTI_LABEL: "probabilities", TaskKind.REGRESSION: "values"}
_FITTING_SCORES: Final = {
    TaskKind.CLASSIFICATION: ("logits", "probabilities"),
    TaskKind.TOKEN_CLASSIFICATION: ("logits", "probabilities"),
    TaskKind.MULTI_LABEL: ("", "probabilities"),
    TaskKind.REGRESSION: ("", "values"),
}

_CHECKS: Final[dict[str, tuple[str, Callable[[Any], bool]]]] = {
    "max_batch_size": ("an integer, 0..2^31 - 1 (0: never join requests)", _is_int(0)),
    "joinable": ("true or false", _is_bool),
    "spot_check_share": ("a share, 0..1 (0: none)", _is_share),
    "max_queue_delay_ms": ("milliseconds, 0..60000", _is_delay),
    "p99_target_ms": ("milliseconds, 0..60000 (0: none)", _is_delay),
    "max_queued_examples": ("an integer, 1..2^31 - 1", _is_int(1)),
    "max_queued_bytes": ("an integer, 1..2^62", _is_int(1, _MOST_BYTES)),
    "max_queue_ms": ("milliseconds, 0..60000 (0: no bound in time)", _is_delay),
    "least_queued_requests": ("an integer, 1..2^31 - 1", _is_int(1)),
    "batch_size_buckets": ("ascending integers, 1..2^31 - 1", _is_ascending(_MOST)),
    "intra_op_num_threads": ("an integer, 0..2^31 - 1 (0: by measurement)", _is_int(0)),
    "parallel_runs": ("an integer, 0..2^31 - 1 (0: as many as there are cores for)", _is_int(0)),
    "device": ("auto, cpu, cuda or cuda:N", _is_device),
    "variant": ("auto, fp32 or a variant's name", _is_variant),
    "max_cpu_nodes": ("an integer, 0..2^31 - 1", _is_int(0)),
    "cuda_graphs": ("true or false", _is_bool),
    "device_memory_limit_bytes": ("an integer, 0..2^62 (0: no limit)", _is_int(0, _MOST_BYTES)),
    "keep_versions": ("an integer, 1..2^31 - 1", _is_int(1)),
    "versions": ("ascending version numbers, 1..2^63 - 1", _is_ascending(_MOST_VERSION)),
    "task": (f"one of {', '.join(_TASKS)}", lambda value: value in ("", *_TASKS)),
    "task_output": ("the name of an output", _is_text),
    "task_scores": (f"one of {', '.join(Scores)}", lambda value: value in ("", *Scores)),
    "class_names": ("a list of texts, each once, none of them empty", _are_names),
}
