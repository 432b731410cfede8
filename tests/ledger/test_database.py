from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from activities.ledger.store import database
from activities.ledger.store.database import Database
from activities.ledger.store.ledger import Ledger
from activities.ledger.store.models import CeremonyRow
from tests.ledger.samples import ceremony, sql
from workflows.contracts.trust.errors import ConfigurationInvalid
from workflows.contracts.trust.service_errors import LedgerConflict, LedgerCorrupt


@contextmanager
def locked(url: str) -> Iterator[None]:
    """While another process is in the middle of a write."""
    engine = create_engine(url)
    if url.startswith("sqlite"):
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        statement = "BEGIN IMMEDIATE"
    else:
        statement = "SELECT 1 FROM chain_head FOR UPDATE"
    with engine.connect() as connection:
        connection.exec_driver_sql(statement)
        yield
        if url.startswith("sqlite"):
            connection.exec_driver_sql("ROLLBACK")
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://root:hunter2@localhost/ledger",
        "postgresql+asyncpg://root:hunter2@localhost/ledger",
        "sqlite+aiosqlite:///hunter2.db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:hunter2.db?uri=true",
        "sqlite:///ledger.db?hunter2=1",
        "hunter2",
        "postgresql+psycopg://root:hunter2@localhost:port/ledger",
    ],
)
def test_a_url_that_cannot_be_a_ledger_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        Ledger(url)
    assert "hunter2" not in caught.value.diagnostics


def test_a_database_that_is_down_is_for_the_caller_to_try_again(tmp_path: Path) -> None:
    ledger = Ledger(f"postgresql+psycopg://root:hunter2@/ledger?host={tmp_path}")
    with pytest.raises(OperationalError) as caught:
        ledger.append("c.1", "k", "noted", {})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_not_a_database_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(LedgerCorrupt):
        Ledger(f"sqlite:///{tmp_path}/ledger.db").check()


def test_a_write_waits_for_another_one_and_goes_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_LOCK_MILLISECONDS", 20)
    ledger = Ledger(url)
    written = threading.Thread(target=ledger.append, args=("c.1", "k", "noted", {}))
    with locked(url):
        written.start()
        written.join(0.1)
        assert written.is_alive()
    written.join()
    assert ledger.verify_chain().events == 1


def test_a_write_does_not_wait_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_LOCK_MILLISECONDS", 10)
    monkeypatch.setattr(database, "_ATTEMPTS", 2)
    ledger = Ledger(url)
    with locked(url), pytest.raises(OperationalError):
        ledger.append("c.1", "k", "noted", {"secret": "hunter2"})
    assert ledger.events() == []


def test_a_read_waits_for_nobody(ledger: Ledger, url: str) -> None:
    ledger.append("c.1", "k", "noted", {})
    with locked(url):
        assert ledger.verify_chain().events == 1


def test_no_error_repeats_what_was_to_be_stored(ledger: Ledger, url: str) -> None:
    bad = CeremonyRow(**ceremony(workflow_id="hunter2").model_dump() | {"action": "hunter2"})

    def write(session: Session) -> None:
        session.add(bad)

    with pytest.raises(LedgerConflict) as refused:
        Database(url).write(write)
    assert "ck_ceremonies_action" in refused.value.message
    assert "hunter2" not in str(refused.value)
    assert refused.value.__suppress_context__

    with pytest.raises(DBAPIError, match="nonsense") as unknown:
        Database(url).write(lambda session: session.execute(text("SELECT nonsense WHERE :v = ''"), {"v": "hunter2"}))
    assert "hunter2" not in str(unknown.value)


def test_the_sqlite_file_is_in_wal_mode(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    Ledger(url).upgrade()
    assert sql(url, "PRAGMA journal_mode")[0][0] == "wal"


def test_every_sqlite_connection_is_durable_and_checks_references(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    Ledger(url).upgrade()

    def settings(session: Session) -> list[int]:
        connection = session.connection()
        names = ("foreign_keys", "synchronous", "busy_timeout")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names]

    assert Database(url).read(settings) == [1, 2, 5000]
