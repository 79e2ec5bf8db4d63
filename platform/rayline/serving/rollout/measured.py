"""Measured: what clients felt of one version over a stretch of time."""

from __future__ import annotations

from dataclasses import dataclass, field

from rayline.serving.rollout.sketch import Sketch


@dataclass(frozen=True, slots=True)
class Measured:
    """Counted by gateways for each version of each model; the sum of two is both together."""

    requests: int = 0
    """Requests that ended: answered in full, or failed by us. What was refused for the client's own
    fault or for want of quota, and what the client broke off, is not counted."""
    errors: int = 0
    """Those of them that failed: a status of 500 or above, or a stream that ended in an error."""
    ttft_ms: Sketch = field(default_factory=Sketch)
    """Time from a request's arrival to its first token."""
    tpot_ms: Sketch = field(default_factory=Sketch)
    """Mean time of the tokens after the first, one an answer of two tokens or more."""

    def __add__(self, other: Measured) -> Measured:
        return Measured(
            self.requests + other.requests,
            self.errors + other.errors,
            self.ttft_ms + other.ttft_ms,
            self.tpot_ms + other.tpot_ms,
        )
