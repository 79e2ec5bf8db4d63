"""What was used: one row a request, and their sums."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import sqlalchemy as sql

from rayline.serving.access.allowances import Account
from rayline.serving.access.store import Schema, Store
from rayline.spec.access import UsageQuery

Outcome = Literal["complete", "cut", "failed", "refused"]
"""complete: answered to its end. cut: the client left before it. failed: the engine or its replica
did. refused: turned away after it was let in, such as from a full queue."""

_tables = sql.MetaData()
_usage = sql.Table(
    "usage",
    _tables,
    sql.Column("request_id", sql.String(64), primary_key=True),
    sql.Column("at_s", sql.Double, nullable=False),
    sql.Column("day", sql.String(10), nullable=False),
    sql.Column("key_id", sql.String(32), nullable=False),
    sql.Column("key_name", sql.String(128), nullable=False),
    sql.Column("team", sql.String(128)),
    sql.Column("model", sql.String(128), nullable=False),
    sql.Column("variant", sql.String(128)),
    sql.Column("route", sql.String(32), nullable=False),
    sql.Column("prompt_tokens", sql.BigInteger, nullable=False),
    sql.Column("cached_tokens", sql.BigInteger, nullable=False),
    sql.Column("completion_tokens", sql.BigInteger, nullable=False),
    sql.Column("status", sql.Integer, nullable=False),
    sql.Column("outcome", sql.String(16), nullable=False),
    sql.Column("ttft_ms", sql.Double),
    sql.Column("seconds", sql.Double, nullable=False),
    # Sums over one key or one team from some moment on, and over days.
    sql.Index("usage_by_key", "key_id", "at_s"),
    sql.Index("usage_by_team", "team", "at_s"),
    sql.Index("usage_by_day", "day"),
)
SCHEMA = Schema("usage", 1, _tables)

_COLUMNS: dict[str, sql.Column[str]] = {
    "key": _usage.c.key_id,
    "team": _usage.c.team,
    "model": _usage.c.model,
    "variant": _usage.c.variant,
    "day": _usage.c.day,
}
_SUMMED = ("prompt_tokens", "cached_tokens", "completion_tokens", "seconds")


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What one request used. Holds nothing of what was said."""

    request_id: str
    """Unique: a row is written once, however often it is tried."""
    at_s: float
    """When it was let in, Unix time."""
    key_id: str
    key_name: str
    """As it was called then."""
    team: str | None
    model: str
    """Name that it is served under."""
    variant: str | None
    """Which version of it answered."""
    route: str
    """chat, completions, embeddings ..."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt's tokens, those found in the prefix cache."""
    completion_tokens: int
    status: int
    """HTTP status that the answer began with."""
    outcome: Outcome
    ttft_ms: float | None
    """From being let in to the first token; None where none came."""
    seconds: float
    """From being let in to the end."""

    @property
    def day(self) -> str:
        """In UTC, such as 2026-11-26."""
        return f"{datetime.datetime.fromtimestamp(self.at_s, datetime.UTC):%Y-%m-%d}"

    def as_dict(self) -> dict[str, str | int | float | None]:
        """Its fields as plain values."""
        # dataclasses.asdict copies each value, which is most of the work of writing a row.
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class UsageSum:
    """The rows of one key, team, model, variant or day, added up."""

    group: str
    """The key's id, or whatever else they have in common; empty for no team or variant."""
    name: str
    """As a person reads it: the key's name."""
    requests: int
    complete: int
    cut: int
    failed: int
    refused: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float

    @property
    def tokens(self) -> int:
        """Of prompts and answers together, as limits and budgets count."""
        return self.prompt_tokens + self.completion_tokens


def write_rows(store: Store, rows: Sequence[UsageRow]) -> None:
    """Write rows, each once: one that is there already is left alone. Raises ServingError."""
    values = [{**row.as_dict(), "day": row.day} for row in rows]
    with store.writing() as connection:
        connection.execute(store.insert_new(_usage), values)


def sum_usage(store: Store, asked: UsageQuery) -> list[UsageSum]:
    """The sums of each key, team, model, variant or day that has any, in order. Raises
    ServingError."""
    group = _COLUMNS[asked.by]
    name = sql.func.max(_usage.c.key_name) if asked.by == "key" else group
    query = (
        sql.select(
            group.label("group"),
            name.label("name"),
            sql.func.count().label("requests"),
            *(_counted(outcome) for outcome in get_args(Outcome)),
            *(sql.func.sum(_usage.c[column]).label(column) for column in _SUMMED),
        )
        .where(*_conditions(asked))
        .group_by(group)
        .order_by(group)
    )
    with store.reading() as connection:
        rows = connection.execute(query).mappings().all()
    return [_sum(row) for row in rows]


def _counted(outcome: Outcome) -> sql.Label[int]:
    return sql.func.count(sql.case((_usage.c.outcome == outcome, 1))).label(outcome)


def _conditions(asked: UsageQuery) -> list[sql.ColumnElement[bool]]:
    rows = _usage.c
    conditions = []
    if asked.key is not None:
        conditions.append(sql.or_(rows.key_id == asked.key, rows.key_name == asked.key))
    if asked.team is not None:
        conditions.append(rows.team == asked.team)
    if asked.model is not None:
        conditions.append(rows.model == asked.model)
    if asked.since_s is not None:
        conditions.append(rows.at_s >= asked.since_s)
    if asked.until_s is not None:
        conditions.append(rows.at_s < asked.until_s)
    return conditions


def _sum(row: sql.RowMapping) -> UsageSum:
    # PostgreSQL's sums of 64-bit numbers are decimals.
    counts = {name: int(row[name]) for name in ("requests", *get_args(Outcome), *_SUMMED[:-1])}
    return UsageSum(
        group=row["group"] or "", name=row["name"] or "", seconds=float(row["seconds"]), **counts
    )


class LedgerPast:
    """What the authority over quotas has to know of the time before it (allowances.Past)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.ensure(SCHEMA)

    def minute(self, account: Account, since_s: float, until_s: float) -> list[tuple[float, int]]:
        """See Past."""
        query = (
            sql.select(_usage.c.at_s, _taken(account))
            .where(*_of(account, since_s, until_s))
            .order_by(_usage.c.at_s)
        )
        with self._store.reading() as connection:
            return [(at_s, int(amount)) for at_s, amount in connection.execute(query)]

    def total(self, account: Account, since_s: float, until_s: float) -> int:
        """See Past."""
        query = sql.select(sql.func.sum(_taken(account))).where(*_of(account, since_s, until_s))
        with self._store.reading() as connection:
            return int(connection.scalar(query) or 0)


def _taken(account: Account) -> sql.ColumnElement[int]:
    if account.measure == "requests":
        return sql.literal(1)
    return _usage.c.prompt_tokens + _usage.c.completion_tokens


def _of(account: Account, since_s: float, until_s: float) -> list[sql.ColumnElement[bool]]:
    holder = _usage.c.key_id if account.kind == "key" else _usage.c.team
    return [holder == account.holder, _usage.c.at_s >= since_s, _usage.c.at_s < until_s]
