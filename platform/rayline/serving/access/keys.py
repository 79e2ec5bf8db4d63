"""ApiKey: who asks, what it may, and until when. Secrets are made here and kept nowhere.

A secret is 32 random bytes behind a prefix that scanners of code can recognize; it is shown once.
What is kept is its HMAC-SHA-256 under the server's pepper (pepper.py): who reads the database can
neither use what stands there nor try out guesses.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from rayline.serving.access import refusals
from rayline.serving.requests import Refusal
from rayline.spec.access import SCOPES, Limits, Priority, Scope

SECRET_PREFIX = "rl-"  # noqa: S105 - what every secret begins with, so that scanners know it
_SECRET_BYTES = 32


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, without its secret."""

    id: str
    """Stands in the ledger, in metrics and logs; is never used again."""
    name: str
    """What its owner calls it."""
    team: str | None = None
    scopes: tuple[Scope, ...] = SCOPES
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


ANONYMOUS = ApiKey(id="anonymous", name="anonymous")
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
