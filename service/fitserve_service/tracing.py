"""Spans of OpenTelemetry, an extra: one for each request with its parts below it, under the caller's own span.

The caller's context comes as W3C `traceparent` and `tracestate` metadata. Where the exporter sends spans is told by
OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, ...).
"""

from __future__ import annotations

import time
from typing import Any, Final, Protocol

from fitserve_service.budget import Budget
from fitserve_service.calls import Metadata
from fitserve_service.errors import Code
from fitserve_service.served_version import ServedVersion

CHOICES: Final = ("off", "otlp")

_PARTS: Final = ("decode", "queue", "run", "encode")
_CONTEXT_KEYS: Final = frozenset({"traceparent", "tracestate"})


class TracingError(Exception):
    """Tracing was asked for and cannot be had; the message says what to install."""


class RequestTracer(Protocol):
    """Is told of every request, on the loop thread."""

    def on_request(
        self, method: str, served: ServedVersion | None, code: Code, budget: Budget, metadata: Metadata
    ) -> None:
        """Takes the end of a request."""
        ...


class OpenTelemetryTracer:
    """Makes spans after the fact, from the times that are measured anyway.

    Args:
        provider: An OpenTelemetry TracerProvider.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("fitserve")
        self._propagator = TraceContextTextMapPropagator()

    def on_request(
        self, method: str, served: ServedVersion | None, code: Code, budget: Budget, metadata: Metadata
    ) -> None:
        """Takes the end of a request."""
        begin_ns = time.time_ns() - int(budget.total_s * 1e9)
        carrier = {key: value for key, value in metadata if key in _CONTEXT_KEYS}
        span = self._tracer.start_span(
            f"fitserve {method}",
            context=self._propagator.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes=_attributes(method, served, code),
            start_time=begin_ns,
        )
        if span.is_recording():
            begin_ns = self._add_parts(span, budget, begin_ns)
        if code is not Code.OK:
            span.set_status(self._trace.StatusCode.ERROR, code.name)
        span.end(end_time=begin_ns)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()

    def _add_parts(self, span: Any, budget: Budget, begin_ns: int) -> int:
        context = self._trace.set_span_in_context(span)
        for part in _PARTS:
            end_ns = begin_ns + int(getattr(budget, f"{part}_s") * 1e9)
            child = self._tracer.start_span(part, context=context, start_time=begin_ns)
            child.end(end_time=end_ns)
            begin_ns = end_ns
        return begin_ns


def open_tracer(choice: str) -> OpenTelemetryTracer | None:
    """Makes the tracer; None where it is off.

    Args:
        choice: One of CHOICES.

    Raises:
        TracingError: OpenTelemetry is not installed.
    """
    if choice == "off":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        text = f"--tracing {choice}: expected OpenTelemetry, got no module '{error.name}': pip install 'fitserve[otel]'"
        raise TracingError(text) from None
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetryTracer(provider)


def _attributes(method: str, served: ServedVersion | None, code: Code) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {"rpc.system": "grpc", "rpc.method": method, "rpc.grpc.status_code": code.value}
    if served is not None:
        attributes |= {"fitserve.model": served.model, "fitserve.version": served.version}
    return attributes
