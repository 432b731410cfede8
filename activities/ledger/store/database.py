"""The connection to SQLite or PostgreSQL: one transaction for one unit of work.

Writers run one after the other: SQLite by `BEGIN IMMEDIATE`, PostgreSQL by a lock on the row of the chain's
head. The ledger sees a few writes for each ceremony, so this costs nothing, and what a unit of work has
read stays true until it commits. Readers see one snapshot and wait for nobody.

A refused write comes out as one of our errors. A lost connection comes out as SQLAlchemy's
`OperationalError`, for the caller to try again; parameters are never in its text.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from activities.ledger.store.models import ChainHeadRow
from workflows.contracts.trust.canonical import seconds
from workflows.contracts.trust.errors import ConfigurationInvalid
from workflows.contracts.trust.service_errors import LedgerConflict, LedgerCorrupt

T = TypeVar("T")

UPGRADE = "run `masterkey ledger upgrade`"
_ATTEMPTS = 5
_LOCK_MILLISECONDS = 5000
_CONNECT_SECONDS = 10
_SQLITE_BUSY, _SQLITE_LOCKED, _SQLITE_CORRUPT, _SQLITE_NOT_A_DATABASE = 5, 6, 11, 26
_POSTGRES_RETRY = {"40001", "40P01", "55P03"}  # serialization failure, deadlock, lock not available
_POSTGRES_NO_TABLE = "42P01"


class WriteSession(Session):
    """The session of a write transaction, which no other writer shares.

    Attributes:
        now: the time of whatever it writes, in UTC and whole seconds.
    """

    now: datetime


def _now() -> datetime:
    return seconds(datetime.now(UTC))


class Database:
    """An engine, and how its transactions begin. Thread-safe; not to be carried across a fork."""

    def __init__(self, url: str, *, clock: Callable[[], datetime] = _now) -> None:
        """Prepare the engine; connects to nothing yet.

        Args:
            url: `sqlite:///FILE` or `postgresql+psycopg://...`.
            clock: the time in UTC, whole seconds; for tests.

        Raises:
            ConfigurationInvalid: another kind of database, or not a URL at all.
        """
        parsed = _parse(url)
        self.clock = clock
        self.file: Path | None = None
        if parsed.get_backend_name() == "sqlite":
            self.file = Path(str(parsed.database)).absolute()
            self._reader = _sqlite_engine(self.file)
            self._writer = self._reader.execution_options(begin="IMMEDIATE")
        else:
            self._reader = create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                hide_parameters=True,
                pool_pre_ping=True,
                isolation_level="REPEATABLE READ",
                connect_args={"connect_timeout": _CONNECT_SECONDS},
            )
            self._writer = self._reader.execution_options(isolation_level="READ COMMITTED")

    def read(self, work: Callable[[Session], T]) -> T:
        """Run `work` on one snapshot of the ledger, and return what it returns."""

        def transaction() -> T:
            with Session(self._reader) as session, session.begin():
                return work(session)

        return self._bounded(transaction)

    def write(self, work: Callable[[WriteSession], T]) -> T:
        """Run `work` in one transaction, alone; it may run again, so it has no other effects."""

        def transaction() -> T:
            with WriteSession(self._writer) as session, session.begin():
                if self.file is None:
                    session.execute(text(f"SET LOCAL lock_timeout = {_LOCK_MILLISECONDS}"))
                if session.get(ChainHeadRow, 1, with_for_update=True) is None:
                    raise LedgerCorrupt("the head of the ledger's hash chain is gone")
                session.now = self.clock()
                return work(session)

        return self._bounded(transaction)

    def define(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which migrates the schema, in one transaction, alone."""

        def transaction() -> T:
            with self._writer.begin() as connection:
                if self.file is None:
                    # There may be no table yet that could be locked.
                    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('masterkey', 0))"))
                return work(connection)

        return self._bounded(transaction)

    def close(self) -> None:
        """Close the idle connections."""
        self._reader.dispose()

    def _bounded(self, transaction: Callable[[], T]) -> T:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return transaction()
            except DBAPIError as error:
                if attempt == _ATTEMPTS or not _passes_by_itself(error):
                    raise self._ours(error) from None
            time.sleep(0.02 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _ours(self, error: DBAPIError) -> Exception:
        """One of our errors, or the error itself; never with a value that was to be stored."""
        native = error.orig
        if isinstance(error, IntegrityError):
            # Neither text has values in it; those of PostgreSQL are in DETAIL, which is left out.
            reason = native.diag.message_primary if isinstance(native, psycopg.Error) else native
            return LedgerConflict(f"the ledger refuses the write: {reason}")
        if isinstance(error, DataError):
            return LedgerConflict("the ledger cannot hold a value of this kind or size")
        if isinstance(native, sqlite3.Error):
            if self.file is not None and not self.file.exists():
                return ConfigurationInvalid(f"there is no ledger at {self.file}", next_step=UPGRADE)
            code = getattr(native, "sqlite_errorcode", 0) & 0xFF
            if code in {_SQLITE_CORRUPT, _SQLITE_NOT_A_DATABASE}:
                return LedgerCorrupt(f"{self.file} is damaged, or is not a SQLite database")
            missing = str(native).startswith("no such table")
        else:
            missing = getattr(native, "sqlstate", None) == _POSTGRES_NO_TABLE
        if missing:
            return ConfigurationInvalid("the ledger's tables are missing", next_step=UPGRADE)
        return error


def _parse(url: str) -> URL:
    problem = ""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # its text may quote the URL, and with it a password
        raise ConfigurationInvalid("the ledger's url is not a database URL") from None
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg"}:
        problem = f"the ledger cannot be a {parsed.drivername} database"
    elif parsed.get_backend_name() == "sqlite":
        if parsed.database in {None, "", ":memory:"}:
            problem = "a ledger in memory would be gone with the process"
        elif parsed.query or str(parsed.database).startswith("file:"):
            problem = "the ledger's sqlite url takes a file and nothing else"
    if problem:
        raise ConfigurationInvalid(problem, next_step="set ledger.url to sqlite:///FILE or postgresql+psycopg://...")
    return parsed


def _sqlite_engine(file: Path) -> Engine:
    # mode=rw: only an upgrade makes the file; a wrong path is an error, not an empty ledger.
    engine = create_engine(
        URL.create("sqlite", database=f"file:{quote(str(file))}", query={"mode": "rw", "uri": "true"}),
        hide_parameters=True,
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    # The driver's own BEGIN would come late and be deferred: two readers that both go on to write.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {_LOCK_MILLISECONDS}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}")


def _passes_by_itself(error: DBAPIError) -> bool:
    if not isinstance(error, OperationalError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in {_SQLITE_BUSY, _SQLITE_LOCKED}
    return getattr(error.orig, "sqlstate", None) in _POSTGRES_RETRY
