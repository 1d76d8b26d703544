"""Spans from measured times, by OpenTelemetry's own SDK."""

from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from fitserve_service.budget import Budget
from fitserve_service.errors import Code
from fitserve_service.tracing import OpenTelemetryTracer, TracingError, open_tracer

TRACE, PARENT = 0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7
TRACEPARENT = f"00-{TRACE:032x}-{PARENT:016x}-01"


def spans(metadata: list[tuple[str, str | bytes]], code: Code = Code.OK) -> dict[str, ReadableSpan]:
    """Has one request traced, and gives its spans by name."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = OpenTelemetryTracer(provider)
    tracer.on_request("Predict", None, code, Budget(0.0, 0.001, 0.002, 0.004, 0.008), metadata)
    tracer.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_request_continues_its_callers_trace() -> None:
    found = spans([("traceparent", TRACEPARENT), ("tracestate", "a=b"), ("other-bin", b"\0")])
    root = found["fitserve Predict"]
    assert root.context is not None
    assert root.parent is not None
    assert (root.context.trace_id, root.parent.span_id, root.parent.trace_state.get("a")) == (TRACE, PARENT, "b")


def test_parts_lie_end_to_end_within_the_request() -> None:
    found = spans([])
    root, parts = found.pop("fitserve Predict"), list(found.values())
    assert [span.name for span in parts] == ["decode", "queue", "run", "encode"]
    assert [span.end_time - span.start_time for span in parts if span.end_time and span.start_time] == [
        1_000_000,
        2_000_000,
        4_000_000,
        8_000_000,
    ]
    assert [span.start_time for span in parts[1:]] == [span.end_time for span in parts[:-1]]
    assert (root.start_time, root.end_time) == (parts[0].start_time, parts[-1].end_time)
    assert all(span.parent == root.context for span in parts)


def test_a_refusal_is_an_error_of_its_code() -> None:
    root = spans([("traceparent", "nonsense")], Code.NOT_FOUND)["fitserve Predict"]
    assert (root.status.status_code, root.status.description) == (StatusCode.ERROR, "NOT_FOUND")
    assert root.parent is None
    assert root.attributes is not None
    assert root.attributes["rpc.grpc.status_code"] == 5


def test_what_is_not_sampled_costs_no_parts() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ALWAYS_OFF)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    OpenTelemetryTracer(provider).on_request("Predict", None, Code.OK, Budget(0.0), [])
    assert exporter.get_finished_spans() == ()


def test_off_is_nothing_at_all() -> None:
    assert open_tracer("off") is None


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TracingError, match=r"pip install 'fitserve\[otel\]'"):
        open_tracer("otlp")
