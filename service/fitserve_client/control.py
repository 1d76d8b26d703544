"""Labels, shares of the traffic and the shadow's report: `client.run(control.set_label("lenet", "stable", 3))`.

An operation works with the blocking and the asynchronous client alike; see `fitserve_client.operations`.
"""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from google.protobuf.message import Message

from fitserve.control.v1 import control_pb2 as pb
from fitserve_client.errors import FailedPreconditionError, NotFoundError
from fitserve_client.messages import Call
from fitserve_client.operations import Operation
from fitserve_contract.labels import STABLE, Action, LabelMove, previous_versions

Response = TypeVar("Response", bound=Message)

_SERVICE: Final = pb.DESCRIPTOR.services_by_name["ModelControlService"].full_name
_NO_WAY_BACK: Final = "NO_WAY_BACK"


@dataclass(frozen=True, slots=True)
class LabelHistory:
    """A model's labels and how they came there.

    Args:
        labels: Label to version, as the repository has it.
        moves: The log, the oldest first; of a long one the newest 1,000.
        rollback_versions: Label to the version that `rollback` leads to; labels without one are left out.
    """

    labels: Mapping[str, int]
    moves: tuple[LabelMove, ...]
    rollback_versions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Shares of the requests that name neither version nor label, each 0..1."""

    canary_share: float = 0.0
    shadow_share: float = 0.0


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """What one version's unheard runs came to; fields as in `fitserve.control.v1.ShadowReport`."""

    live_version: int
    shadow_version: int
    sampled_count: int
    compared_count: int
    failed_count: int
    dropped_count: int
    pending_count: int
    example_count: int
    agreed_count: int
    has_agreement: bool
    max_abs_diff: float
    live_run_ns: int
    shadow_run_ns: int
    dropped_by_reason: Mapping[str, int] = field(default_factory=dict)


def label_history(model: str) -> Operation[LabelHistory]:
    """Gives a model's labels and their moves. NotFoundError: there is no such model."""
    answer = yield _call("ListLabelMoves", pb.ListLabelMovesRequest(model=model), pb.ListLabelMovesResponse)
    moves = tuple(map(_move_of, answer.moves))
    # A server of before does not tell them; the moves that it tells do.
    return LabelHistory(dict(answer.labels), moves, {**previous_versions(moves), **answer.rollback_versions})


def set_label(
    model: str,
    label: str,
    version: int,
    *,
    expected: int | None = None,
    why: str = "",
    figures: Mapping[str, Any] | None = None,
    who: str | None = None,
) -> Operation[LabelMove]:
    """Points a label at a version, which the server makes READY first.

    Args:
        model: Model name.
        label: The label; made where there is none.
        version: Where it shall point.
        expected: Where it points now, 0 for nowhere; None: where it is found to point just before.
        why: For the log.
        figures: For the log.
        who: For the log; by default user and host.

    Raises:
        FitserveError: with code ABORTED where another writer moved it first. Any error leaves the label as it was,
            but one without an answer (UNAVAILABLE, DEADLINE_EXCEEDED): then `label_history` tells.
    """
    if expected is None:
        expected = (yield from label_history(model)).labels.get(label, 0)
    request = _set_request(model, LabelMove(label, expected, version, "", who or _self(), why), figures)
    answer = yield _call("SetLabel", request, pb.SetLabelResponse, is_retryable=False)
    return _move_of(answer.move)


def delete_label(
    model: str, label: str, *, expected: int | None = None, why: str = "", who: str | None = None
) -> Operation[LabelMove]:
    """Deletes a label; arguments and errors as for `set_label`. NotFoundError: there is no such label."""
    if expected is None:
        expected = (yield from label_history(model)).labels.get(label, 0)
    request = pb.DeleteLabelRequest(model=model, label=label, expected_version=expected, who=who or _self(), why=why)
    answer = yield _call("DeleteLabel", request, pb.DeleteLabelResponse, is_retryable=False)
    return _move_of(answer.move)


def rollback(model: str, label: str = STABLE, *, who: str | None = None) -> Operation[LabelMove]:
    """Takes a label back to the last version before, another than now; again, one version further back.

    Raises:
        NotFoundError: there is no such label, or its version is gone from the repository.
        FailedPreconditionError: the log knows no version to go back to, or that one FAILED to load.
    """
    history = yield from label_history(model)
    cure = f"set it with: fitserve-client label {model} {label} VERSION"
    if label not in history.labels:
        listed = ", ".join(sorted(history.labels)) or "none"
        text = f"model '{model}': expected one of its labels ({listed}), got '{label}'; {cure}"
        raise NotFoundError(text, reason="LABEL_NOT_FOUND")
    before, after = history.labels[label], history.rollback_versions.get(label, 0)
    if after in (0, before):
        text = f"label '{label}' of model '{model}': expected an earlier version in its log, found none; {cure}"
        raise FailedPreconditionError(text, reason=_NO_WAY_BACK)
    why = f"rollback from version {before}"
    request = _set_request(model, LabelMove(label, before, after, "", who or _self(), why, Action.ROLLBACK), None)
    answer = yield _call("SetLabel", request, pb.SetLabelResponse, is_retryable=False)
    return _move_of(answer.move)


def traffic(model: str) -> Operation[Traffic]:
    """Gives a model's shares."""
    answer = yield _call("GetTraffic", pb.GetTrafficRequest(model=model), pb.GetTrafficResponse)
    return Traffic(answer.traffic.canary_share, answer.traffic.shadow_share)


def set_traffic(model: str, shares: Traffic) -> Operation[Traffic]:
    """Sets a model's shares. InvalidArgumentError: one is outside 0..1."""
    message = pb.Traffic(canary_share=shares.canary_share, shadow_share=shares.shadow_share)
    request = pb.SetTrafficRequest(model=model, traffic=message)
    answer = yield _call("SetTraffic", request, pb.SetTrafficResponse)
    return Traffic(answer.traffic.canary_share, answer.traffic.shadow_share)


def shadow_reports(model: str) -> Operation[tuple[ShadowReport, ...]]:
    """Gives what the shadow found since the server started, by live, then shadow version."""
    answer = yield _call("GetShadowReport", pb.GetShadowReportRequest(model=model), pb.GetShadowReportResponse)
    return tuple(map(_report_of, answer.reports))


def _call(method: str, request: Message, response: type[Response], *, is_retryable: bool = True) -> Call[Response]:
    return Call(f"/{_SERVICE}/{method}", request, response, is_retryable=is_retryable)


def _set_request(model: str, move: LabelMove, figures: Mapping[str, Any] | None) -> pb.SetLabelRequest:
    return pb.SetLabelRequest(
        model=model,
        label=move.label,
        version=move.after,
        expected_version=move.before,
        who=move.who,
        why=move.why,
        action=f"LABEL_ACTION_{move.action}",
        figures_json=json.dumps(dict(figures), allow_nan=False) if figures else "",
    )


def _self() -> str:
    """Says who the writer is; a user without a name is given by number."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _move_of(message: pb.LabelMove) -> LabelMove:
    action = pb.LabelAction.DESCRIPTOR.values_by_number.get(message.action)
    name = action.name.removeprefix("LABEL_ACTION_") if action else ""
    return LabelMove(
        label=message.label,
        before=message.from_version,
        after=message.to_version,
        time=message.time,
        who=message.who,
        why=message.why,
        action=Action(name) if name in Action.__members__ else Action.MOVE,
        figures=_figures_of(message.figures_json),
    )


def _figures_of(text: str) -> Mapping[str, Any]:
    try:
        figures = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    return figures if isinstance(figures, dict) else {}


def _report_of(message: pb.ShadowReport) -> ShadowReport:
    plain = {name: getattr(message, name) for name in ShadowReport.__dataclass_fields__}
    return ShadowReport(**{**plain, "dropped_by_reason": dict(message.dropped_by_reason)})
