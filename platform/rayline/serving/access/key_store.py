"""Keys and teams in the store: made, changed and read. The command line and Client call these.

Each change bumps one counter in the same transaction; gateways look at that alone (ring.py).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sql

from rayline.errors import SpecError
from rayline.serving.access.keys import NO_LIMITS, SECRET_PREFIX, ApiKey, IssuedKey, new_secret
from rayline.serving.access.pepper import Pepper, read_pepper
from rayline.serving.access.store import Schema, Store
from rayline.spec.access import KeySpec, Limits

_tables = sql.MetaData()


def _limit_columns() -> list[sql.Column[Any]]:
    return [
        sql.Column("requests_per_min", sql.BigInteger),
        sql.Column("tokens_per_min", sql.BigInteger),
        sql.Column("budget_tokens", sql.BigInteger),
        sql.Column("budget_period", sql.String(16), nullable=False),
    ]


_keys = sql.Table(
    "api_keys",
    _tables,
    sql.Column("id", sql.String(32), primary_key=True),
    sql.Column("name", sql.String(128), nullable=False),
    sql.Column("team", sql.String(128)),
    sql.Column("scopes", sql.Text, nullable=False),
    sql.Column("models", sql.Text),
    *_limit_columns(),
    sql.Column("priority", sql.String(16), nullable=False),
    sql.Column("weight", sql.Integer, nullable=False),
    sql.Column("created_at_s", sql.Double, nullable=False),
    sql.Column("expires_at_s", sql.Double),
    sql.Column("revoked_at_s", sql.Double),
)
_secrets = sql.Table(
    "api_secrets",
    _tables,
    sql.Column("digest", sql.LargeBinary(32), primary_key=True),
    sql.Column("key_id", sql.ForeignKey(_keys.c.id), nullable=False),
    sql.Column("expires_at_s", sql.Double),
)
_teams = sql.Table(
    "teams", _tables, sql.Column("name", sql.String(128), primary_key=True), *_limit_columns()
)
_state = sql.Table(
    "access_state",
    _tables,
    sql.Column("row", sql.Integer, primary_key=True),  # there is one
    sql.Column("changes", sql.BigInteger, nullable=False),
    sql.Column("pepper_check", sql.String(64), nullable=False),
)
SCHEMA = Schema("access", 1, _tables)

_CHECKED = "what every pepper hashes otherwise"


@dataclass(frozen=True, slots=True)
class Hooked:
    """One secret's place on the chain."""

    digest: bytes
    key: ApiKey
    expires_at_s: float | None
    """When the secret was replaced, or is to be (Unix time); the key goes on."""


@dataclass(frozen=True, slots=True)
class KeyChain:
    """All keys as they were at one change, revoked ones too, so that they can be told so."""

    changes: int
    by_digest: Mapping[bytes, Hooked]


class KeyStore:
    """The keys of one store. Makes its tables on first use. Raises ServingError where the store
    does not answer, SpecError where the pepper is not the one that its keys were made with."""

    def __init__(self, store: Store, pepper: Pepper) -> None:
        self.store = store
        self.pepper = pepper
        store.ensure(SCHEMA)
        self._check_pepper()

    def create(self, spec: KeySpec) -> IssuedKey:
        """Keep a new key. Raises SpecError where a key of this name is in use."""
        key = _new_key(spec, time.time())
        issued = IssuedKey(key, new_secret())
        with self._changing() as connection:
            named = sql.and_(_keys.c.name == key.name, _keys.c.revoked_at_s.is_(None))
            if connection.scalar(sql.select(_keys.c.id).where(named)) is not None:
                raise SpecError(
                    "name",
                    "a key of this name is in use",
                    value=key.name,
                    fix=f"choose another name, or rayline keys rotate {key.name}",
                )
            connection.execute(sql.insert(_keys).values(_key_row(key)))
            self._keep_secret(connection, issued)
        return issued

    def rotate(self, name: str, overlap_s: float = 0.0) -> IssuedKey:
        """Give a key (by name or id) a new secret; the old ones hold for `overlap_s` more. Raises
        SpecError."""
        with self._changing() as connection:
            key = self._live(connection, name)
            old = _secrets.c.key_id == key.id
            if overlap_s > 0:
                end_s = time.time() + overlap_s
                sooner = sql.or_(_secrets.c.expires_at_s.is_(None), _secrets.c.expires_at_s > end_s)
                ending = sql.update(_secrets).where(old, sooner).values(expires_at_s=end_s)
                connection.execute(ending)
            else:
                connection.execute(sql.delete(_secrets).where(old))
            issued = IssuedKey(key, new_secret())
            self._keep_secret(connection, issued)
        return issued

    def revoke(self, name: str) -> ApiKey:
        """End a key (by name or id) for good; every gateway refuses it within a second. Raises
        SpecError where there is none in use."""
        with self._changing() as connection:
            key = replace(self._live(connection, name), revoked_at_s=time.time())
            row = sql.update(_keys).where(_keys.c.id == key.id)
            connection.execute(row.values(revoked_at_s=key.revoked_at_s))
        return key

    def limit_team(self, team: str, limits: Limits) -> None:
        """Let all keys of a team together take so much; NO_LIMITS: as much as there is."""
        with self._changing() as connection:
            connection.execute(sql.delete(_teams).where(_teams.c.name == team))
            if limits != NO_LIMITS:
                row = {"name": team, **limits.model_dump()}
                connection.execute(sql.insert(_teams).values(row))

    def find(self, name: str) -> ApiKey:
        """The key in use of this name or id. Raises SpecError."""
        with self.store.reading() as connection:
            return self._live(connection, name)

    def keys(self) -> list[ApiKey]:
        """All keys, revoked ones too, oldest first."""
        with self.store.reading() as connection:
            return _read_keys(connection)

    def changes(self) -> int:
        """How often anything has changed: the one number that gateways look at."""
        with self.store.reading() as connection:
            return _changes(connection)

    def chain(self) -> KeyChain:
        """Everything that a gateway needs to know keys by their secrets."""
        with self.store.reading() as connection:
            # Read first: what changes meanwhile is read again next time.
            changes = _changes(connection)
            keys = {key.id: key for key in _read_keys(connection)}
            rows = connection.execute(sql.select(_secrets)).all()
        hooked = (Hooked(bytes(row.digest), keys[row.key_id], row.expires_at_s) for row in rows)
        return KeyChain(changes, {one.digest: one for one in hooked})

    @contextmanager
    def _changing(self) -> Iterator[sql.Connection]:
        """A transaction that gateways will hear of; one at a time, for all of them begin with the
        same row."""
        with self.store.writing() as connection:
            connection.execute(sql.update(_state).values(changes=_state.c.changes + 1))
            yield connection

    def _keep_secret(self, connection: sql.Connection, issued: IssuedKey) -> None:
        row = {"digest": self.pepper.digest(issued.secret), "key_id": issued.key.id}
        connection.execute(sql.insert(_secrets).values(row))

    def _live(self, connection: sql.Connection, name: str) -> ApiKey:
        keys = _read_keys(connection)
        for key in keys:
            if name in (key.id, key.name) and key.revoked_at_s is None:
                return key
        known = ", ".join(sorted(key.name for key in keys if key.revoked_at_s is None))
        if name.startswith(SECRET_PREFIX):
            # Not repeated: it may be one, and errors end in logs.
            raise SpecError("name", "a secret stands where a name belongs", allowed=known)
        raise SpecError("name", "no key in use has this name or id", value=name, allowed=known)

    def _check_pepper(self) -> None:
        """Under another pepper every key would be unknown, without a word why."""
        check = self.pepper.digest(_CHECKED).hex()
        with self.store.writing() as connection:
            row = {"row": 1, "changes": 0, "pepper_check": check}
            connection.execute(self.store.insert_new(_state).values(row))
            found = connection.scalar(sql.select(_state.c.pepper_check))
        if found != check:
            raise SpecError(
                "gateway.store",
                "its keys were made under another pepper",
                value=self.store.shown,
                fix="give the pepper that they were made under: RAYLINE_PEPPER, or the file "
                "beside the store",
            )


def _changes(connection: sql.Connection) -> int:
    return int(connection.scalar(sql.select(_state.c.changes)) or 0)


def _read_keys(connection: sql.Connection) -> list[ApiKey]:
    teams = {row.name: _limits(row) for row in connection.execute(sql.select(_teams))}
    rows = connection.execute(sql.select(_keys).order_by(_keys.c.created_at_s, _keys.c.id))
    return [_key(row, teams) for row in rows]


def _new_key(spec: KeySpec, now_s: float) -> ApiKey:
    return ApiKey(
        id=f"key_{secrets.token_hex(8)}",
        name=spec.name,
        team=spec.team,
        scopes=spec.scopes,
        models=spec.models,
        limits=spec.limits,
        priority=spec.priority,
        weight=spec.weight,
        created_at_s=now_s,
        expires_at_s=None if spec.expires_in_s is None else now_s + spec.expires_in_s,
    )


def _key_row(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "team": key.team,
        "scopes": json.dumps(key.scopes),
        "models": None if key.models is None else json.dumps(key.models),
        **key.limits.model_dump(),
        "priority": key.priority,
        "weight": key.weight,
        "created_at_s": key.created_at_s,
        "expires_at_s": key.expires_at_s,
        "revoked_at_s": key.revoked_at_s,
    }


def _key(row: Any, teams: Mapping[str, Limits]) -> ApiKey:
    return ApiKey(
        id=row.id,
        name=row.name,
        team=row.team,
        scopes=tuple(json.loads(row.scopes)),
        models=None if row.models is None else tuple(json.loads(row.models)),
        limits=_limits(row),
        team_limits=teams.get(row.team, NO_LIMITS),
        priority=row.priority,
        weight=row.weight,
        created_at_s=row.created_at_s,
        expires_at_s=row.expires_at_s,
        revoked_at_s=row.revoked_at_s,
    )


def _limits(row: Any) -> Limits:
    return Limits(
        requests_per_min=row.requests_per_min,
        tokens_per_min=row.tokens_per_min,
        budget_tokens=row.budget_tokens,
        budget_period=row.budget_period,
    )


def open_keys(address: str) -> KeyStore:
    """The keys of the store at `address` (GatewaySpec.store). Raises ServingError, SpecError."""
    store = Store(address)
    return KeyStore(store, read_pepper(store))
