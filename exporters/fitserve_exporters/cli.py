"""The command `fitserve-export`: a run or a checkpoint to a published version, and lint.

torch and onnx are imported when they are needed, so that `--help` and a mistyped argument are answered at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from fitserve_contract.printable import printable
from fitserve_contract.repository import check_model_name
from fitserve_exporters.hf_command import hf_parser, run_hf
from fitserve_exporters.interruption import Interruption
from fitserve_exporters.publishing.repository_check import repository_problem

_EXAMPLES = """\
examples:
  fitserve-export runs/lenet --repository repository
  fitserve-export runs/lenet --repository repository --name digits --json
  fitserve-export runs/lenet --repository repository --variants auto
  fitserve-export hf ./checkpoint --repository repository --name sentiment
  fitserve-export lint model.onnx

exit codes: 0 published; 1 not verified, nothing published; 2 it could not be exported, one sentence says why;
130 or 143 interrupted (Ctrl-C, SIGTERM), nothing published

A run directory contains code that is run: export only runs of people you trust.
"""

_LINT_EXAMPLES = """\
example:
  fitserve-export lint model.onnx

exit codes: 0 it can be served (warnings may stand); 1 it cannot be served; 2 there is no such file
(a run directory that is called lint is exported as ./lint)
"""


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: Arguments without the program's name; None means those of the process.

    Returns:
        Exit code.
    """
    arguments = sys.argv[1:] if argv is None else argv
    interruption = Interruption("fitserve-export")
    with interruption.watch():
        if arguments[:1] == ["lint"]:
            return _lint(_lint_parser().parse_args(arguments[1:]))
        if arguments[:1] == ["hf"]:
            return run_hf(hf_parser().parse_args(arguments[1:]), interruption, _fail)
        return _export(_export_parser().parse_args(arguments), interruption)


def _export_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fitserve-export",
        usage="fitserve-export RUN_DIR --repository DIR [--name NAME] [--data-dir DIR] [--variants WHICH] [--json]\n"
        "       fitserve-export hf DIR_OR_ID --repository DIR --name NAME [--task TASK] [--json]\n"
        "       fitserve-export lint MODEL.onnx [--json]",
        description="Exports a finished run to ONNX, verifies it against eager torch in fp32 and float64 on held-out "
        "data, and publishes it in a model repository. `hf` does so for a checkpoint of Hugging "
        "Face. `lint` tells whether any ONNX file can be served.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="what fitserve-train wrote")
    parser.add_argument("--repository", metavar="DIR", type=Path, required=True, help="model repository to publish in")
    parser.add_argument("--name", help="model name (default: the recipe's)")
    parser.add_argument(
        "--data-dir", metavar="DIR", type=Path, default=_data_dir(), help="where data files are (default: $DATA_DIR)"
    )
    parser.add_argument(
        "--variants",
        default="none",
        metavar="auto|none|NAME,NAME",
        help="further files in the version: int8, fused (attention), fp16, bf16; auto publishes those that are faster "
        "on this machine; none that loses more accuracy than the recipe allows is published (none)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for programs")
    parser.add_argument("--version", action="version", version=f"fitserve-export {version('fitserve')}")
    return parser


def _lint_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fitserve-export lint",
        description="Tells before deployment whether an ONNX file can be served, and what is to be expected of it.",
        epilog=_LINT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL.onnx", type=Path, help="the file to look at")
    parser.add_argument("--json", action="store_true", help="print one JSON object for programs")
    return parser


def _data_dir() -> Path | None:
    value = os.environ.get("DATA_DIR")
    return Path(value) if value else None


def _export(options: argparse.Namespace, interruption: Interruption) -> int:
    early = _early_error(options)
    if early:
        return _fail(early, 2)
    # torch makes a folder for compiled code, which an export has none of, when it is loaded: this one is there already.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
    from fitserve_exporters.errors import ExportError, NotVerifiedError
    from fitserve_exporters.publishing.publish import publish_candidate
    from fitserve_exporters.report import published_text
    from fitserve_exporters.run_export import run_candidate
    from fitserve_exporters.variants import read_choice
    from fitserve_exporters.variants_quantize import MAX_CALIBRATION_EXAMPLES
    from fitserve_training.errors import UsageError

    try:
        choice = read_choice(options.variants)
        count = MAX_CALIBRATION_EXAMPLES if choice else 0
        recipe, candidate = run_candidate(options.run_dir, data_dir=options.data_dir, calibration_count=count)
        published = publish_candidate(candidate, options.repository, options.name or recipe, choice)
    except (ExportError, UsageError) as error:
        interruption.settle()
        return _fail(str(error), 2)
    except NotVerifiedError as error:
        return _fail(str(error), 1)
    print(json.dumps(published.to_json(), sort_keys=True) if options.json else published_text(published))
    return 0


def _early_error(options: argparse.Namespace) -> str:
    """Finds what is wrong without loading torch; empty where nothing is."""
    if options.name is not None:
        try:
            check_model_name(options.name)
        except ValueError as error:
            return str(error)
    if not options.run_dir.is_dir():
        return f"run directory '{options.run_dir}': expected what fitserve-train wrote, found none"
    return repository_problem(options.repository, options.name)


def _lint(options: argparse.Namespace) -> int:
    if not options.model.is_file():
        return _fail(f"model '{options.model}': expected an ONNX file, found none", 2)
    from fitserve_exporters.lint import lint

    report = lint(options.model)
    print(json.dumps(report.to_json(), sort_keys=True) if options.json else report.to_text())
    return 0 if report.can_be_served else 1


def _fail(message: str, code: int) -> int:
    lines: Sequence[str] = message.splitlines() or [message]
    print("\n".join(map(printable, [f"fitserve-export: {lines[0]}", *lines[1:]])), file=sys.stderr)
    return code
