"""Fixtures that every test may use: a running installation on real components."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client

from activities.ledger.store.ledger import Ledger
from tests.commands import QuickStack
from tests.driving.house import House
from tests.driving.site import NAMES, SharedTemporal, Site, fresh_names, preload_for_all_roles
from workers.local.openbao import OpenBao, start_openbao
from workers.local.process import free_port
from workers.local.stack import CUSTODIANS, KeystoreSetup, Stack

preload_for_all_roles()


@dataclass
class Installation:
    """A running stack with five keystores, all OpenBao Transit keys of one real server."""

    stack: Stack
    bao: OpenBao
    fresh_name: Callable[[], str] = field(default_factory=fresh_names)
    """A MasterKey name that no other test uses."""

    @property
    def folder(self) -> Path:
        """Where everything is."""
        return self.stack.folder

    @property
    def ledger(self) -> Ledger:
        """The orchestrator's ledger, opened by this process."""
        return Ledger(f"sqlite:///{self.folder / 'masterkey.db'}")

    def init(self, name: str, mode: str = "sss", threshold: int = 3, count: int = 5) -> dict[str, Any]:
        """Create a MasterKey with three approvals, pin its KCV, and give back what `init` answered."""
        words = [word for index in range(1, count + 1) for word in ("--keystore", f"bao-{index}")]
        numbers = ["--threshold", str(threshold)] if mode == "sss" else []
        running = self.stack.masterkey("init", name, "--mode", mode, *numbers, *words, "--no-wait")
        self.approve(running["ceremony"], CUSTODIANS[:3])
        return self.finish_init(name, running["ceremony"])

    def finish_init(self, name: str, ceremony: str) -> dict[str, Any]:
        """Wait until an init is done, and pin the KCV."""
        from tests.support import eventually

        def done() -> dict[str, Any] | None:
            found = self.stack.masterkey("ceremony", "show", ceremony)
            assert found["phase"] not in ("refused", "failed", "expired"), found
            return found if found["phase"] == "done" else None

        eventually(done)
        protection = self.stack.masterkey("status", name)["protections"][0]
        self.pinned[name] = protection["kcv"]
        self.stack.pin(self.pinned)
        return {"ceremony": ceremony, **protection}

    pinned: dict[str, str] = field(default_factory=dict)

    def approve(self, ceremony: str, names: tuple[str, ...] | list[str]) -> None:
        """Let custodians approve with the command line."""
        for name in names:
            key = str(self.folder / "keys" / name)
            self.stack.masterkey("approve", ceremony, "--key", key, "--yes")


def transit_keystores(bao: OpenBao, folder: Path, count: int = 5) -> dict[str, KeystoreSetup]:
    """So many keystores, `bao-1` and so on: each a Transit key of one OpenBao, with a token for that key alone."""
    found = {}
    for index in range(1, count + 1):
        key = f"wrap-{index}"
        bao.create_key(key)
        token = bao.write_token(key, folder / f"{key}.token")
        table = {"type": "transit", "address": bao.service.endpoint, "key_name": key, "token_file": str(token)}
        found[f"bao-{index}"] = KeystoreSetup(f"bao-{index}", table, backend="OpenBao")
    return found


def start_installation(folder: Path, count: int = 5, *, one_keystore_process: bool = True) -> Installation:
    """Start a stack whose keystores are Transit keys of one OpenBao."""
    bao = start_openbao(folder / "openbao")
    stack = QuickStack(folder, one_keystore_process=one_keystore_process, metrics_port=free_port())
    stack.services["openbao"] = bao.service
    try:
        stack.keystores.update(transit_keystores(bao, folder, count))
        stack.start_temporal()
        stack.make_keys()
        stack.make_roster(master_keys=NAMES)
        stack.write_configurations()
        stack.upgrade_ledger()
        stack.start_roles()
    except BaseException:
        stack.stop()
        raise
    return Installation(stack, bao)


@pytest.fixture(scope="session")
def temporal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedTemporal]:
    """The one Temporal server, of which every installation takes a namespace."""
    found = SharedTemporal(tmp_path_factory.mktemp("temporal"))
    yield found
    found.stop()


def run_installation(
    folder: Path, temporal: SharedTemporal, count: int = 5, kind: type[Site] = Site, metrics_port: int | None = None
) -> Installation:
    """As `start_installation`, with its roles in this process and a namespace of a server that others use too.

    The SDK serves metrics for as long as the process lives: an orchestrator that is started again can have none.
    """
    bao = start_openbao(folder / "openbao")
    try:
        keystores = transit_keystores(bao, folder, count)
        site = kind.start(folder, temporal, keystores, one_keystore_process=True, metrics_port=metrics_port)
    except BaseException:
        bao.service.stop()
        raise
    site.services["openbao"] = bao.service
    return Installation(site, bao)


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory, temporal: SharedTemporal) -> Iterator[Installation]:
    """One running installation for all tests that do not break it."""
    found = run_installation(tmp_path_factory.mktemp("installation"), temporal, metrics_port=free_port())
    yield found
    found.stack.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(installation: Installation) -> AsyncIterator[Client]:
    """A Temporal client, as whoever controls the orchestrator has one."""
    assert isinstance(installation.stack, Site)
    yield await installation.stack.connect()


@pytest.fixture(scope="session")
def house(installation: Installation, client: Client) -> House:
    """The installation that all tests share: nothing in it may be broken."""
    return House.of(installation.stack, client, installation.fresh_name)
