"""Decides whether requests of different callers may share a run: by proof and trial, or as `model.toml` says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fitserve_contract.datatypes import BF16
from fitserve_contract.joinability.proof import joining_text, prove_rows
from fitserve_contract.joinability.trial import SIZES, Rows, hostile_rows, trial_problem
from fitserve_contract.tensor_bytes import Array, shape_text, widened
from fitserve_service.model_config import ModelConfig, Overrides
from fitserve_service.runtime.run_limit import RunLimit
from fitserve_service.session import OperatorError, Session
from fitserve_service.signature import Tensor
from fitserve_service.warmup import MAX_ELEMENTS, first_run, has_free_first_axis, made_up_inputs

_BUDGET_S: Final = 1.0
"""A trial ends here; its first size is tried in any case."""

_FURTHER_ROWS: Final = 17
"""Tried besides, with the largest run that joins requests, where that takes no longer than the rest."""

_LONGEST_RUN_S: Final = 1.0
"""A run that takes longer is not joined: it fills the machine by itself, and its trial would take minutes."""


class JoiningError(Exception):
    """`model.toml` asks for what the model cannot have; the message names the key, expected and found."""


@dataclass(frozen=True, slots=True)
class Joining:
    """Whether requests are joined.

    Args:
        config: With `max_batch_size` 0 where they are not.
        problem: Why they are not; empty where they are.
        comment: Where the decision comes from, for people.
    """

    config: ModelConfig
    problem: str
    comment: str


def settle_joining(
    session: Session, model: bytes, config: ModelConfig, overrides: Overrides, found: str = ""
) -> Joining:
    """Decides whether requests are joined.

    Args:
        session: The model.
        model: The file that the session was made from.
        config: With the overrides applied.
        overrides: What `model.toml` says: `joinable` forces either way, `max_batch_size` 0 joins nothing.
        found: What a spot check found in these files before; `spot_check_share` 0 accepts it.

    Raises:
        RunawayError: a run did not end.
        JoiningError: `model.toml` claims a batch axis that the model does not have, or pads one that is not joined.
    """
    _check_claims(session, overrides)
    if config.max_batch_size == 0 or not config.joinable:
        problem = comment = "model.toml says so"
    elif found and config.spot_check_share:
        problem = comment = found
    elif "joinable" in overrides.values:
        problem, unproved = "", prove_rows(model).problem
        comment = f"model.toml says so; not proved: {unproved}" if unproved else "model.toml says so; proved"
    else:
        problem = joining_problem(session, model, config.max_batch_size)
        comment = problem or "rows are proved independent, and were tried beside hostile ones"
    _check_buckets(config, problem)
    if problem:
        config = replace(config, joinable=False, max_batch_size=0)
    return Joining(config, problem, comment)


def _check_claims(session: Session, overrides: Overrides) -> None:
    """Checks a batch axis that model.toml claims against the inputs: what cannot be must not wait for a request."""
    for key in ("joinable", "max_batch_size"):
        claimed = overrides.values.get(key)
        if claimed and (problem := claim_problem(session)):
            expected = "false" if key == "joinable" else "0"
            raise JoiningError(f"model.toml: {key}: expected {expected}, got {str(claimed).lower()}: {problem}")


def _check_buckets(config: ModelConfig, problem: str) -> None:
    buckets = config.batch_size_buckets
    if buckets and problem:
        cure = "remove it, or set joinable = true"
        text = f"expected none for a model that is {joining_text(problem)}; {cure}"
        raise JoiningError(f"model.toml: batch_size_buckets: {text}")
    if buckets and buckets[-1] > config.max_batch_size:
        most = f"at most max_batch_size, {config.max_batch_size}"
        raise JoiningError(f"model.toml: batch_size_buckets: expected sizes of {most}, got {list(buckets)}")


def joining_problem(session: Session, model: bytes, most_rows: int) -> str:
    """Proves and tries out that no row's answer depends on its neighbours.

    Args:
        session: The model.
        model: The file that the session was made from.
        most_rows: Rows of the largest run that joins requests.

    Returns:
        Why requests are not joined, for people; empty where they may be.

    Raises:
        RunawayError: a run did not end.
    """
    if problem := prove_rows(model).problem or claim_problem(session):
        return problem
    with session.limit() as limit:
        if (found := first_run(session, limit)) is None:
            return "the model did not run on made-up inputs, so that its proof cannot be tried out"
        if found.run_s > _LONGEST_RUN_S:
            return f"a run takes {found.run_s:.1f} s, so that joining would gain nothing"
        sizes = [*SIZES, *(size for size in (_FURTHER_ROWS, most_rows) if size * found.run_s <= _BUDGET_S)]
        return _trial_problem(session, made_up_inputs(session.inputs, 1, found.free_axis_size), sizes, limit)


def claim_problem(session: Session) -> str:
    """Tells why a model cannot have the batch axis that `model.toml` claims; empty where it may have one."""
    required = [spec for spec in session.inputs if not spec.is_optional]
    fixed = [spec for spec in required if spec.shape is not None and not has_free_first_axis(spec)]
    if fixed:
        return f"input '{fixed[0].name}' {shape_text(fixed[0].shape or ())} has no free first axis"
    return "" if required else "there is no required input"


def _trial_problem(session: Session, row: Mapping[str, Tensor], sizes: Sequence[int], limit: RunLimit) -> str:
    names = [spec.name for spec in session.outputs]
    datatypes = {name: tensor.datatype for name, tensor in row.items()}
    until_s = time.monotonic() + _BUDGET_S

    def run(rows: Rows) -> Rows | None:
        inputs = {name: Tensor(datatypes[name], array) for name, array in rows.items()}
        try:
            return {name: _reals(tensor) for name, tensor in session.run(inputs, names, limit).items()}
        except OperatorError:
            if limit.options.terminate:
                raise
            return None

    ordinary = {name: tensor.array for name, tensor in row.items()}
    largest = max(array.size for array in ordinary.values())
    fitting = [size for size in sizes if size * largest <= MAX_ELEMENTS]
    if not fitting:
        return f"a row of {largest} elements is too large to be tried out together with others"
    rows = [ordinary, *hostile_rows(ordinary, datatypes)]
    return trial_problem(run, rows, sizes=fitting, is_over=lambda: time.monotonic() > until_s)


def _reals(tensor: Tensor) -> Array:
    """Returns BF16 as numbers, which keep their bits and can be compared at another batch size."""
    return widened(tensor.array) if tensor.datatype == BF16 else tensor.array
