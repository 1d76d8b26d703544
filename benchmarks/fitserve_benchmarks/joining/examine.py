"""Examines models in a process of its own: proof, trial, and the experiment that knows of neither.

Some operators end the process on hostile integers; the model is then reported, and the next one gets a new process.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import onnxruntime

from fitserve_benchmarks.joining.experiment import Array, Caller, Feed, RuntimeErrors, deviation, open_session
from fitserve_benchmarks.joining.subjects import COUPLED, INDEPENDENT, Subject
from fitserve_contract.datatypes import datatype_of
from fitserve_contract.joinability.proof import prove_rows
from fitserve_contract.joinability.trial import hostile_rows, trial_problem

TRIAL_S: Final = 5.0
EXPERIMENT_S: Final = 10.0

FREE_SIZES: Final = (7, 64, 320, 1600)
"""Of free axes behind the rows: the first at which the model runs. Pictures and sound take no small ones."""

_UNLOADABLE: Final = "does not load"
_CRASH: Final = "the process ended"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found about a model.

    Args:
        name: The subject's.
        origin: The subject's.
        label: The subject's.
        byte_count: Size of the file.
        proof_ms: Time of the static proof.
        problem: Why the proof fails; empty where rows are proved independent.
        trial: Why the trial fails; empty where it passes or was not made, since the proof fails.
        experiment: What the experiment saw: `independent`, `coupled`, or why it could not be made.
    """

    name: str
    origin: str
    label: str
    byte_count: int
    proof_ms: float
    problem: str = ""
    trial: str = ""
    experiment: str = ""

    @property
    def joins(self) -> bool:
        """True where requests would share runs: proof and trial both pass."""
        return not self.problem and not self.trial

    @property
    def is_loadable(self) -> bool:
        """True where ONNX Runtime loads the model."""
        return not self.experiment.startswith(_UNLOADABLE)

    @property
    def is_wrong(self) -> bool:
        """True where a model joins, or is proved, that couples rows by its label or by the experiment."""
        return not self.problem and COUPLED in (self.label, self.experiment)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields."""
        return asdict(self)


def examine(subjects: Iterable[Subject]) -> Iterator[Finding]:
    """Yields a finding for each subject, in order."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context)
    try:
        for subject in subjects:
            try:
                yield pool.submit(examine_one, subject).result()
            except BrokenProcessPool:
                pool = ProcessPoolExecutor(1, mp_context=context)
                yield _finding(subject, trial=_CRASH, experiment=_CRASH)
    finally:
        pool.shutdown()


def examine_one(subject: Subject) -> Finding:
    """Examines a model in this process."""
    plain = _finding(subject)
    experiment = _experiment(subject)
    if plain.problem:
        return _finding(subject, experiment=experiment)
    if experiment not in (COUPLED, INDEPENDENT):
        return _finding(subject, trial=experiment, experiment=experiment)
    return _finding(subject, trial=_trial(subject), experiment=experiment)


def _finding(subject: Subject, **found: str) -> Finding:
    begin = time.perf_counter()
    problem = prove_rows(subject.content).problem
    elapsed_ms = (time.perf_counter() - begin) * 1e3
    return Finding(subject.name, subject.origin, subject.label, len(subject.content), elapsed_ms, problem, **found)


def _experiment(subject: Subject) -> str:
    try:
        session = open_session(subject.content)
    except Exception as error:  # the runtime raises types of its own for each kind of damage
        return f"{_UNLOADABLE}: {_first_line(error)}"
    try:
        found = deviation(session, _caller(session, subject, 0), EXPERIMENT_S)
    except ValueError as error:
        return _first_line(error)
    return COUPLED if found.is_coupled else INDEPENDENT


def _trial(subject: Subject) -> str:
    session = open_session(subject.content)
    row = {name: _as_served(array) for name, array in _caller(session, subject, 1).row().items()}
    datatypes = {name: datatype_of(array.dtype) for name, array in row.items()}
    end = time.monotonic() + TRIAL_S
    return trial_problem(_runner(session), [row, *hostile_rows(row, datatypes)], is_over=lambda: time.monotonic() > end)


def _caller(session: onnxruntime.InferenceSession, subject: Subject, seed: int) -> Caller:
    for size in FREE_SIZES:
        caller = Caller(session, subject.ranges, subject.sizes, seed, subject.example, size)
        try:
            session.run(None, caller.row())
        except RuntimeErrors:
            continue
        return caller
    return Caller(session, subject.ranges, subject.sizes, seed, subject.example)


def _runner(session: onnxruntime.InferenceSession) -> Callable[[Feed], Mapping[str, Array] | None]:
    names = [output.name for output in session.get_outputs()]

    def run(rows: Feed) -> Mapping[str, Array] | None:
        try:
            answers = session.run(names, {name: _as_text(array) for name, array in rows.items()})
        except RuntimeErrors:
            return None
        return {name: np.asarray(answer) for name, answer in zip(names, answers, strict=True)}

    return run


def _as_served(array: Array) -> Array:
    if array.dtype.kind not in "OSU":
        return array
    encoded = np.empty(array.shape, object)
    encoded.reshape(-1)[:] = [str(text).encode() for text in array.reshape(-1)]
    return encoded


def _as_text(array: Array) -> Array:
    if array.dtype.kind != "O":
        return array
    texts = np.empty(array.shape, object)
    texts.reshape(-1)[:] = [text.decode() for text in array.reshape(-1)]
    return texts


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:160]
