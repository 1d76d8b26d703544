"""The process that measures with one thread setting: plan as JSON on stdin, rows as JSON into the file it is given."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fitserve_benchmarks.latency import Plan, measure
from fitserve_benchmarks.rows import Row, rows_to_json
from fitserve_benchmarks.subject import SubjectError
from fitserve_benchmarks.threads import ThreadSetting


def main() -> int:
    """Measures what stdin says; 0 also where the subject cannot be measured, which the answer then says."""
    work = json.load(sys.stdin)
    plan = Plan(**{**work["plan"], "batch_sizes": tuple(work["plan"]["batch_sizes"])})
    setting = ThreadSetting(work["setting"]["count"], tuple(work["setting"]["processors"]))
    setting.pin()
    try:
        answer: dict[str, object] = {"rows": rows_to_json(_measure(plan, setting))}
    except SubjectError as error:
        answer = {"error": str(error)}
    Path(sys.argv[1]).write_text(json.dumps(answer))
    return 0


def _measure(plan: Plan, setting: ThreadSetting) -> list[Row]:
    subject = plan.open_subject()
    if subject.module is not None:
        import torch

        torch.set_num_threads(setting.count)
    return measure(subject, plan, setting.count, say=lambda line: print(line, file=sys.stderr, flush=True))


if __name__ == "__main__":
    sys.exit(main())
