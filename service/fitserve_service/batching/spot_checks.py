"""Runs some of the joined requests again, beside copies of themselves and alone, and compares the answers.

Beside copies every bit must agree, alone the shapes and what rounding does not explain.

Proof and trial say before READY that no row depends on its neighbours; spot checks look at real requests. They happen
on a runner thread, at the size and position of the run that was answered, and take a bounded share of the processors.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from functools import partial
from typing import Final, NamedTuple

from fitserve_contract.joinability.rows import beside_copies, row_difference, rows_of, size_dependence
from fitserve_contract.tensor_bytes import Array
from fitserve_service import run_record
from fitserve_service.runs import Run
from fitserve_service.served_version import ServedVersion
from fitserve_service.session import OperatorError, RunSwitch
from fitserve_service.signature import Tensor

MOST_SHARE: Final = 0.01
"""Of the processor time that this process takes, spot checks take at most so much."""

_log = logging.getLogger(__name__)


class Sample(NamedTuple):
    """One request of a run.

    Args:
        served: Who answered.
        inputs: Input name to (R, ...), the request's own rows.
        outputs: Output name to (R, ...), what it was answered.
        position: Where its rows stood in the run.
        size: Rows of the run, padding included.
        slot: Held while the runtime has a run.
    """

    served: ServedVersion
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Array]
    position: int
    size: int
    slot: AbstractContextManager[object]


class Result(NamedTuple):
    """What a check found.

    Args:
        difference: The output that differed, and by how much; empty where every bit agrees.
        took_s: Processor time that it took at most.
    """

    difference: str
    took_s: float


class SpotChecks:
    """Draws requests and has them checked, one at a time. Everything but the check itself is on the loop thread.

    Args:
        runners: Carries checks out.
        post: Hands a callback to the loop thread.
        on_checked: Takes each version that was checked, and the difference that was found; empty where there is none.
        draw: Gives numbers in 0..1.
        processor_s: Gives the processor time of this process, seconds.
    """

    def __init__(
        self,
        runners: Executor,
        post: Callable[[Callable[[], None]], None],
        on_checked: Callable[[ServedVersion, str], None],
        *,
        draw: Callable[[], float] = random.random,
        processor_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._runners = runners
        self._post = post
        self._on_checked = on_checked
        self._draw = draw
        self._processor_s = processor_s
        self._spent_s = 0.0
        self._switch: RunSwitch | None = None
        self._is_closed = False

    def saw(self, run: Run) -> None:
        """Takes a run whose requests have been answered, and may check one of them."""
        count = len(run.queue_s)
        if count > 1 and self._draw() < count * run.served.config.spot_check_share:
            self._check(run, count)

    def close(self) -> None:
        """Checks nothing from now on, and ends the check that is under way."""
        self._is_closed = True
        if self._switch is not None:
            self._switch.turn_off()

    def _check(self, run: Run, count: int) -> None:
        config = run.served.config
        expected_s = run.served.costs.floor_s(run.joined_rows, run.row_elements) * max(config.intra_op_num_threads, 1)
        is_within = self._spent_s + expected_s <= MOST_SHARE * self._processor_s()
        if self._switch is not None or self._is_closed or not run.joined_rows or not is_within:
            return
        sample = sample_of(run, int(self._draw() * count))
        self._switch = RunSwitch()
        try:
            future = self._runners.submit(check, sample, self._switch)
        except RuntimeError:  # the runners are shut down
            self._switch = None
            return
        future.add_done_callback(
            lambda done: self._post(partial(self._checked, sample, None if done.cancelled() else done.result()))
        )

    def _checked(self, sample: Sample, result: Result | None) -> None:
        self._switch = None
        if result is None or self._is_closed:
            return
        self._spent_s += result.took_s
        self._on_checked(sample.served, result.difference)


def sample_of(run: Run, index: int) -> Sample:
    """Picks a request of a run that joined several.

    Args:
        run: Answered, with `joined_rows`.
        index: Which request, in the order they were joined.
    """
    if len(run.jobs) == 1:
        # One job that stands for many requests of one kind.
        count = run.example_count // len(run.queue_s)
        position, whole = index * count, run.answers[0]
        inputs = {
            name: Tensor(t.datatype, t.array[position : position + count]) for name, t in run.jobs[0].inputs.items()
        }
    else:
        job = run.jobs[index]
        count, inputs, whole = job.example_count, job.inputs, run.answers[index]
        position = sum([each.example_count for each in run.jobs[:index]])
    assert not isinstance(whole, Exception)
    outputs = {name: tensor.array for name, tensor in whole.items()}
    if len(run.jobs) == 1:
        outputs = rows_of(outputs, position, count)
    return Sample(run.served, inputs, outputs, position, run.joined_rows, run.slot)


def check(sample: Sample, switch: RunSwitch) -> Result:
    """Runs a request beside copies of itself and alone, and compares. Never raises."""
    begin_s = time.perf_counter()
    threads = max(sample.served.config.intra_op_num_threads, 1)
    try:
        arrays = {name: tensor.array for name, tensor in sample.inputs.items()}
        count = len(next(iter(arrays.values())))
        copies = beside_copies(arrays, sample.size, sample.position)
        expected = rows_of(_answers(sample, copies, switch), sample.position, count)
        difference = row_difference(expected, sample.outputs)
        difference = difference or size_dependence(_answers(sample, arrays, switch), sample.outputs)
    except OperatorError as error:
        # It ran among others: a check that finds no memory, or is ended, says nothing.
        _log.debug("%s version %d: spot check did not run: %s", sample.served.model, sample.served.version, error)
        difference = ""
    except Exception:
        _log.exception("%s version %d: spot check failed", sample.served.model, sample.served.version)
        difference = ""
    return Result(difference, (time.perf_counter() - begin_s) * threads)


def _answers(sample: Sample, rows: Mapping[str, Array], switch: RunSwitch) -> dict[str, Array]:
    served = sample.served
    inputs = {name: Tensor(sample.inputs[name].datatype, array) for name, array in rows.items()}
    with sample.slot, run_record.running(served.model, served.version):
        outputs = served.session.run(inputs, tuple(sample.outputs), switch)
    return {name: tensor.array for name, tensor in outputs.items()}
