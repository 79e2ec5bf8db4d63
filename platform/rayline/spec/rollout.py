"""RolloutSpec: how one version of a model gives way to the next."""

from __future__ import annotations

from itertools import pairwise
from typing import Self

from pydantic import Field, model_validator

from rayline.spec.document import Document

WHOLE_PERCENT = 100.0


class LatencyGate(Document):
    """What a new version may take, of one time that clients feel."""

    percentiles: tuple[float, ...] = (50.0, 95.0)
    """Percentiles that are compared, in (0, 100)."""
    times: float | None = Field(default=1.5, ge=1)
    """How many times the stable version's that of the new one may be, both measured while they
    answer side by side; null compares nothing."""
    limit_ms: float | None = Field(default=None, gt=0)
    """What the highest of the percentiles may be at most, whatever the stable version does."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        wrong = [one for one in self.percentiles if not 0 < one < 100]
        if wrong or not self.percentiles:
            raise ValueError("percentiles are one or more numbers between 0 and 100")
        return self


class GatesSpec(Document):
    """What a new version has to keep. One that certainly does not is rolled back; one of which
    nothing is certain yet waits."""

    error_rate_more: float | None = Field(default=0.02, ge=0, lt=1)
    """Share of requests by which it may fail more often than the stable version; null is off."""
    error_rate: float | None = Field(default=None, ge=0, lt=1)
    """Share of requests that may fail, whatever the stable version does."""
    ttft: LatencyGate = LatencyGate()
    """Time to the first token."""
    tpot: LatencyGate = LatencyGate()
    """Time per further token."""
    score: float | None = Field(default=None, ge=0, le=1)
    """Least share of the evaluation set that it must answer as expected."""
    score_less: float | None = Field(default=0.02, ge=0, le=1)
    """Share of the evaluation set that it may answer as expected less often than the stable
    version; null is off."""


class RolloutSpec(Document):
    """How a new version takes over from the one that serves. Its replicas are ready before it gets
    a request, and one that does not start changes nothing."""

    steps: tuple[float, ...] = (WHOLE_PERCENT,)
    """Shares of requests that a new version gets one after another, in percent, rising. Where the
    last is below 100 it stays there until it is promoted by hand."""
    sticky: bool = True
    """Requests of one session go to one version: the hash of the session against the share, so a
    raised share moves only the sessions that it newly takes in."""
    window_s: float = Field(default=60.0, gt=0)
    """How long a version is watched at each step, at least, in seconds."""
    min_requests: int = Field(default=50, ge=1)
    """Answers of the new version that a step is judged on, at least."""
    gates: GatesSpec = GatesSpec()
    bake_s: float = Field(default=0.0, ge=0)
    """How long the old version is kept up, and the new one judged, once it has everything."""
    keep_versions: int = Field(default=10, ge=1)
    """Earlier versions that can be gone back to; older ones are forgotten."""
    shadow_percent: float = Field(default=0.0, ge=0, le=100)
    """Before the first step: share of requests, in percent, of which a new version gets a copy for
    window_s. What it answers goes to nobody; that it fails or is slow counts."""
    evaluation: str | None = None
    """File of questions with expected answers, which a new version is asked before it gets a
    request: lines of JSON, each with `messages` or `prompt`, and `expected`, a text that the answer
    has to contain."""
    alias: str | None = None
    """Alias of the registered model that is moved to whatever version is stable; null takes the one
    that the model's reference names."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not self.steps or not all(0 < step <= WHOLE_PERCENT for step in self.steps):
            raise ValueError("steps are one or more shares above 0, up to 100")
        if any(later <= before for before, later in pairwise(self.steps)):
            raise ValueError("each of the steps has to be above the one before it")
        return self
