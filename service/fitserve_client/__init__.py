"""Client of a fitserve server: numpy in, numpy out.

Needs grpcio, protobuf and numpy; never torch, onnx, onnxruntime or the service.
"""

from fitserve_client.async_client import AsyncClient
from fitserve_client.client import Client
from fitserve_client.comparison import Comparison
from fitserve_client.credentials import Tls
from fitserve_client.errors import (
    AccessError,
    CallCancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    FitserveError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from fitserve_client.evaluation import Evaluation
from fitserve_client.models import Model, ModelVersion, VersionDetails
from fitserve_client.prediction import Prediction
from fitserve_client.retry import RetryPolicy

__all__ = [
    "AccessError",
    "AsyncClient",
    "CallCancelledError",
    "Client",
    "Comparison",
    "DeadlineExceededError",
    "Evaluation",
    "FailedPreconditionError",
    "FitserveError",
    "InternalError",
    "InvalidArgumentError",
    "Model",
    "ModelVersion",
    "NotFoundError",
    "Prediction",
    "ResourceExhaustedError",
    "RetryPolicy",
    "Tls",
    "UnavailableError",
    "VersionDetails",
]
