"""The database under a gateway: SQLite in one file, or PostgreSQL by its address.

Rooms bring their tables as a Schema; `Store.ensure` makes them on first use. Nothing in here knows
what stands in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from rayline.errors import ServingError, SpecError

SQLITE = "sqlite"
POSTGRESQL = "postgresql"

_BUSY_TIMEOUT_S = 5.0
"""How long SQLite waits for another process that writes."""
_CONNECT_TIMEOUT_S = 3
_STATEMENT_TIMEOUT_MS = 15_000
_LOCK_NUMBER = 0x7261796C
"""Of PostgreSQL's advisory lock under which tables are made: any number that nobody else takes."""

_WRITES = "rayline_writes"
"""Execution option of connections that write."""

_versions = sql.Table(
    "schema_versions",
    sql.MetaData(),
    sql.Column("name", sql.String(64), primary_key=True),
    sql.Column("version", sql.Integer, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one room."""

    name: str
    version: int
    """Changes with every change to the tables."""
    tables: sql.MetaData


class Store:
    """One database, and the way to it for all threads of a process.

    Making one connects nowhere yet.
    """

    def __init__(self, address: str) -> None:
        self.url = parse_address(address)
        self._engine = _engine(self.url)
        self._writer = self._engine.execution_options(**{_WRITES: True})

    def ensure(self, schema: Schema) -> None:
        """Make the tables of `schema` unless they are there; many processes may call it at once.

        Raises ServingError where the store does not answer, SpecError where its tables are those of
        another release.
        """
        with self.writing() as connection:
            self._lock_schema(connection)
            _versions.metadata.create_all(connection)
            where = _versions.c.name == schema.name
            found = connection.scalar(sql.select(_versions.c.version).where(where))
            if found is None:
                schema.tables.create_all(connection)
                row = {"name": schema.name, "version": schema.version}
                connection.execute(sql.insert(_versions).values(row))
        if found not in (None, schema.version):
            raise SpecError(
                "gateway.store",
                f"its tables for {schema.name} are of version {found}, this release reads "
                f"{schema.version}",
                value=self.shown,
                fix="use the release that made them, or another store",
            )

    @contextmanager
    def reading(self) -> Iterator[sql.Connection]:
        """A connection to read from. Raises ServingError where the store does not answer."""
        with self._answering(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sql.Connection]:
        """A transaction: all that is written in it, or nothing. In SQLite one at a time. Raises
        ServingError, caused by what SQLAlchemy raised."""
        with self._answering(), self._writer.begin() as connection:
            yield connection

    def insert_new(self, table: sql.Table) -> sql.Insert:
        """An INSERT that leaves rows alone that are there already (by any unique column)."""
        if self.dialect == POSTGRESQL:
            return postgresql.insert(table).on_conflict_do_nothing()
        return sqlite.insert(table).on_conflict_do_nothing()

    @property
    def file(self) -> Path | None:
        """Where a SQLite store lies."""
        return Path(self.url.database or "") if self.dialect == SQLITE else None

    @property
    def exists(self) -> bool:
        """False where it is a file that nobody has made yet: reading need not make one."""
        return self.file is None or self.file.is_file()

    @property
    def dialect(self) -> str:
        """sqlite or postgresql."""
        return self.url.get_backend_name()

    @property
    def shown(self) -> str:
        """The address as it may be printed."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as wrong:
            raise ServingError(
                "gateway.store",
                f"the database does not answer: {_first_line(wrong)}",
                value=self.shown,
                fix="start it, or check the address",
            ) from wrong

    def _lock_schema(self, connection: sql.Connection) -> None:
        """One process at a time, until the transaction ends, as SQLite has it anyway."""
        if self.dialect == POSTGRESQL:
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_LOCK_NUMBER)))


def parse_address(address: str) -> URL:
    """The address with an absolute path and a driver. Raises SpecError (gateway.store)."""
    try:
        url = make_url(address)
    except ArgumentError:
        raise _unknown() from None
    kind = url.get_backend_name()
    if kind == SQLITE and url.database and url.database != ":memory:":
        return url.set(drivername=SQLITE, database=str(Path(url.database).absolute()))
    if kind == POSTGRESQL:
        return url.set(drivername="postgresql+psycopg")
    # The error may end in a log.
    raise _unknown(url.render_as_string(hide_password=True))


def anchored(address: str) -> str:
    """The same store, whatever folder a process stands in. Called by whoever hands a GatewaySpec to
    another process."""
    return parse_address(address).render_as_string(hide_password=False)


def _unknown(shown: str = "what is no address at all") -> SpecError:
    return SpecError(
        "gateway.store",
        f"keys and usage cannot be kept in {shown}",
        allowed="sqlite:///FILE, postgresql://USER@HOST/NAME",
    )


def _engine(url: URL) -> sql.Engine:
    # Parameters of a failed statement would stand in its error: digests, names.
    options: dict[str, Any] = {"hide_parameters": True}
    if url.get_backend_name() == POSTGRESQL:
        return sql.create_engine(
            url,
            # A connection that died while nobody used it is replaced without an error.
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": _CONNECT_TIMEOUT_S,
                "options": f"-c statement_timeout={_STATEMENT_TIMEOUT_MS}",
            },
            **options,
        )
    file = Path(url.database or "")
    engine = sql.create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S}, **options)
    sql.event.listen(engine, "do_connect", lambda *_: _own_file(file))
    sql.event.listen(engine, "connect", _prepare_sqlite)
    sql.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    """Readers beside one writer, and no fsync a transaction: of a power cut, not of a crash, the
    last moments may be lost."""
    # Python's driver begins a transaction before some statements only; _begin_sqlite always does.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: sql.Connection) -> None:
    """One that will write takes the lock first: two that read and then write would each fail
    because of the other."""
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _own_file(file: Path) -> None:
    """Make the file before SQLite does: nobody else reads who asks what."""
    file.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))


def _first_line(wrong: BaseException) -> str:
    """What an error says, in one line; SQLAlchemy adds a link and the statement below."""
    text = str(wrong).strip().splitlines()
    return (text[0] if text else type(wrong).__name__)[:300]
