"""Traces by OpenTelemetry: one span a request, under the client's trace where it sent one, with the
wait for the engine and its work told apart. Attributes are those of OpenTelemetry's conventions for
generative AI; the prompt and the answer are none of them.

Without an address nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayline.serving.gateway.answered import Answered

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

_NS = 1_000_000_000


class Traces:
    """Hands spans to an exporter in the background."""

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": "rayline-gateway"})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("rayline.serving")

    @staticmethod
    def to(endpoint: str) -> Traces:
        """To a collector that speaks OTLP over HTTP, by its base address."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return Traces(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces"))

    def add(self, one: Answered) -> None:
        """Enter a request that has ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {} if one.traceparent is None else {"traceparent": one.traceparent}
        span = self._tracer.start_span(
            f"{one.route} {one.model}",
            context=TraceContextTextMapPropagator().extract(carrier),
            kind=SpanKind.SERVER,
            start_time=int(one.at_s * _NS),
            attributes={
                "gen_ai.operation.name": one.route,
                "gen_ai.request.model": one.model,
                "gen_ai.usage.input_tokens": one.prompt_tokens,
                "gen_ai.usage.output_tokens": one.completion_tokens,
                "gen_ai.server.time_to_first_token": one.first_s or 0.0,
                "http.response.status_code": one.status,
                "rayline.request_id": one.request_id,
                "rayline.version": one.version,
                "rayline.key": one.key,
                "rayline.outcome": one.outcome,
                "rayline.engine_s": one.engine_s,
                "rayline.replicas_lost": one.losses,
            },
        )
        if one.first_s is not None:
            span.add_event("first token", timestamp=int((one.at_s + one.first_s) * _NS))
        if one.outcome == "failed":
            span.set_status(Status(StatusCode.ERROR))
        span.end(int((one.at_s + one.seconds) * _NS))

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()
