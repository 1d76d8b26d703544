"""inference.GRPCInferenceService: what describes the server and its models, and Triton's repository extension."""

from __future__ import annotations

from collections.abc import Mapping

from fitserve_contract.manifest import TensorSpec
from fitserve_contract.repository import MODEL_FILE
from fitserve_oip import inference_pb2 as pb
from fitserve_oip import model_config_pb2 as config_pb
from fitserve_service import codec
from fitserve_service.calls import Loop, UnaryCall, UnaryMethod
from fitserve_service.codec_oip import axis_sizes
from fitserve_service.errors import Reason, ServiceError
from fitserve_service.known_model import VersionSnapshot
from fitserve_service.messages import parse
from fitserve_service.readiness import Readiness
from fitserve_service.registry import Registry
from fitserve_service.served_version import ServedVersion
from fitserve_service.servicers.control import ModelLoader, answer_later
from fitserve_service.servicers.oip import SERVICE, target_of
from fitserve_service.statistics import Duration
from fitserve_service.version_policy import State

SERVER_NAME = "fitserve"
EXTENSIONS = ("model_repository", "model_configuration", "statistics")
PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"

_DATA_TYPES = {
    "BOOL": config_pb.TYPE_BOOL,
    "UINT8": config_pb.TYPE_UINT8,
    "UINT16": config_pb.TYPE_UINT16,
    "UINT32": config_pb.TYPE_UINT32,
    "UINT64": config_pb.TYPE_UINT64,
    "INT8": config_pb.TYPE_INT8,
    "INT16": config_pb.TYPE_INT16,
    "INT32": config_pb.TYPE_INT32,
    "INT64": config_pb.TYPE_INT64,
    "FP16": config_pb.TYPE_FP16,
    "BF16": config_pb.TYPE_BF16,
    "FP32": config_pb.TYPE_FP32,
    "FP64": config_pb.TYPE_FP64,
    "BYTES": config_pb.TYPE_STRING,
}

_INDEX_STATES = {
    State.READY: "READY",
    State.PENDING: "LOADING",
    State.LOADING: "LOADING",
    State.UNLOADING: "UNLOADING",
    State.UNLOADED: "UNAVAILABLE",
    State.FAILED: "UNAVAILABLE",
}
"""A version's state in the words of Triton's index."""


class OipModelsServicer:
    """Answers everything of the protocol but inference. Lives on the loop thread."""

    def __init__(
        self, registry: Registry, readiness: Readiness, loader: ModelLoader, loop: Loop, server_version: str
    ) -> None:
        self._registry = registry
        self._readiness = readiness
        self._loader = loader
        self._loop = loop
        self._server_version = server_version

    def unary(self) -> Mapping[str, UnaryMethod]:
        """Gives the methods by full name."""
        methods = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
            "RepositoryModelLoad": self.repository_model_load,
            "RepositoryModelUnload": self.repository_model_unload,
        }
        return {f"/{SERVICE}/{name}": method for name, method in methods.items()}

    def server_live(self, call: UnaryCall, message: bytes) -> None:
        """Says that the process answers."""
        parse(pb.ServerLiveRequest, message)
        call.reply(pb.ServerLiveResponse(live=True).SerializeToString())

    def server_ready(self, call: UnaryCall, message: bytes) -> None:
        """Says whether the server takes requests."""
        parse(pb.ServerReadyRequest, message)
        call.reply(pb.ServerReadyResponse(ready=self._readiness.is_ready).SerializeToString())

    def model_ready(self, call: UnaryCall, message: bytes) -> None:
        """Says whether a version answers."""
        request = parse(pb.ModelReadyRequest, message)
        target = target_of(request.name, request.version)
        is_ready = self._registry.is_ready(target.model, target.version) and not self._readiness.is_draining
        call.reply(pb.ModelReadyResponse(ready=is_ready).SerializeToString())

    def server_metadata(self, call: UnaryCall, message: bytes) -> None:
        """Names the server."""
        parse(pb.ServerMetadataRequest, message)
        response = pb.ServerMetadataResponse(name=SERVER_NAME, version=self._server_version, extensions=EXTENSIONS)
        call.reply(response.SerializeToString())

    def model_metadata(self, call: UnaryCall, message: bytes) -> None:
        """Describes a version's inputs and outputs."""
        request = parse(pb.ModelMetadataRequest, message)
        served = self._served(request.name, request.version)
        versions = self._registry.model(served.model).versions
        response = pb.ModelMetadataResponse(
            name=served.model,
            versions=[str(version.version) for version in versions if version.state is State.READY],
            platform=PLATFORM,
            inputs=[_tensor_metadata(spec) for spec in served.signature.inputs],
            outputs=[_tensor_metadata(spec) for spec in served.signature.outputs],
        )
        call.reply(response.SerializeToString())

    def model_config(self, call: UnaryCall, message: bytes) -> None:
        """Describes how a version is run."""
        request = parse(pb.ModelConfigRequest, message)
        config = _config(self._served(request.name, request.version))
        call.reply(pb.ModelConfigResponse(config=config).SerializeToString())

    def model_statistics(self, call: UnaryCall, message: bytes) -> None:
        """Gives the counters of one version, one model, or all."""
        request = parse(pb.ModelStatisticsRequest, message)
        if request.version:
            chosen = [self._served(request.name, request.version)]
        else:
            models = [self._registry.model(request.name)] if request.name else self._registry.snapshot()
            versions = [version for model in models for version in model.versions]
            chosen = [version.served for version in versions if version.served is not None]
        response = pb.ModelStatisticsResponse(model_stats=[_statistics(served) for served in chosen])
        call.reply(response.SerializeToString())

    def repository_index(self, call: UnaryCall, message: bytes) -> None:
        """Lists the versions of every model."""
        request = parse(pb.RepositoryIndexRequest, message)
        _check_repository(request.repository_name)
        entries = [
            _index_entry(model.name, version)
            for model in self._registry.snapshot()
            for version in model.versions
            if version.state is State.READY or not request.ready
        ]
        call.reply(pb.RepositoryIndexResponse(models=entries).SerializeToString())

    def repository_model_load(self, call: UnaryCall, message: bytes) -> None:
        """Loads a model from the repository; nothing ever loads from a request."""
        request = parse(pb.RepositoryModelLoadRequest, message)
        _check_repository(request.repository_name)
        for name in request.parameters:
            if name == "config" or name.startswith("file:"):
                short = name[: codec.MAX_NAME_CHARS]
                text = f"parameter '{short}': expected a model of the repository, got one in the request"
                raise ServiceError(Reason.INVALID_REQUEST, text)
        answer = pb.RepositoryModelLoadResponse().SerializeToString
        self._loader.load(request.model_name, answer_later(call, self._loop, answer))

    def repository_model_unload(self, call: UnaryCall, message: bytes) -> None:
        """Unloads a model; an unknown one is unloaded already."""
        request = parse(pb.RepositoryModelUnloadRequest, message)
        _check_repository(request.repository_name)
        answer = pb.RepositoryModelUnloadResponse().SerializeToString
        self._loader.unload(request.model_name, answer_later(call, self._loop, answer))

    def _served(self, model: str, version: str) -> ServedVersion:
        """The version that a request names; what is read of it does not change, so no lease is kept."""
        target = target_of(model, version)
        lease = self._registry.lease(target.model, version=target.version)
        lease.release()
        return lease.served


def _check_repository(name: str) -> None:
    if name:
        short = name[: codec.MAX_NAME_CHARS]
        text = f"repository_name: expected nothing, there is one repository and it has no name, got '{short}'"
        raise ServiceError(Reason.INVALID_REQUEST, text)


def _tensor_metadata(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype, shape=axis_sizes(spec))


def _config(served: ServedVersion) -> config_pb.ModelConfig:
    config = config_pb.ModelConfig(
        name=served.model,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=served.config.max_batch_size,
        default_model_filename=MODEL_FILE,
        instance_group=[_instance_group(served)],
        model_transaction_policy=config_pb.ModelTransactionPolicy(decoupled=False),
    )
    _set_policy(config, served)
    batch_axes = 1 if served.signature.has_batch_axis else 0
    for spec in served.signature.inputs:
        # An input that may be left out holds for the whole request: its first axis is no batch.
        dims = axis_sizes(spec)[0 if spec.is_optional else batch_axes :]
        config.input.add(name=spec.name, data_type=_DATA_TYPES[spec.datatype], dims=dims, optional=spec.is_optional)
    for spec in served.signature.outputs:
        config.output.add(name=spec.name, data_type=_DATA_TYPES[spec.datatype], dims=axis_sizes(spec)[batch_axes:])
    if batch_axes:
        _set_batching(config.dynamic_batching, served)
    config.parameters["execution_provider"].string_value = served.provider
    config.parameters["joining"].string_value = served.joining
    config.parameters["is_verified"].string_value = str(served.is_verified).lower()
    return config


def _set_policy(config: config_pb.ModelConfig, served: ServedVersion) -> None:
    if served.config.versions:
        config.version_policy.specific.versions.extend(served.config.versions)
    else:
        config.version_policy.latest.num_versions = served.config.keep_versions


def _set_batching(batching: config_pb.ModelDynamicBatching, served: ServedVersion) -> None:
    batching.preferred_batch_size.extend(served.config.batch_size_buckets)
    batching.max_queue_delay_microseconds = int(served.config.max_queue_delay_ms * 1e3)
    batching.default_queue_policy.max_queue_size = served.config.max_queued_examples
    batching.default_queue_policy.allow_timeout_override = True


def _instance_group(served: ServedVersion) -> config_pb.ModelInstanceGroup:
    is_cpu = served.provider.startswith("CPU")
    kind = config_pb.ModelInstanceGroup.KIND_CPU if is_cpu else config_pb.ModelInstanceGroup.KIND_GPU
    return config_pb.ModelInstanceGroup(name=served.model, count=max(served.config.parallel_runs, 1), kind=kind)


def _index_entry(model: str, version: VersionSnapshot) -> pb.RepositoryIndexResponse.ModelIndex:
    reason = "unloaded" if version.state is State.UNLOADED else version.reason
    return pb.RepositoryIndexResponse.ModelIndex(
        name=model, version=str(version.version), state=_INDEX_STATES[version.state], reason=reason
    )


def _statistics(served: ServedVersion) -> pb.ModelStatistics:
    counted = served.statistics
    message = pb.ModelStatistics(
        name=served.model,
        version=str(served.version),
        last_inference=counted.last_inference_ms,
        inference_count=counted.inference_count,
        execution_count=counted.execution_count,
        inference_stats=pb.InferStatistics(
            success=_duration(counted.success),
            fail=_duration(counted.fail),
            queue=_duration(counted.queue),
            compute_input=_duration(counted.compute_input),
            compute_infer=_duration(counted.compute_infer),
            compute_output=_duration(counted.compute_output),
        ),
    )
    for size, duration in sorted(counted.batch.items()):
        message.batch_stats.add(batch_size=size, compute_infer=_duration(duration))
    return message


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)
