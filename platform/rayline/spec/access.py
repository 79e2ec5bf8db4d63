"""KeySpec: an API key that is to be made. UsageQuery: what is asked of the ledger."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from rayline.spec.document import Document

Scope = Literal["inference", "tokenize", "models", "metrics", "admin"]
"""inference: chat, completions, embeddings, responses. tokenize: to and from token ids. models: the
list. metrics: Prometheus' page. admin: adapters and rollouts."""
Priority = Literal["high", "normal", "low"]
"""A request waits while one of a higher class does."""
Period = Literal["minute", "day", "month", "total"]
"""Over what a limit counts: the 60 seconds before now; this day or month (UTC); for ever."""

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@ -]{0,126}$"

SCOPES: tuple[Scope, ...] = get_args(Scope)
PRIORITIES: tuple[Priority, ...] = get_args(Priority)


class Limits(Document):
    """How much a key, or a team, may take. None: as much as there is."""

    requests_per_min: int | None = Field(default=None, ge=1)
    """Requests in any 60 seconds."""
    tokens_per_min: int | None = Field(default=None, ge=1)
    """Tokens of prompts and answers together, in any 60 seconds."""
    budget_tokens: int | None = Field(default=None, ge=1)
    """Tokens of prompts and answers together, in each `budget_period`."""
    budget_period: Literal["day", "month", "total"] = "total"
    """Of the budget: a day or a month (UTC), or total: once and for all."""


class KeySpec(Document):
    """An API key that is to be made."""

    name: str = Field(pattern=_NAME)
    """What it is called; one key in use has it at a time."""
    team: str | None = Field(default=None, pattern=_NAME)
    """Whose it is: a team may have limits for all its keys together."""
    scopes: tuple[Scope, ...] = Field(default=("inference", "tokenize", "models"), min_length=1)
    """What it may do."""
    models: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Models that it may ask; None: all."""
    limits: Limits = Limits()
    priority: Priority = "normal"
    """Its class where requests wait for an engine."""
    weight: int = Field(default=1, ge=1, le=1000)
    """Its share among the keys of its class that wait."""
    expires_in_s: float | None = Field(default=None, gt=0)
    """Seconds from now until it ends; None: it does not."""


class UsageQuery(Document):
    """Which requests of the ledger are added up, and by what. None takes all."""

    by: Literal["key", "team", "model", "variant", "day"] = "key"
    """A sum for each of these that has any."""
    key: str | None = None
    """Name or id."""
    team: str | None = None
    model: str | None = None
    since_s: float | None = None
    """Unix time; the requests that were let in at it or later."""
    until_s: float | None = None
    """Unix time; the requests that were let in before it."""
