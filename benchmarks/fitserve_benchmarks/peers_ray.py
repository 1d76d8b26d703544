"""Ray Serve with ONNX Runtime: `python -m … PORT THREADS MODEL=FILE …`, in its environment."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Sequence
from typing import Any

from fitserve_benchmarks.peers_model import InlineModels


class OnnxDeployment:
    """One ModelInfer message a request, its bytes as the body."""

    def __init__(self, models: Sequence[str], thread_count: int) -> None:
        self._models = InlineModels(models, thread_count)

    async def __call__(self, request: Any) -> Any:
        responses: Any = importlib.import_module("starlette.responses")
        content = self._models.answer(await request.body())
        return responses.Response(content, media_type="application/octet-stream")


def main(arguments: Sequence[str]) -> None:
    """Serves until it is ended."""
    ray: Any = importlib.import_module("ray")
    serve: Any = importlib.import_module("ray.serve")
    port, thread_count, *models = arguments
    ray.init(include_dashboard=False, num_cpus=4, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)}, logging_config={"enable_access_log": False})
    # Concurrency as wide as the load, so that the deployment and not its limit is what is measured.
    deployment = serve.deployment(OnnxDeployment, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
    serve.run(deployment.bind(models, int(thread_count)), route_prefix="/")
    threading.Event().wait()


if __name__ == "__main__":
    from fitserve_benchmarks import peers_ray

    peers_ray.main(sys.argv[1:])  # by its name, so that Ray's workers import it instead of unpickling `__main__`
