"""32 callers ask a server for each labelled model; every answer is compared with ONNX Runtime alone.

Each caller has rows of its own, of another magnitude at every request, and a connection of its own.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime

from fitserve_benchmarks.chaos_servers import ChaosServer
from fitserve_benchmarks.joining.experiment import (
    Array,
    Caller,
    Feed,
    RuntimeErrors,
    answers_of,
    largest_difference,
    largest_element,
    open_session,
    together,
)
from fitserve_benchmarks.joining.labelled import LabelledModel
from fitserve_client import AsyncClient
from fitserve_client.errors import FitserveError
from fitserve_contract.repository import MODEL_FILE

CALLERS: Final = 32
SIZES: Final = (1, 2, 3, 4, 5, 8, 16, 32)
"""Of the runs that a row's own rounding is taken from."""

ROUNDING_FACTOR: Final = 8.0
"""An answer may be so many times as far from the one alone as the row beside copies of itself is."""

FLOOR: Final = 1e-6
"""Relative to the largest element: a server's kernels split their sums by its own threads."""

_DRAWS: Final = 50
_READY_S: Final = 300.0
_CALL_S: Final = 60.0


@dataclass(slots=True)
class Tally:
    """What became of one model's requests."""

    name: str
    is_independent: bool
    answer_count: int = 0
    exact_count: int = 0
    """Answers that are bit-equal to a run of the row alone or beside copies of itself."""

    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def wrong_count(self) -> int:
        """Wrong answers and failed calls."""
        return len(self.wrong) + len(self.failed)

    def line(self) -> str:
        """Writes the figures."""
        label = "independent" if self.is_independent else "coupled"
        text = f"{self.name} ({label}): {self.answer_count} answers, {self.exact_count} bit-equal, "
        text += f"{len(self.wrong)} wrong, {len(self.failed)} failed"
        examples = [*self.wrong[:1], *self.failed[:1]]
        return f"{text}; {'; '.join(examples)}" if examples else text


@dataclass(frozen=True, slots=True)
class Question:
    """A request and what may come back.

    Args:
        inputs: Input name to (R, ...).
        right: Right answers of each output, bit by bit: alone first.
        spread: How far each output's right ones are from the first at most.
    """

    inputs: Feed
    right: Sequence[Sequence[Array]]
    spread: Sequence[float]

    def verdict(self, outputs: Sequence[Array]) -> str:
        """Compares an answer: empty where it is bit-equal, `rounding`, or what is wrong with it."""
        is_exact = True
        for place, found in enumerate(outputs):
            choices = self.right[place]
            if any(largest_difference(found, choice) == 0 for choice in choices):
                continue
            is_exact = False
            difference = largest_difference(found, choices[0])
            bound = max(ROUNDING_FACTOR * self.spread[place], FLOOR * largest_element(choices[0]))
            if not difference <= bound:
                return f"output {place}: off by {difference:.3g}, expected at most {bound:.3g}"
        return "" if is_exact else "rounding"


def serve_and_compare(
    models: Iterable[LabelledModel], rounds: int, say: Callable[[str], None], *, is_forced: bool = False
) -> list[Tally]:
    """Serves the models and asks for each, 32 callers at once.

    Args:
        models: Those that draw at random are left out.
        rounds: Requests of each caller for each model.
        say: Is told each model's figures as they come.
        is_forced: Every model is joined whatever it does: the negative control, which must find wrong answers.

    Raises:
        fitserve_benchmarks.chaos_servers.ServerError: the server does not start.
    """
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fitserve-joining-")))
        contents = {model.name: (model, model.build()) for model in models if not model.is_random}
        for name, (_, content) in contents.items():
            folder = work / "repository" / name / "1"
            folder.mkdir(parents=True)
            (folder / MODEL_FILE).write_bytes(content)
            if is_forced:
                (folder.parent / "model.toml").write_text("joinable = true\n", encoding="utf-8")
        server = ChaosServer(work / "repository", work / "log", 1)
        stack.callback(server.close)
        server.start()
        tallies = asyncio.run(_ask_all(server.address, contents, rounds, say))
        server.stop()
        return tallies


async def _ask_all(
    address: str, contents: Mapping[str, tuple[LabelledModel, bytes]], rounds: int, say: Callable[[str], None]
) -> list[Tally]:
    tallies = []
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(address)) for _ in range(CALLERS)]
        for model, content in contents.values():
            questions = _questions(model, content, rounds)
            await clients[0].wait_until_ready(model.name, timeout_s=_READY_S)
            tally = Tally(model.name, model.is_independent)
            calls = (_ask(client, questions[place::CALLERS], tally) for place, client in enumerate(clients))
            await asyncio.gather(*calls)
            say(tally.line())
            tallies.append(tally)
    return tallies


async def _ask(client: AsyncClient, questions: Sequence[Question], tally: Tally) -> None:
    for question in questions:
        try:
            prediction = await client.predict(tally.name, dict(question.inputs), timeout_s=_CALL_S)
        except FitserveError as error:
            tally.failed.append(str(error)[:200])
            continue
        verdict = question.verdict([_comparable(array) for array in prediction.outputs.values()])
        tally.answer_count += 1
        tally.exact_count += not verdict
        if verdict not in ("", "rounding"):
            tally.wrong.append(verdict)


def _questions(model: LabelledModel, content: bytes, rounds: int) -> list[Question]:
    """Draws the requests of all callers, each caller's beside another's, with their right answers."""
    session = open_session(content)
    rows = Caller(session, model.ranges, model.sizes, 2)
    distinct = [_question(session, rows, model.is_independent, place) for place in range(CALLERS * min(rounds, 2))]
    return [distinct[number % len(distinct)] for number in range(CALLERS * rounds)]


def _question(session: onnxruntime.InferenceSession, rows: Caller, is_independent: bool, place: int) -> Question:
    """Draws a request that the model takes. Rows of a coupled model come in requests of one to three."""
    count = 1 if is_independent else 1 + place % 3
    for _ in range(_DRAWS):
        inputs = together([rows.row() for _ in range(count)])
        try:
            alone = [_comparable(array) for array in answers_of(session, inputs)]
            others = _beside_copies(session, inputs) if is_independent else []
        except RuntimeErrors:
            continue
        right = [[one, *(other[place] for other in others)] for place, one in enumerate(alone)]
        spread = [max(largest_difference(one, choices[0]) for one in choices) for choices in right]
        return Question(inputs, right, spread)
    raise ValueError(f"expected inputs that the model takes, found none in {_DRAWS} draws")


def _beside_copies(session: onnxruntime.InferenceSession, inputs: Feed) -> list[list[Array]]:
    found = []
    for size in SIZES:
        answers = [_comparable(array) for array in answers_of(session, together([inputs] * size))]
        found += [[array[place : place + 1] for array in answers] for place in range(size)]
    return found


def _comparable(array: Array) -> Array:
    """Returns texts as bytes, as a server sends them."""
    if array.dtype.kind not in "OSU":
        return array
    texts = np.empty(array.shape, object)
    texts.reshape(-1)[:] = [text if isinstance(text, bytes) else str(text).encode() for text in array.reshape(-1)]
    return texts
