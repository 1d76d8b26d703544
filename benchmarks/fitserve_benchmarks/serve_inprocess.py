"""ONNX Runtime alone, in a process of its own: what no server of the same model and threads can be ahead of.

`python -m fitserve_benchmarks.serve_inprocess FILE THREADS CALLERS SECONDS`, a ModelInferRequest on stdin.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from fitserve_benchmarks.http2_lines import LoadFailedError
from fitserve_benchmarks.peers_model import open_models
from fitserve_benchmarks.processes import run_child
from fitserve_benchmarks.serve_load import WARM_UP_S, Turn, answers_per_s
from fitserve_benchmarks.subject import Batch

IN_PROCESS: Final = "ONNX Runtime in process"


def in_process_turn(path: Path, thread_count: int, caller_count: int, duration_s: float, batch: Batch) -> Turn:
    """Runs a model in a child process, from so many threads at once.

    Raises:
        LoadFailedError: the child failed.
    """
    arrays = {
        name: [str(array.dtype), array.shape, base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()]
        for name, array in batch.items()
    }
    numbers = [str(path), str(thread_count), str(caller_count), str(duration_s)]
    command = [sys.executable, "-m", "fitserve_benchmarks.serve_inprocess", *numbers]
    exit_code, output = run_child(command, message=json.dumps(arrays).encode(), stdout=subprocess.PIPE)
    if exit_code != 0:
        raise LoadFailedError(f"{IN_PROCESS}: expected exit code 0, got {exit_code}")
    answer = json.loads(output)
    latencies_s, ends_s = (np.array(answer[name], np.float64) for name in ("latencies_s", "ends_s"))
    rate = answers_per_s(len(latencies_s) / duration_s, ends_s, latencies_s, duration_s)
    return Turn(rate, latencies_s, 0, (), answer["cpu_s"], duration_s)


def _call(
    session: Any, inputs: dict[str, Any], begin_s: float, duration_s: float, times_s: list[tuple[float, float]]
) -> None:
    """Notes when each call that ended in time ended, and how long it took."""
    clock = time.perf_counter
    while (start_s := clock()) < begin_s + duration_s:
        session.run(None, inputs)
        end_s = clock()
        if begin_s <= end_s < begin_s + duration_s:
            times_s.append((end_s, end_s - start_s))


def main(arguments: Sequence[str]) -> None:
    """The child."""
    path, thread_count, caller_count, seconds = arguments
    session = open_models([f"model={path}"], int(thread_count))["model"]
    inputs = {
        name: np.frombuffer(base64.b64decode(content), dtype).reshape(shape)
        for name, (dtype, shape, content) in json.load(sys.stdin).items()
    }
    times_s: list[tuple[float, float]] = []
    session.run(None, inputs)
    work = (session, inputs, time.perf_counter() + WARM_UP_S, float(seconds), times_s)
    callers = [threading.Thread(target=_call, args=work) for _ in range(int(caller_count))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    ends_s, latencies_s = ([pair[place] for pair in times_s] for place in (0, 1))
    json.dump({"ends_s": ends_s, "latencies_s": latencies_s, "cpu_s": time.process_time()}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
