"""A server with TLS and tokens, and every method that it has with the scope that it asks for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tests import builders, pki
from tests.wire.serving import WAIT_S, serving, tensor

from fitserve.control.v1 import control_pb2 as control
from fitserve.inference.v1 import inference_pb2 as native
from fitserve.types.v1.tensor_pb2 import ModelSpec
from fitserve_oip import health_pb2, inference_pb2, reflection_pb2
from fitserve_oip.pool import private_pool
from fitserve_service.access.access_file import digest_of
from fitserve_service.server import Server

OWN, CONTROL, OIP = (
    "fitserve.inference.v1.InferenceService",
    "fitserve.control.v1.ModelControlService",
    "inference.GRPCInferenceService",
)


HEALTH, REFLECTION = "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"


def spec(name: str) -> ModelSpec:
    return ModelSpec(name=name)


NAMING: dict[str, tuple[str, Callable[[str], Any]]] = {
    f"{OWN}/Predict": ("infer", lambda name: native.PredictRequest(model=spec(name))),
    f"{OWN}/Evaluate": ("evaluate", lambda name: native.EvaluateRequest(model=spec(name))),
    f"{OWN}/CompareVersions": (
        "evaluate",
        lambda name: native.CompareVersionsRequest(first=spec("open"), second=spec(name)),
    ),
    f"{CONTROL}/GetModel": ("describe", lambda name: control.GetModelRequest(name=name)),
    f"{CONTROL}/GetModelVersion": ("describe", lambda name: control.GetModelVersionRequest(model=spec(name))),
    f"{CONTROL}/GetModelVersionFile": ("describe", lambda name: control.GetModelVersionFileRequest(model=spec(name))),
    f"{CONTROL}/LoadModel": ("control", lambda name: control.LoadModelRequest(name=name)),
    f"{CONTROL}/UnloadModel": ("control", lambda name: control.UnloadModelRequest(name=name)),
    f"{CONTROL}/SetLabel": ("control", lambda name: control.SetLabelRequest(model=name)),
    f"{CONTROL}/DeleteLabel": ("control", lambda name: control.DeleteLabelRequest(model=name)),
    f"{CONTROL}/ListLabelMoves": ("describe", lambda name: control.ListLabelMovesRequest(model=name)),
    f"{CONTROL}/SetTraffic": ("control", lambda name: control.SetTrafficRequest(model=name)),
    f"{CONTROL}/GetTraffic": ("describe", lambda name: control.GetTrafficRequest(model=name)),
    f"{CONTROL}/GetShadowReport": ("describe", lambda name: control.GetShadowReportRequest(model=name)),
    f"{OIP}/ModelReady": ("describe", lambda name: inference_pb2.ModelReadyRequest(name=name)),
    f"{OIP}/ModelMetadata": ("describe", lambda name: inference_pb2.ModelMetadataRequest(name=name)),
    f"{OIP}/ModelConfig": ("describe", lambda name: inference_pb2.ModelConfigRequest(name=name)),
    f"{OIP}/ModelStatistics": ("describe", lambda name: inference_pb2.ModelStatisticsRequest(name=name)),
    f"{OIP}/ModelInfer": ("infer", lambda name: inference_pb2.ModelInferRequest(model_name=name)),
    f"{OIP}/ModelStreamInfer": ("infer", lambda name: inference_pb2.ModelInferRequest(model_name=name)),
    f"{OIP}/RepositoryModelLoad": ("control", lambda name: inference_pb2.RepositoryModelLoadRequest(model_name=name)),
    f"{OIP}/RepositoryModelUnload": (
        "control",
        lambda name: inference_pb2.RepositoryModelUnloadRequest(model_name=name),
    ),
    f"{HEALTH}/Check": ("describe", lambda name: health_pb2.HealthCheckRequest(service=name)),
    f"{HEALTH}/Watch": ("describe", lambda name: health_pb2.HealthCheckRequest(service=name)),
}
"""Methods that name a model: the scope that they ask for, written down once more, and a request."""


GENERAL: dict[str, tuple[str, Any]] = {
    f"{CONTROL}/ListModels": ("describe", control.ListModelsRequest()),
    f"{OIP}/ServerLive": ("open", inference_pb2.ServerLiveRequest()),
    f"{OIP}/ServerReady": ("open", inference_pb2.ServerReadyRequest()),
    f"{OIP}/ServerMetadata": ("describe", inference_pb2.ServerMetadataRequest()),
    f"{OIP}/RepositoryIndex": ("describe", inference_pb2.RepositoryIndexRequest()),
    f"{HEALTH}/List": ("describe", health_pb2.HealthListRequest()),
    f"{REFLECTION}/ServerReflectionInfo": ("describe", reflection_pb2.ServerReflectionRequest(list_services="")),
    f"{REFLECTION.replace('v1', 'v1alpha')}/ServerReflectionInfo": (
        "describe",
        reflection_pb2.ServerReflectionRequest(list_services=""),
    ),
}
"""Methods that name none."""


STREAMS = ("ModelStreamInfer", "Watch", "ServerReflectionInfo")


TOKENS = {
    "infer": 'scopes = ["infer"]',
    "evaluate": 'scopes = ["evaluate"]',
    "control": 'scopes = ["control"]',
    "all": 'scopes = ["infer", "evaluate", "control"]',
    "one": 'scopes = ["infer", "evaluate", "control"]\nmodels = ["open"]',
    "expired": 'scopes = ["infer", "evaluate", "control"]\nexpires = 2020-01-01T00:00:00Z',
}


def access_text(**more: str) -> str:
    """An access file with a token of each kind; the token is its name twice."""
    entries = [
        f'[[token]]\nname = "{name}"\nsha256 = "{digest_of(name * 2).hex()}"\n{rest}\n'
        for name, rest in (TOKENS | more).items()
    ]
    return "\n".join(entries)


def write_private(path: Path, text: str) -> Path:
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.chmod(0o600)
    os.replace(aside, path)
    return path


class World:
    """A server with TLS and tokens that serves `open` and `secret`, and channels to it."""

    def __init__(self, server: Server, ca: pki.Pair, folder: Path) -> None:
        self.server, self.ca, self.folder = server, ca, folder
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel: Any = grpc.secure_channel(f"localhost:{server.port}", pki.client_credentials(ca), options=options)

    @contextmanager
    def shown(self, credentials: grpc.ChannelCredentials | None) -> Iterator[None]:
        """Calls on a channel of its own with other credentials, or in cleartext, while the block runs."""
        before, options = self.channel, [("grpc.use_local_subchannel_pool", 1)]
        target = f"localhost:{self.server.port}"
        if credentials is None:
            self.channel = grpc.insecure_channel(target, options=options)
        else:
            self.channel = grpc.secure_channel(target, credentials, options=options)
        with self.channel:
            yield
        self.channel = before

    def call(self, method: str, request: Any, token: str | None = None) -> Any:
        """Makes a call and gives its answer, of a stream the first."""
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        if method.rpartition("/")[2] in STREAMS:
            answers = self.channel.stream_stream(f"/{method}")(
                iter([request.SerializeToString()]), timeout=WAIT_S, metadata=metadata
            )
            first = next(answers)
            answers.cancel()
            return first
        return self.channel.unary_unary(f"/{method}")(request.SerializeToString(), timeout=WAIT_S, metadata=metadata)

    def code(self, method: str, request: Any, token: str | None = None) -> str:
        """Makes a call and gives the name of its code; refusals of access with their text."""
        try:
            self.call(method, request, token)
        except grpc.RpcError as error:
            failed: Any = error
            return str(failed.code().name)
        return "OK"


@contextmanager
def world(tmp_path: Path, transport: str, text: str, **changes: Any) -> Iterator[World]:
    root = tmp_path / "repository"
    for name in ("open", "secret"):
        builders.publish_version(root, name, builders.scaled())
    files, ca = pki.server_files(tmp_path)
    access = write_private(tmp_path / "access.toml", text)
    settings = {"tls_cert": files.certificate, "tls_key": files.key, "access_file": access, "transport": transport}
    with serving(root, **{**settings, **changes}) as server:
        made = World(server, ca, tmp_path)
        with made.channel:
            yield made


def served_methods(made: World) -> set[str]:
    """Asks reflection for the services, and the descriptors for their methods."""
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    found = made.call(f"{REFLECTION}/ServerReflectionInfo", request, "allall")
    listed = reflection_pb2.ServerReflectionResponse.FromString(found).list_services_response.service
    own = {**native.DESCRIPTOR.services_by_name, **control.DESCRIPTOR.services_by_name}
    known = {service.full_name: service for service in own.values()}
    services = [known.get(each.name) or private_pool().FindServiceByName(each.name) for each in listed]
    return {f"{service.full_name}/{method.name}" for service in services for method in service.methods}


def predict(name: str = "open", rows: int = 1) -> Any:
    return native.PredictRequest(model=spec(name), inputs=[tensor("x", np.ones((rows, 2), np.float32))])
