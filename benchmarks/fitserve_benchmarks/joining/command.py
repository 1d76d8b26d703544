"""The command `fitserve-bench joining`."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fitserve_benchmarks.joining.subjects import Subject


def add_joining(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.description = (
        "Examines labelled models, the onnx package's own tests and files of yours: which requests would share a run, "
        "and why not. With --serve, 32 callers ask a server for every labelled model, and each answer is compared "
        "with ONNX Runtime alone."
    )
    parser.epilog = "example: fitserve-bench joining --models ~/onnx-files --report joining.md"
    parser.add_argument("--models", type=Path, nargs="+", default=[], metavar="DIR", help="folders with .onnx files")
    parser.add_argument("--no-onnx-tests", action="store_true", help="leave the onnx package's tests out")
    parser.add_argument("--no-corpus", action="store_true", help="leave the labelled models out")
    parser.add_argument("--serve", action="store_true", help="ask a server for the labelled models instead")
    parser.add_argument("--rounds", type=int, default=20, help="with --serve: requests of each caller (20)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="where the Markdown goes (nowhere)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all findings go, one a line (nowhere)")


def joining(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    if arguments.serve:
        return _serve(arguments.rounds)
    from fitserve_benchmarks.joining.examine import examine
    from fitserve_benchmarks.joining.report import is_good, line, markdown, missed, save, totals, wrong

    findings = []
    for finding in examine(_subjects(arguments)):
        findings.append(finding)
        print(line(finding), flush=True)
    print("\n".join(totals(findings)))
    for name, chosen in (
        ("proved although coupled", wrong(findings)),
        ("independent, but not joined", missed(findings)),
    ):
        for finding in chosen:
            print(f"{name}: {line(finding)}")
    if arguments.report is not None:
        arguments.report.parent.mkdir(parents=True, exist_ok=True)
        arguments.report.write_text(markdown(findings, _machine()), encoding="utf-8")
    if arguments.json is not None:
        save(findings, arguments.json)
    return 0 if is_good(findings) else 1


def _subjects(arguments: argparse.Namespace) -> Iterator[Subject]:
    from fitserve_benchmarks.joining.subjects import files, labelled_subject, onnx_tests

    missing = [str(folder) for folder in arguments.models if not folder.is_dir()]
    if missing:
        raise ValueError(f"--models: expected folders, got {', '.join(missing)}")
    if not arguments.no_corpus:
        from fitserve_benchmarks.joining.corpus import corpus

        yield from map(labelled_subject, corpus())
    yield from chain(files(arguments.models), () if arguments.no_onnx_tests else onnx_tests())


def _machine() -> str:
    import onnx
    import onnxruntime
    import torch

    return (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, Python {platform.python_version()}, "
        f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}, torch {torch.__version__}"
    )


def _serve(rounds: int) -> int:
    from fitserve_benchmarks.joining.corpus import corpus
    from fitserve_benchmarks.joining.serving import serve_and_compare

    tallies = serve_and_compare(corpus(), rounds, say=lambda text: print(text, file=sys.stderr, flush=True))
    for tally in tallies:
        print(tally.line(), flush=True)
    wrong = sum(tally.wrong_count for tally in tallies)
    print(f"{sum(tally.answer_count for tally in tallies)} answers of {len(tallies)} models, {wrong} wrong")
    return 1 if wrong else 0
