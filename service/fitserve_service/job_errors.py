"""Why a job got no answer, in words that are fit for whoever sent it."""

from __future__ import annotations

import logging
import uuid

from fitserve_service.errors import Reason, ServiceError
from fitserve_service.run_errors import DeviceMemoryError, TooManyElementsError
from fitserve_service.served_version import ServedVersion
from fitserve_service.session import OperatorError

_log = logging.getLogger(__name__)


def run_error(served: ServedVersion, error: Exception) -> ServiceError:
    """A run failed: an operator refused the values, or something that nobody foresaw, which the log tells of."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, OperatorError):
        text = f"model '{served.model}' version {served.version}: {error}"
        return ServiceError(_reason(error), text, model=served.model)
    incident = uuid.uuid4().hex[:12]
    _log.error("incident %s: a run of %s version %d failed", incident, served.model, served.version, exc_info=error)
    return ServiceError(Reason.INTERNAL, f"internal error, incident {incident}", incident=incident)


def _reason(error: OperatorError) -> Reason:
    if isinstance(error, TooManyElementsError):
        return Reason.TOO_LARGE
    return Reason.DEVICE_MEMORY if isinstance(error, DeviceMemoryError) else Reason.OPERATOR_FAILED


def cancelled() -> ServiceError:
    """Its caller has gone."""
    return ServiceError(Reason.CALLER_CANCELLED, "the caller cancelled")


def draining() -> ServiceError:
    """The server ends."""
    return ServiceError(Reason.DRAINING, "the server is shutting down; try another or later")


def deadline_passed(waited_s: float) -> ServiceError:
    """Its caller no longer waits."""
    return ServiceError(Reason.DEADLINE_PASSED, f"the deadline passed after {waited_s * 1e3:.0f} ms in the queue")


def deadline_too_near(left_s: float, expected_s: float) -> ServiceError:
    """Its caller would no longer wait when it is run."""
    text = f"the deadline is in {left_s * 1e3:.1f} ms, and a run takes about {expected_s * 1e3:.1f} ms: not begun"
    return ServiceError(Reason.DEADLINE_PASSED, text)
