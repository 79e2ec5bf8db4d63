"""ApiKey: who asks, what it may, and until when. Secrets are made here and kept nowhere.

A secret is 32 random bytes behind a prefix that scanners of code can recognize; it is shown once.
What is kept is its HMAC-SHA-256 under the server's pepper (pepper.py): who reads the database can
neither use what stands there nor try out guesses.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Literal, get_args

from rayline.serving.access import refusals
from rayline.serving.access.window import Period
from rayline.serving.requests import Refusal

Scope = Literal["inference", "tokenize", "models", "metrics", "admin"]
"""inference: chat, completions, embeddings, responses. tokenize: to and from token ids. models: the
list. metrics: Prometheus' page. admin: adapters and rollouts."""
Priority = Literal["high", "normal", "low"]
"""Classes of the queue: a request waits while any of a higher class does."""

SCOPES: tuple[Scope, ...] = get_args(Scope)
DEFAULT_SCOPES: tuple[Scope, ...] = ("inference", "tokenize", "models")
PRIORITIES: tuple[Priority, ...] = get_args(Priority)

SECRET_PREFIX = "rl-"  # noqa: S105 - what every secret begins with, so that scanners know it
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a key, or a team, may take. None: as much as there is."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    """Tokens of prompts and answers together."""
    budget_tokens: int | None = None
    """Tokens of prompts and answers together that may be taken in `budget_period`."""
    budget_period: Period = "total"
    """Of the budget: day, month (both in UTC) or total."""


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, without its secret."""

    id: str
    """Stands in the ledger, in metrics and logs; is never used again."""
    name: str
    """What its owner calls it."""
    team: str | None = None
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES
    models: tuple[str, ...] | None = None
    """Models that it may ask; None: all."""
    limits: Limits = NO_LIMITS
    team_limits: Limits = NO_LIMITS
    """Of all keys of its team together."""
    priority: Priority = "normal"
    weight: int = 1
    """Its share among the waiting keys of its class."""
    created_at_s: float = 0.0
    """Unix time, as the two below."""
    expires_at_s: float | None = None
    revoked_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key and its secret, in the one moment in which it is known."""

    key: ApiKey
    secret: str = field(repr=False)


ANONYMOUS = ApiKey(id="anonymous", name="anonymous", scopes=SCOPES)
"""Who asks where no key is needed: everything is open, nothing is limited, all is counted."""


def new_secret() -> str:
    """A secret that nobody else has: the prefix and 43 characters that stand for 32 bytes."""
    return SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def judge(key: ApiKey, scope: Scope, model: str | None, now_s: float) -> Refusal | None:
    """Why `key` may not use a route of `scope` for `model`, or None where it may.

    `model` is None where the route has none. Called by the door for each request. 401 for a key
    that has ended, 403 for one that may not do this.
    """
    # Whatever this machine's clock says of the moment.
    if key.revoked_at_s is not None:
        return refusals.ended_key("been revoked")
    if key.expires_at_s is not None and key.expires_at_s <= now_s:
        return refusals.ended_key("expired")
    if scope not in key.scopes:
        return refusals.missing_scope(scope)
    if model is not None and key.models is not None and model not in key.models:
        return refusals.closed_model(model)
    return None
