"""The refusals of this room, in OpenAI's words and codes; none repeats what was sent as a key.

Source: OpenAI API reference, "Error codes" and "Rate limits".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rayline.serving.requests import Refusal, RefusedError


class TurnedAway(RefusedError):
    """Not let in; `headers` go with the answer beside the refusal's own."""

    def __init__(self, refusal: Refusal, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(refusal)
        self.headers: Mapping[str, str] = headers or {}


def no_key() -> Refusal:
    """The request has no key."""
    return Refusal(
        401,
        "You didn't provide an API key. You need to provide your API key in an Authorization "
        "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
        code="invalid_api_key",
    )


def wrong_key() -> Refusal:
    """There is no such key."""
    return Refusal(401, "Incorrect API key provided.", code="invalid_api_key")


def ended_key(how: str) -> Refusal:
    """The key was one; `how` it ended reads on after "has"."""
    return Refusal(401, f"The API key provided has {how}.", code="invalid_api_key")


def missing_scope(scope: str) -> Refusal:
    """The key is not for such routes."""
    return Refusal(
        403,
        f"You have insufficient permissions for this operation. Missing scopes: {scope}.",
        code="insufficient_permissions",
    )


def closed_model(model: str) -> Refusal:
    """The key is not for this model."""
    return Refusal(
        403,
        f"This API key does not have access to model {model[:200]!r}.",
        param="model",
        code="model_not_found",
    )


def too_many_bad_keys(wait_s: float) -> Refusal:
    """One more of too many keys from one address that do not exist."""
    return Refusal(
        429,
        "Too many incorrect API keys from your address.",
        code="rate_limit_exceeded",
        retry_after_s=whole_seconds(wait_s),
    )


def over_rate(whose: str, measure: str, limit: int, asked: int, wait_s: float) -> Refusal:
    """A limit a minute is used up: `whose` (key or team), of requests or tokens."""
    return Refusal(
        429,
        f"Rate limit reached for this {whose} on {measure} per min: limit {limit}, requested "
        f"{asked}. Please try again in {duration_text(wait_s)}.",
        type=measure,
        code="rate_limit_exceeded",
        retry_after_s=whole_seconds(wait_s),
    )


def too_large(whose: str, limit: int, asked: int) -> Refusal:
    """One request alone is more than a minute's tokens; waiting does not help."""
    return Refusal(
        429,
        f"Request too large for this {whose} on tokens per min: limit {limit}, requested {asked}. "
        "The prompt or max_tokens must be reduced.",
        type="tokens",
        code="rate_limit_exceeded",
    )


def over_budget(whose: str, period: str, limit: int, wait_s: float | None) -> Refusal:
    """A budget does not hold this request any more; `wait_s` until the next one begins."""
    per = "" if period == "total" else f" per {period}"
    return Refusal(
        429,
        f"You exceeded your current quota: this {whose} has a budget of {limit} tokens{per}, and "
        "what is left of it is less than this request may take.",
        type="insufficient_quota",
        code="insufficient_quota",
        retry_after_s=None if wait_s is None else whole_seconds(wait_s),
    )


def queue_full(whose: str, wait_s: float) -> Refusal:
    """Too many wait already: of this key, or in all."""
    return Refusal(
        429,
        f"{whose} are waiting already. Please try again in {duration_text(wait_s)}.",
        type="requests",
        code="rate_limit_exceeded",
        retry_after_s=whole_seconds(wait_s),
    )


def whole_seconds(wait_s: float) -> int:
    """As Retry-After takes it; at least 1, so that nobody asks again at once."""
    return max(1, math.ceil(wait_s))


def duration_text(seconds: float) -> str:
    """As OpenAI writes a reset: 120ms, 8.64s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds * 100) / 100, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:.2f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
