"""The commands of `fitserve-client` that move labels and share out the traffic: their arguments and what they do."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from fitserve_client import control
from fitserve_client.client import Client
from fitserve_client.control import LabelHistory, ShadowReport, Traffic
from fitserve_client.example_files import labels_of
from fitserve_client.operations import check_ready
from fitserve_client.promotion import (
    DEFAULT_REQUEST_COUNT,
    MIN_REQUEST_COUNT,
    Criteria,
    LabelledExamples,
    Promotion,
    promote,
)
from fitserve_client.reports import Report, json_value
from fitserve_client.table_examples import examples_of
from fitserve_contract.labels import CANARY, SHADOW, STABLE, LabelMove

_SHOWN_MOVES: Final = 20

_DROPPED: Final[Mapping[str, str]] = {
    "busy": "the server had live requests to run all the time; lower --shadow-share",
    "full": "too many requests waited for an idle moment; lower --shadow-share",
    "gone": "the label moved, or its version was unloaded, before their turn",
    "late": "their runs did not end in time",
    "draining": "the server was ending",
}


def add_control_commands(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the commands' arguments; `add(name, what, example, details)` gives a parser."""
    _add_promote(add)
    parser = add("rollback", "takes a label back to the version that it pointed at before", "rollback lenet")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--label", metavar="L", default=STABLE, help="default %(default)s")
    details = "Without LABEL: shows the labels and their moves. Without VERSION: deletes the label with --delete."
    parser = add("label", "shows, sets or deletes a model's labels", "label lenet canary 4", details)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("label", metavar="LABEL", nargs="?")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("target_version", metavar="VERSION", nargs="?", type=version_number)
    what.add_argument("--delete", action="store_true", help="delete it")
    parser.add_argument("--why", metavar="TEXT", default="", help="for the log")
    parser = add("traffic", "shows or sets which share of the requests goes where", "traffic lenet --canary-share 0.1")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--canary-share", metavar="X", type=float, help="share that `canary` answers, 0..1")
    parser.add_argument("--shadow-share", metavar="X", type=float, help="share that `shadow` runs unheard, 0..1")
    parser = add("shadow", "shows how the shadow's answers compare", "shadow lenet")
    parser.add_argument("model", metavar="MODEL")


def promotion_report(client: Client, arguments: argparse.Namespace) -> Report:
    """Promotes a version, or refuses to."""
    examples = None
    if arguments.examples is not None:
        path = Path(arguments.examples)
        found = examples_of(client, path, check_ready(client.details(arguments.model, label=arguments.target)))
        examples = LabelledExamples(found.inputs, labels_of(found, path))
    criteria = Criteria(arguments.max_accuracy_drop, arguments.max_p99_ratio, arguments.requests)
    outcome = promote(
        client, arguments.model, source=arguments.source, target=arguments.target, criteria=criteria, examples=examples
    )
    return _promotion_report(outcome, arguments.target)


def rollback(client: Client, arguments: argparse.Namespace) -> Report:
    """Takes a label back."""
    return _move_report(arguments.model, client.run(control.rollback(arguments.model, arguments.label)))


def label(client: Client, arguments: argparse.Namespace) -> Report:
    """Shows, sets or deletes labels."""
    model = arguments.model
    if arguments.delete:
        return _move_report(model, client.run(control.delete_label(model, arguments.label, why=arguments.why)))
    if arguments.target_version is not None:
        move = control.set_label(model, arguments.label, arguments.target_version, why=arguments.why)
        return _move_report(model, client.run(move))
    return _history_report(model, client.run(control.label_history(model)), arguments.label)


def traffic(client: Client, arguments: argparse.Namespace) -> Report:
    """Shows or sets shares."""
    wanted = {"canary_share": arguments.canary_share, "shadow_share": arguments.shadow_share}
    changes = {name: share for name, share in wanted.items() if share is not None}
    shares = client.run(control.traffic(arguments.model))
    if changes:
        shares = client.run(control.set_traffic(arguments.model, replace(shares, **changes)))
    return _traffic_report(arguments.model, shares, client.run(control.label_history(arguments.model)).labels)


def shadow(client: Client, arguments: argparse.Namespace) -> Report:
    """Shows what the shadow found."""
    model = arguments.model
    if reports := client.run(control.shadow_reports(model)):
        return _shadow_report(model, reports)
    labels, shares = client.run(control.label_history(model)).labels, client.run(control.traffic(model))
    return Report({"model": model, "reports": []}, above=[f"{model}: {_why_no_shadow(model, labels, shares)}"])


CONTROL_COMMANDS: Final[Mapping[str, Callable[[Client, argparse.Namespace], Report]]] = {
    "promote": promotion_report,
    "rollback": rollback,
    "label": label,
    "traffic": traffic,
    "shadow": shadow,
}


def _add_promote(add: Callable[..., argparse.ArgumentParser]) -> None:
    details = (
        "Scores both versions on the same labelled examples and times requests to both in turns.\n"
        "Refuses, with the figures and exit code 1, where the version does not earn it."
    )
    parser = add("promote", "moves a label to a version that earns it", "promote lenet --from canary", details)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--from", dest="source", metavar="L", default=CANARY, help="its version (default %(default)s)")
    parser.add_argument("--to", dest="target", metavar="L", default=STABLE, help="moves there (default %(default)s)")
    parser.add_argument(
        "--max-accuracy-drop", metavar="X", type=_at_least_zero, default=0.005, help="default %(default)g"
    )
    parser.add_argument("--max-p99-ratio", metavar="X", type=_above_zero, default=1.2, help="default %(default)g")
    parser.add_argument(
        "--requests",
        metavar="N",
        type=_enough,
        default=DEFAULT_REQUEST_COUNT,
        help="requests to each that are timed (default %(default)s)",
    )
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--examples", metavar="FILE.npz|FILE.csv", help="judge by these, with labels")
    data.add_argument(
        "--held-out",
        dest="examples",
        action="store_const",
        const=None,
        help="judge by the examples that the old version carries (the default)",
    )


def _promotion_report(outcome: Promotion, target: str) -> Report:
    verdict, move = outcome.verdict, outcome.move
    old, new, criteria = verdict.incumbent, verdict.candidate, verdict.criteria
    rows = [
        [
            verdict.figure,
            f"{old.quality:.4f}",
            f"{new.quality:.4f}",
            f"{-verdict.accuracy_drop:+.4f}",
            f"-{criteria.max_accuracy_drop:g}",
        ],
        ["p50 ms", f"{old.p50_ms:.3f}", f"{new.p50_ms:.3f}", f"× {new.p50_ms / old.p50_ms:.3f}", ""],
        [
            "p99 ms",
            f"{old.p99_ms:.3f}",
            f"{new.p99_ms:.3f}",
            f"× {verdict.p99_ratio:.3f}",
            f"× {criteria.max_p99_ratio:g}",
        ],
    ]
    title = f"{verdict.model}: {verdict.example_count:,} examples, {criteria.request_count:,} timed requests to each"
    if move is None:
        end = f"refused: {'; '.join(verdict.objections)}. {target} stays at version {old.version}"
    else:
        end = f"promoted: {target} moved from version {move.before} to {move.after}"
    return Report(
        {
            "is_promoted": move is not None,
            "objections": list(verdict.objections),
            "figures": verdict.figures(),
            "move": None if move is None else json_value(asdict(move)),
        },
        ("", f"version {old.version}", f"version {new.version}", "change", "allowed"),
        rows,
        above=[title],
        below=[end],
        is_refused=move is None,
    )


def _move_report(model: str, move: LabelMove) -> Report:
    if move.after == 0:
        text = f"{model}: {move.label} is deleted; it was at version {move.before}"
    elif move.before == 0:
        text = f"{model}: {move.label} is at version {move.after}"
    elif move.before == move.after:
        text = f"{model}: {move.label} is at version {move.after} already; nothing changed"
    else:
        text = f"{model}: {move.label} moved from version {move.before} to {move.after}"
    return Report(json_value(asdict(move)), above=[text])


def _history_report(model: str, history: LabelHistory, only: str | None) -> Report:
    labels = {name: version for name, version in sorted(history.labels.items()) if only in (None, name)}
    moves = [move for move in history.moves if only in (None, move.label)]
    above = [f"{name} is at version {version}" for name, version in labels.items()]
    rows = [_move_row(move) for move in moves[-_SHOWN_MOVES:]]
    document = {"model": model, "labels": labels, "moves": [json_value(asdict(move)) for move in moves]}
    header = ("time", "label", "from", "to", "action", "who", "why")
    return Report(document, header if rows else (), rows, above=above or [_no_label(model, history, only)])


def _no_label(model: str, history: LabelHistory, only: str | None) -> str:
    if only is None:
        return f"{model} has no labels; set one with: fitserve-client label {model} LABEL VERSION"
    listed = ", ".join(sorted(history.labels)) or "none"
    text = f"{model}: expected one of its labels ({listed}), got '{only}'"
    return f"{text}; set it with: fitserve-client label {model} {only} VERSION"


def _move_row(move: LabelMove) -> Sequence[str]:
    before, after = (str(version) if version else "" for version in (move.before, move.after))
    return [move.time, move.label, before, after, move.action.value, move.who, move.why]


def _traffic_report(model: str, shares: Traffic, labels: Mapping[str, int]) -> Report:
    lines = [f"canary answers {shares.canary_share:.4g}", f"shadow runs {shares.shadow_share:.4g}"]
    asked = {CANARY: shares.canary_share, SHADOW: shares.shadow_share}
    missing = [label for label, share in asked.items() if share and label not in labels]
    notes = [f"no version of {model} has the label {label}: {_label_cure(model, label)}" for label in missing]
    document = {"model": model, **asdict(shares)}
    return Report(document, above=[f"{model}: {', '.join(lines)} of the requests"], notes=notes)


def _label_cure(model: str, label: str) -> str:
    return f"set it with: fitserve-client label {model} {label} VERSION"


def _why_no_shadow(model: str, labels: Mapping[str, int], shares: Traffic) -> str:
    """Says why there is no report; the label may as well be new, or nothing asked since."""
    nothing = "the shadow has run nothing"
    if SHADOW not in labels:
        return f"{nothing}: no version has the label {SHADOW}; {_label_cure(model, SHADOW)}"
    if not shares.shadow_share:
        return f"{nothing}: its share is 0; set one with: fitserve-client traffic {model} --shadow-share 0.1"
    if labels[SHADOW] == labels.get(STABLE):
        return f"{nothing}: {SHADOW} and {STABLE} are both at version {labels[SHADOW]}; move one of them"
    return nothing


def _shadow_report(model: str, reports: Sequence[ShadowReport]) -> Report:
    header = (
        "live",
        "shadow",
        "sampled",
        "compared",
        "failed",
        "dropped",
        "agreed",
        "max |diff|",
        "run ms",
        "shadow ms",
    )
    document = {"model": model, "reports": [json_value(asdict(report)) for report in reports]}
    below = [line for report in reports for line in _dropped_lines(report)]
    return Report(document, header, [_shadow_row(report) for report in reports], below=below)


def _dropped_lines(report: ShadowReport) -> Sequence[str]:
    """Says why requests were not run; of a server that does not tell, nothing."""
    pair = f"version {report.shadow_version} beside {report.live_version}"
    counts = sorted(report.dropped_by_reason.items())
    return [f"{pair}: {count:,} dropped: {_DROPPED.get(reason, reason)}" for reason, count in counts]


def _shadow_row(report: ShadowReport) -> Sequence[str]:
    counts = (report.live_version, report.shadow_version, report.sampled_count)
    outcomes = (report.compared_count, report.failed_count, report.dropped_count)
    agreed = f"{report.agreed_count} of {report.example_count}" if report.has_agreement else ""
    runs = max(report.compared_count, 1)
    times = (f"{total_ns / runs / 1e6:.3f}" for total_ns in (report.live_run_ns, report.shadow_run_ns))
    return [*map(str, (*counts, *outcomes)), agreed, f"{report.max_abs_diff:.3g}", *times]


def version_number(text: str) -> int:
    """Reads a version number from the command line."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a version number of at least 1, got '{text}'")
    return int(text)


def _at_least_zero(text: str) -> float:
    return _number(text, "a number of at least 0", lambda value: value >= 0)


def _above_zero(text: str) -> float:
    return _number(text, "a number above 0", lambda value: value > 0)


def _enough(text: str) -> int:
    expected = f"a whole number of at least {MIN_REQUEST_COUNT}"
    return int(_number(text, expected, lambda value: value >= MIN_REQUEST_COUNT and value == int(value)))


def _number(text: str, expected: str, is_valid: Callable[[float], Any]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not is_valid(value):
        raise argparse.ArgumentTypeError(f"expected {expected}, got '{text}'")
    return value
