"""The process that measures with one thread setting: plan as JSON on stdin, rows as JSON into the file it is given."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fitserve_benchmarks.latency import measure
from fitserve_benchmarks.latency_plan import Measured, Plan
from fitserve_benchmarks.rows import rows_to_json
from fitserve_benchmarks.scenario_rows import scenarios_to_json
from fitserve_benchmarks.subject import SubjectError
from fitserve_benchmarks.threads import ThreadSetting


def main() -> int:
    """Measures what stdin says; 0 also where the subject cannot be measured, which the answer then says."""
    work = json.load(sys.stdin)
    plan = Plan(**{**work["plan"], "batch_sizes": tuple(work["plan"]["batch_sizes"])})
    setting = ThreadSetting(work["setting"]["count"], tuple(work["setting"]["processors"]))
    setting.pin()
    try:
        measured = _measure(plan, setting)
        answer: dict[str, object] = {
            "rows": rows_to_json(measured.rows),
            "scenarios": scenarios_to_json(measured.scenarios),
        }
    except SubjectError as error:
        answer = {"error": str(error)}
    Path(sys.argv[1]).write_text(json.dumps(answer))
    return 0


def _measure(plan: Plan, setting: ThreadSetting) -> Measured:
    subject = plan.open_subject()
    if subject.module is not None:
        import torch

        torch.set_num_threads(setting.count)
        # TF32 would round: ONNX Runtime has it switched off, too.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return measure(subject, plan, setting.count, say=lambda line: print(line, file=sys.stderr, flush=True))


if __name__ == "__main__":
    sys.exit(main())
