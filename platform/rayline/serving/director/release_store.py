"""Releases in the store, beside keys and usage: what is served survives the director's process.

A Release and the spec of a version are kept as JSON, written whole in one transaction; nothing but
the director writes them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import sqlalchemy as sql
from pydantic import TypeAdapter, ValidationError

from rayline.serving.access.store import Schema, Store
from rayline.serving.director.blueprint import Blueprint, Event
from rayline.serving.rollout.release import Release

logger = logging.getLogger(__name__)

_tables = sql.MetaData()
_releases = sql.Table(
    "releases",
    _tables,
    sql.Column("model", sql.String(64), primary_key=True),
    sql.Column("release", sql.Text, nullable=False),
)
_specs = sql.Table(
    "version_specs",
    _tables,
    sql.Column("model", sql.String(64), primary_key=True),
    sql.Column("number", sql.Integer, primary_key=True),
    sql.Column("blueprint", sql.Text, nullable=False),
)
_events = sql.Table(
    "rollout_events",
    _tables,
    sql.Column("row", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("model", sql.String(64), nullable=False, index=True),
    sql.Column("at_s", sql.Double, nullable=False),
    sql.Column("said", sql.Text, nullable=False),
)
SCHEMA = Schema("rollout", 1, _tables)


_RELEASE = TypeAdapter(Release)
_BLUEPRINT = TypeAdapter(Blueprint)


class ReleaseStore:
    """The releases of one store. Makes its tables on first use. Every method raises ServingError
    where the store does not answer."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.ensure(SCHEMA)

    def releases(self) -> list[Release]:
        """Every model that was ever served from this store."""
        with self._store.reading() as connection:
            rows = connection.scalars(sql.select(_releases.c.release)).all()
        return [_RELEASE.validate_json(row) for row in rows]

    def keep(
        self, release: Release, happened: Event | None, new: Mapping[int, Blueprint] | None = None
    ) -> None:
        """Write a release as it is now, what led to it, and the blueprints of versions that are new
        in it; those of versions that it has forgotten go."""
        row = {"release": _RELEASE.dump_json(release).decode()}
        known = [version.number for version in release.versions]
        model = release.model
        with self._store.writing() as connection:
            where = _releases.c.model == model
            if not connection.execute(sql.update(_releases).where(where).values(row)).rowcount:
                connection.execute(sql.insert(_releases).values(model=model, **row))
            for number, blueprint in (new or {}).items():
                _replace_blueprint(connection, model, number, blueprint)
            forgotten = sql.and_(_specs.c.model == model, _specs.c.number.not_in(known))
            connection.execute(sql.delete(_specs).where(forgotten))
            if happened is not None:
                event = {"model": model, "at_s": happened.at_s, "said": happened.said}
                connection.execute(sql.insert(_events).values(event))

    def blueprints(self, release: Release) -> dict[int, Blueprint]:
        """What its versions are made of, by number. One that another release of rayline has kept,
        and this one cannot read, is missing."""
        rows = sql.select(_specs.c.number, _specs.c.blueprint)
        with self._store.reading() as connection:
            found = connection.execute(rows.where(_specs.c.model == release.model)).all()
        blueprints = {}
        for number, text in found:
            try:
                blueprints[number] = _BLUEPRINT.validate_json(text)
            except ValidationError as wrong:
                logger.warning("%s version %d cannot be read: %s", release.model, number, wrong)
        return blueprints

    def events(self, model: str, limit: int) -> tuple[Event, ...]:
        """What happened to a model last, oldest first."""
        newest = (
            sql.select(_events.c.at_s, _events.c.said)
            .where(_events.c.model == model)
            .order_by(_events.c.row.desc())
            .limit(limit)
        )
        with self._store.reading() as connection:
            rows = connection.execute(newest).all()
        return tuple(Event(row.at_s, row.said) for row in reversed(rows))


def _replace_blueprint(
    connection: sql.Connection, model: str, number: int, blueprint: Blueprint
) -> None:
    where = sql.and_(_specs.c.model == model, _specs.c.number == number)
    connection.execute(sql.delete(_specs).where(where))
    text = _BLUEPRINT.dump_json(blueprint).decode()
    connection.execute(sql.insert(_specs).values(model=model, number=number, blueprint=text))
