"""fitserve.control.v1.ModelControlService: labels, shares of the traffic, and what the shadow found."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.protobuf.message import Message

from fitserve.control.v1 import control_pb2 as pb
from fitserve_contract import labels
from fitserve_contract.files import UnsafeFileError
from fitserve_contract.labels import Action, LabelMove
from fitserve_contract.repository_view import Root
from fitserve_service.calls import Loop, UnaryCall, UnaryMethod
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.messages import parse
from fitserve_service.registry import Registry
from fitserve_service.servicers.control import SERVICE, answer_later
from fitserve_service.shadow import ShadowCounts, ShadowKey
from fitserve_service.traffic import Traffic, TrafficError, write_traffic

MOVES_ANSWERED = 1000

_ACTIONS = {pb.LABEL_ACTION_MOVE: Action.MOVE, pb.LABEL_ACTION_ROLLBACK: Action.ROLLBACK}


class RepositoryEditor(Protocol):
    """Changes what is in a model's folder; `apply` and `on_done` are called on its thread."""

    def edit(
        self,
        model: str,
        apply: Callable[[], None],
        on_done: Callable[[ServiceError | None], None],
        *,
        version: int = 0,
    ) -> None:
        """Applies a change once a version is READY (0: at once), and shows it before it calls `on_done`."""
        ...


@dataclass(slots=True)
class _Moved:
    """What an edit leaves for the answer."""

    is_cancelled: bool = False
    move: LabelMove | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    moves: Sequence[LabelMove] = ()
    rollbacks: Mapping[str, int] = field(default_factory=dict)


class LabelServicer:
    """Answers the methods on labels, traffic and shadow. Lives on the loop thread; files are the editor's thread's."""

    def __init__(
        self,
        repository: Root,
        registry: Registry,
        editor: RepositoryEditor,
        loop: Loop,
        shadow_counts: Callable[[], Mapping[ShadowKey, ShadowCounts]],
    ) -> None:
        self._repository = repository
        self._registry = registry
        self._editor = editor
        self._loop = loop
        self._shadow_counts = shadow_counts

    def unary(self) -> Mapping[str, UnaryMethod]:
        """Gives the methods by full name."""
        return {
            f"/{SERVICE}/SetLabel": self.set_label,
            f"/{SERVICE}/DeleteLabel": self.delete_label,
            f"/{SERVICE}/ListLabelMoves": self.list_label_moves,
            f"/{SERVICE}/SetTraffic": self.set_traffic,
            f"/{SERVICE}/GetTraffic": self.get_traffic,
            f"/{SERVICE}/GetShadowReport": self.get_shadow_report,
        }

    def set_label(self, call: UnaryCall, message: bytes) -> None:
        """Points a label at a version."""
        request = parse(pb.SetLabelRequest, message)
        if request.version < 1:
            raise ServiceError(Reason.INVALID_VERSION, f"version: expected at least 1, got {request.version}")
        move = LabelMove(
            request.label,
            _expected(request.expected_version),
            request.version,
            who=request.who,
            why=request.why,
            action=_action(request.action),
            figures=_figures(request.figures_json),
        )
        self._move(call, request.model, move, lambda made: pb.SetLabelResponse(move=_move_message(made)))

    def delete_label(self, call: UnaryCall, message: bytes) -> None:
        """Deletes a label."""
        request = parse(pb.DeleteLabelRequest, message)
        move = LabelMove(request.label, _expected(request.expected_version), 0, who=request.who, why=request.why)
        self._move(call, request.model, move, lambda made: pb.DeleteLabelResponse(move=_move_message(made)))

    def list_label_moves(self, call: UnaryCall, message: bytes) -> None:
        """Gives labels and log of a model."""
        model = parse(pb.ListLabelMovesRequest, message).model
        found = _Moved()

        def read() -> None:
            with _refusals(model):
                found.labels = labels.read_labels(self._repository, model)
                newest: deque[LabelMove] = deque(maxlen=MOVES_ANSWERED)
                logged = _passing(labels.logged_moves(self._repository, model), newest.append)
                found.rollbacks = labels.previous_versions(logged)
                found.moves = list(newest)

        def answer() -> bytes:
            moves = [_move_message(move) for move in found.moves]
            return pb.ListLabelMovesResponse(
                labels=found.labels, moves=moves, rollback_versions=found.rollbacks
            ).SerializeToString()

        self._editor.edit(model, read, answer_later(call, self._loop, answer))

    def set_traffic(self, call: UnaryCall, message: bytes) -> None:
        """Sets a model's shares."""
        request = parse(pb.SetTrafficRequest, message)
        try:
            traffic = Traffic(request.traffic.canary_share, request.traffic.shadow_share)
        except TrafficError as error:
            raise ServiceError(Reason.INVALID_REQUEST, f"traffic.{error}") from None

        def write() -> None:
            with _refusals(request.model):
                write_traffic(self._repository, request.model, traffic)

        def answer() -> bytes:
            return pb.SetTrafficResponse(traffic=_traffic_message(traffic)).SerializeToString()

        self._editor.edit(request.model, write, answer_later(call, self._loop, answer))

    def get_traffic(self, call: UnaryCall, message: bytes) -> None:
        """Gives a model's shares."""
        model = self._registry.model(parse(pb.GetTrafficRequest, message).model).name
        traffic = _traffic_message(self._registry.traffic(model))
        call.reply(pb.GetTrafficResponse(traffic=traffic).SerializeToString())

    def get_shadow_report(self, call: UnaryCall, message: bytes) -> None:
        """Gives what a model's shadow found."""
        model = self._registry.model(parse(pb.GetShadowReportRequest, message).model).name
        found = sorted((key, counts) for key, counts in self._shadow_counts().items() if key.model == model)
        reports = [_report_message(key, counts) for key, counts in found]
        call.reply(pb.GetShadowReportResponse(reports=reports).SerializeToString())

    def _move(self, call: UnaryCall, model: str, move: LabelMove, response: Callable[[LabelMove], Message]) -> None:
        """Moves a label once its version is READY; a writer who is out of date is told before anything is loaded."""
        made = _Moved()

        def take_back() -> None:
            made.is_cancelled = True

        def apply() -> None:
            if made.is_cancelled:
                raise ServiceError(Reason.CALLER_CANCELLED, "the caller went away before the version was ready")
            with _refusals(model):
                made.move = labels.move_label(self._repository, model, move)

        def check() -> None:
            with _refusals(model):
                labels.check_move(self._repository, model, move)

        def answer() -> bytes:
            assert made.move is not None
            return response(made.move).SerializeToString()

        on_moved = answer_later(call, self._loop, answer)

        def on_checked(error: ServiceError | None) -> None:
            if error is None:
                self._editor.edit(model, apply, on_moved, version=move.after)
            else:
                on_moved(error)

        call.on_cancel(take_back)
        self._editor.edit(model, check, on_checked)


class _refusals:
    """Turns what the contract raises over a model's labels into cases of the error table."""

    def __init__(self, model: str) -> None:
        self._model = model

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, TimeoutError):
            raise ServiceError(Reason.LABEL_CONFLICT, str(error), model=self._model) from None
        if isinstance(error, OSError):
            problem = error.strerror or type(error).__name__
            text = f"model '{self._model}': expected to read and write its folder, got: {problem}"
            raise ServiceError(Reason.REPOSITORY_READ_ONLY, text, model=self._model) from None
        if isinstance(error, ValueError):
            reason = next((found for kind, found in _REASONS.items() if isinstance(error, kind)), Reason.INVALID_LABEL)
            raise ServiceError(reason, str(error), model=self._model) from None


_REASONS: dict[type[ValueError], Reason] = {
    labels.LabelConflictError: Reason.LABEL_CONFLICT,
    labels.VersionMissingError: Reason.VERSION_NOT_FOUND,
    labels.LabelMissingError: Reason.LABEL_NOT_FOUND,
    labels.LinkedLabelsError: Reason.REPOSITORY_READ_ONLY,
    UnsafeFileError: Reason.REPOSITORY_READ_ONLY,
}


def _passing(moves: Iterable[LabelMove], take: Callable[[LabelMove], None]) -> Iterator[LabelMove]:
    for move in moves:
        take(move)
        yield move


def _expected(version: int) -> int:
    if version < 0:
        raise ServiceError(Reason.INVALID_VERSION, f"expected_version: expected at least 0, got {version}")
    return version


def _action(action: pb.LabelAction) -> Action:
    return _ACTIONS.get(action, Action.MOVE)


def _figures(text: str) -> Mapping[str, Any]:
    try:
        figures = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        figures = None
    if not isinstance(figures, dict):
        raise ServiceError(Reason.INVALID_REQUEST, f"figures_json: expected a JSON object, got '{text[:80]}'")
    return figures


def _move_message(move: LabelMove) -> pb.LabelMove:
    return pb.LabelMove(
        label=move.label,
        from_version=move.before,
        to_version=move.after,
        time=move.time,
        who=move.who,
        why=move.why,
        action=f"LABEL_ACTION_{move.action}",
        figures_json=json.dumps(dict(move.figures)) if move.figures else "",
    )


def _traffic_message(traffic: Traffic) -> pb.Traffic:
    return pb.Traffic(canary_share=traffic.canary_share, shadow_share=traffic.shadow_share)


def _report_message(key: ShadowKey, counts: ShadowCounts) -> pb.ShadowReport:
    return pb.ShadowReport(
        live_version=key.live_version,
        shadow_version=key.shadow_version,
        sampled_count=counts.sampled_count,
        compared_count=counts.compared_count,
        failed_count=counts.failed_count,
        dropped_count=counts.dropped_count,
        pending_count=counts.pending_count,
        example_count=counts.example_count,
        agreed_count=counts.agreed_count,
        has_agreement=counts.has_agreement,
        max_abs_diff=counts.max_abs_diff,
        live_run_ns=counts.live_run_ns,
        shadow_run_ns=counts.shadow_run_ns,
        dropped_by_reason={reason.value: count for reason, count in counts.dropped.items() if count},
    )
