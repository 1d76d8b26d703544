"""`fitserve-bench large-data`: the command line of the drill."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, Final

_RESULT: Final = "large-data.json"


def add_large_data(commands: Any) -> None:
    """Adds the parser to the sub-commands of a parser."""
    parser = commands.add_parser("large-data", help="training on data larger than memory, under a limit of memory")
    parser.description = (
        "Makes pictures and a table by seeded chance, trains on them under a limit of memory, and on a part of them "
        "from a file and in memory. All that it made is deleted at the end."
    )
    parser.epilog = "example: fitserve-bench large-data --pictures 2000 --table-mb 100 --limit-mb 1500"
    parser.add_argument("--pictures", type=int, default=50_000, metavar="N", help="pictures; 0: none (50000)")
    parser.add_argument("--image-size", type=int, default=224, metavar="S", help="pixels a side (224)")
    parser.add_argument("--table-mb", type=int, default=2_000, metavar="MB", help="of the .csv file; 0: none (2000)")
    parser.add_argument("--limit-mb", type=int, default=4_000, metavar="MB", help="memory that a run may take (4000)")
    parser.add_argument("--part", type=float, default=0.1, help="share that is also trained on in memory (0.1)")
    parser.add_argument(
        "--recipe", default="softmax", help="that trains on pictures; this one computes least (softmax)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the data (0)")
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="where the data goes (the system's temporary one)")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help=f"where {_RESULT} goes (nowhere)")


def large_data(arguments: argparse.Namespace) -> int:
    """Runs the drill and prints its figures."""
    from fitserve_benchmarks.large_data.drill import DrillPlan, drill, table_text, write_rows

    plan = DrillPlan(
        arguments.pictures,
        arguments.image_size,
        arguments.table_mb * 1_000_000,
        arguments.limit_mb * 1_000_000,
        arguments.part,
        arguments.recipe,
        arguments.seed,
    )
    if arguments.work_dir is not None:
        arguments.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fitserve-large-data-", dir=arguments.work_dir) as folder:
        rows = drill(plan, Path(folder), lambda line: print(line, flush=True))
    print(table_text(rows))
    if arguments.output_dir:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        write_rows(rows, arguments.output_dir / _RESULT)
    return 0
