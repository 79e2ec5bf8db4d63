"""Answered: all that is known of a request once it has ended; metrics, access log, trace and ledger
are told this and nothing else, so none of them can hold what a client wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Prompt = Literal["here", "elsewhere", "again"]
"""Who computed it: the replica that answered, another one for it (engine.split), or another one in
vain, and then the replica that answered."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One request that has ended."""

    request_id: str
    at_s: float
    """When it came, Unix time."""
    route: str
    model: str
    version: str
    """Empty where no version took it."""
    key: str
    """Name of the key; never its secret."""
    address: str
    """Who asked."""
    status: int
    """Of HTTP; a stream that broke off has 200."""
    outcome: str
    """complete, left (the client went), failed (by us) or refused (for the client's own fault, or
    for want of quota or room)."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float
    """From the request's last byte in to the answer's last byte out."""
    first_s: float | None
    """To the first token; None where there was none."""
    last_s: float | None
    """To the last token."""
    engine_s: float
    """Of `seconds`, in the engine: waiting there and computing."""
    losses: int
    """Replicas that were lost under it."""
    prompt: Prompt = "here"
    traceparent: str | None = None
    """W3C trace context that came with it."""

    @property
    def between_s(self) -> float | None:
        """Mean time between two tokens."""
        if self.first_s is None or self.last_s is None or self.completion_tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.completion_tokens - 1)
