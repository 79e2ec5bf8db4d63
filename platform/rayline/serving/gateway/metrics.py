"""What the gateway measures, as Prometheus metrics: per model, version and key, with the time that
the engine took told apart from the framework's.

The keys' names are labels, their number is bounded by the store's; nothing of a request's content
is one.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rayline.serving.gateway.answered import Answered

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_OF_REQUEST = ("model", "version", "key")


class Meters:
    """One gateway's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "rayline_requests",
            "Requests that have ended.",
            (*_OF_REQUEST, "status", "outcome"),
            registry=self.registry,
        )
        self._tokens = Counter(
            "rayline_tokens",
            "Tokens: prompt, cached (part of prompt) and completion.",
            (*_OF_REQUEST, "kind"),
            registry=self.registry,
        )
        self._first = self._seconds("rayline_first_token_seconds", "To the first token.", _SECONDS)
        self._token = self._seconds(
            "rayline_token_seconds", "Between two tokens, mean of a request.", _TOKEN_SECONDS
        )
        self._engine = self._seconds("rayline_engine_seconds", "In the engine.", _SECONDS)
        self._framework = self._seconds(
            "rayline_framework_seconds", "Outside the engine: checks, hops, queue.", _SECONDS
        )
        self._losses = Counter(
            "rayline_replicas_lost",
            "Replicas that were lost under a request that went on elsewhere.",
            ("model",),
            registry=self.registry,
        )
        self._split = Counter(
            "rayline_split_prompts",
            "Prompts that another replica computed: elsewhere, or in vain and then again.",
            ("model", "computed"),
            registry=self.registry,
        )
        self.open_requests = Gauge(
            "rayline_open_requests", "Requests under way.", ("model",), registry=self.registry
        )

    def _seconds(self, name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, what, ("model", "version"), buckets=buckets, registry=self.registry)

    def count(self, one: Answered) -> None:
        """Enter a request that has ended."""
        of_request = (one.model, one.version, one.key)
        self._requests.labels(*of_request, str(one.status), one.outcome).inc()
        for kind, tokens in (
            ("prompt", one.prompt_tokens),
            ("cached", one.cached_tokens),
            ("completion", one.completion_tokens),
        ):
            self._tokens.labels(*of_request, kind).inc(tokens)
        if one.losses:
            self._losses.labels(one.model).inc(one.losses)
        if one.prompt != "here":
            self._split.labels(one.model, one.prompt).inc()
        if one.first_s is None:
            return
        of_version = (one.model, one.version)
        self._first.labels(*of_version).observe(one.first_s)
        if one.between_s is not None:
            self._token.labels(*of_version).observe(one.between_s)
        self._engine.labels(*of_version).observe(one.engine_s)
        self._framework.labels(*of_version).observe(max(0.0, one.seconds - one.engine_s))

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
