"""Keys and usage as they are shown: whose, what they may, what they used. Never a secret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayline.serving.access.keys import ApiKey
    from rayline.serving.access.usage import UsageSum
    from rayline.spec import Limits

USAGE_BY = ("key", "team", "model", "variant", "day")


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key."""

    name: str
    id: str
    team: str
    scopes: tuple[str, ...]
    models: str
    limits: str
    priority: str
    state: str
    """in use, expired or revoked."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one key, team, model, version or day used."""

    name: str
    requests: int
    cut: int
    failed: int
    refused: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tokens: int


def key_rows(keys: Sequence[ApiKey], now_s: float) -> list[KeyRow]:
    """The keys, those in use first; `now_s` is Unix time."""
    rows = [
        KeyRow(
            name=key.name,
            id=key.id,
            team=key.team or "",
            scopes=tuple(key.scopes),
            models="all" if key.models is None else ", ".join(key.models),
            limits=_limits(key.limits),
            priority=key.priority if key.weight == 1 else f"{key.priority} ×{key.weight}",
            state=_state(key, now_s),
        )
        for key in keys
    ]
    return sorted(rows, key=lambda row: row.state != "in use")


def usage_rows(sums: Sequence[UsageSum]) -> list[UsageRow]:
    """The sums, in the order in which they are given."""
    return [
        UsageRow(
            name=one.name or "-",
            requests=one.requests,
            cut=one.cut,
            failed=one.failed,
            refused=one.refused,
            prompt_tokens=one.prompt_tokens,
            cached_tokens=one.cached_tokens,
            completion_tokens=one.completion_tokens,
            tokens=one.tokens,
        )
        for one in sums
    ]


def _limits(limits: Limits) -> str:
    period = "in all" if limits.budget_period == "total" else f"a {limits.budget_period}"
    told = (
        (limits.requests_per_min, "requests/min"),
        (limits.tokens_per_min, "tokens/min"),
        (limits.budget_tokens, f"tokens {period}"),
    )
    return ", ".join(f"{amount:,} {unit}" for amount, unit in told if amount is not None) or "none"


def _state(key: ApiKey, now_s: float) -> str:
    if key.revoked_at_s is not None:
        return "revoked"
    expired = key.expires_at_s is not None and key.expires_at_s <= now_s
    return "expired" if expired else "in use"
