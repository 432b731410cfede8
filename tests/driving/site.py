"""An installation whose worker roles run in this process, in a namespace of a Temporal server that all share.

The roles are the product's own (`workers.roles`), with their sandbox, activities, ledger and one-shot processes; only
that each is a task of one loop, in a thread of its own, instead of a process: so tests that block do not hold them up.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from temporalio.client import Client
from temporalio.plugin import SimplePlugin
from temporalio.runtime import PrometheusConfig, Runtime, TelemetryConfig
from temporalio.worker import Interceptor, WorkerConfig

from activities.keystores.kinds import preload
from activities.ledger.store.ledger import Ledger
from tests.commands import QuickStack
from workers import roles
from workers.config import Configuration
from workers.connection import DATA_CONVERTER
from workers.local.process import Service, launch_service, wait_until_ready
from workers.local.stack import CUSTODIANS, KeystoreSetup
from workers.local.temporal import start_temporal
from workflows.contracts.trust.canonical import seconds
from workflows.contracts.trust.chain import RosterFile, RosterVersion
from workflows.contracts.trust.roster import (
    ChangeQuorum,
    Custodian,
    Governance,
    KeystoreWorker,
    Recipient,
    Roster,
    Strongroom,
)

NAMES = tuple(f"mk-{number}" for number in range(1500))
"""MasterKeys that the recipient is enrolled for; each test takes fresh ones."""
_NAMESPACES = 40
_HERE = Path(__file__).parents[2]
_PRELOADED = (
    "activities.oneshot.child",
    "activities.keystores.datakey",
    "activities.keystores.kinds.preload",
    "activities.keystores.kinds.transit",
    "activities.strongroom.session",
)


def preload_for_all_roles() -> None:
    """Let the one fork server of this process import what several have imported in production.

    `multiprocessing` has one fork server for a process, and what it preloads is whatever was asked for last; a test
    that has its fork server killed would leave the next one without what the roles need.
    """
    asked = list(_PRELOADED)
    ask = forkserver.set_forkserver_preload

    def also(modules: list[str]) -> None:
        asked.extend(module for module in modules if module not in asked)
        ask(list(asked))

    vars(forkserver)["set_forkserver_preload"] = also


def fresh_names() -> Callable[[], str]:
    """Whoever calls it gets the next name of a MasterKey that the recipient is enrolled for."""
    names = iter(NAMES)

    def take() -> str:
        # Not StopIteration: a coroutine that raises it says nothing of use.
        name = next(names, None)
        assert name is not None, f"the tests need more than {len(NAMES)} MasterKeys: raise NAMES"
        return name

    return take


class SharedTemporal:
    """A Temporal development server with namespaces, of which each site takes one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._namespaces = [f"site-{number}" for number in range(_NAMESPACES)]
        self._free = iter(self._namespaces)
        self.service = self._start(None)

    def take(self) -> str:
        """A namespace that nobody has used."""
        found = next(self._free, None)
        assert found is not None, "the tests need more namespaces: raise _NAMESPACES"
        return found

    def stop(self) -> None:
        """Stop the server."""
        self.service.stop()

    def kill(self) -> None:
        """SIGKILL the server; for a test that has one of its own."""
        self.service.kill()

    def start_again(self) -> None:
        """Start it on the same database and port."""
        self.service = self._start(int(self.service.endpoint.rpartition(":")[2]))

    def _start(self, port: int | None) -> Service:
        return start_temporal(self._folder, port=port, namespaces=self._namespaces)


@dataclass(frozen=True)
class Inside:
    """A worker role that runs in this process."""

    over: asyncio.Event
    ended: Future[None]
    loop: asyncio.AbstractEventLoop

    def stop(self) -> None:
        """End its workers; what they were doing is given up, and not answered."""
        self.loop.call_soon_threadsafe(self.over.set)
        self.ended.result(30)

    kill = stop


class _AsTheSiteWants(SimplePlugin):
    """Sees to it that the product's workers have the site's interceptors, and end at once when they shall."""

    def __init__(self, interceptors: Sequence[Interceptor], cached_workflows: int | None) -> None:
        super().__init__("site")
        self._interceptors = list(interceptors)
        self._cached = cached_workflows

    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        config["interceptors"] = [*config.get("interceptors", ()), *self._interceptors]
        config["graceful_shutdown_timeout"] = timedelta()
        if self._cached is not None:
            config["max_cached_workflows"] = self._cached
        return config


@dataclass
class Site(QuickStack):
    """A running installation.

    Attributes:
        namespace: where its ceremonies are, on the shared server.
        apart: roles that are processes of their own, so that they can be killed.
        commands: what starts a role that is apart, if not the installed command: another build, say.
        interceptors: around the activities of the roles in this process.
        ledger_url: of the orchestrator's database, if not a file in the folder.
        cached_workflows: how many workflows stay in memory; with 0 each task replays its workflow's whole history.
    """

    namespace: str = "default"
    apart: Collection[str] = ()
    commands: dict[str, Sequence[str]] = field(default_factory=dict)
    interceptors: Sequence[Interceptor] = ()
    ledger_url: str = ""
    cached_workflows: int | None = None
    inside: dict[str, Inside] = field(default_factory=dict)
    server: SharedTemporal | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def start(cls, folder: Path, server: SharedTemporal, keystores: Mapping[str, KeystoreSetup], **more: Any) -> Site:
        """Make everybody's keys and the roster, and start all roles.

        Args:
            folder: of its own.
            server: where it gets a namespace.
            keystores: by name, see `transit_keystores`.
            more: other attributes.
        """
        site = cls(folder, dict(keystores), server=server, namespace=server.take(), **more)
        try:
            site.temporal = server.service
            site.make_keys()
            site.make_roster(master_keys=NAMES)
            site.write_configurations()
            site.upgrade_ledger()
            site.start_roles()
        except BaseException:
            site.stop()
            raise
        return site

    # --- setting up, without a process for each step ---------------------------------------------------------

    def make_roster(self, *, quorum: int = 3, master_keys: Sequence[str] = NAMES) -> None:
        """Make the first roster version."""

        def public(name: str) -> str:
            return " ".join((self.folder / "keys" / f"{name}.pub").read_text(encoding="utf-8").split()[:2])

        roster = Roster(
            number=1,
            previous=None,
            issued=seconds(datetime.now(UTC)),
            custodians=tuple(Custodian(name=name, public_key=public(name)) for name in CUSTODIANS),
            recipients=(Recipient(name="crypto", public_key=public("recipient"), master_keys=tuple(master_keys)),),
            keystores=tuple(
                KeystoreWorker(name=name, public_key=public(name), custodians=(custodian,))
                for name, custodian in zip(self.keystores, itertools.cycle(CUSTODIANS), strict=False)
            ),
            strongrooms=(Strongroom(name="vault", public_key=public("strongroom")),),
            governance=(Governance(master_key="*", custodians=CUSTODIANS, quorum=quorum, minimum_threshold=2),),
            change=ChangeQuorum(custodians=CUSTODIANS, quorum=quorum),
        )
        first = RosterVersion(document=roster.canonical().decode())
        (self.folder / "roster.json").write_text(
            RosterFile(versions=(first,)).model_dump_json(indent=1) + "\n", encoding="utf-8"
        )
        self.genesis = roster.digest

    def write_configurations(self) -> None:
        """One file for each role."""
        super().write_configurations()
        if self.ledger_url:
            self.write_configuration("orchestrator", {"ledger": {"url": self.ledger_url}})

    def upgrade_ledger(self) -> None:
        """Create the ledger."""
        Ledger(Configuration.load(self.folder / "orchestrator.toml").ledger_url()).upgrade()

    # --- running -----------------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Where Temporal is, for commands and roles that are processes of their own."""
        return {**super().environment(), "TEMPORAL_NAMESPACE": self.namespace}

    async def connect(self, *plugins: SimplePlugin, metrics: str | None = None) -> Client:
        """A client, as everybody has one who may use Temporal; it serves metrics on HOST:PORT if that is given."""
        assert self.temporal is not None
        serving = TelemetryConfig(metrics=PrometheusConfig(bind_address=metrics)) if metrics else None
        return await Client.connect(
            self.temporal.endpoint,
            namespace=self.namespace,
            data_converter=DATA_CONVERTER,
            plugins=list(plugins),
            runtime=Runtime(telemetry=serving) if serving else None,
        )

    def start_roles(self) -> None:
        """Start all workers."""
        self.start_again(*self.roles())

    def start_role(self, role: str) -> None:
        """Start one."""
        self.start_again(role)

    def start_again(self, *some: str) -> None:
        """Start workers; those in this process all at once."""
        waits = [self._launch(role) for role in some]
        for wait in waits:
            wait()

    def kill(self, *some: str) -> None:
        """End workers at once: with SIGKILL those that are apart."""
        for role in some:
            (self.services[role] if role in self.apart else self.inside.pop(role)).kill()

    def stop(self) -> None:
        """Stop everything but the server that all share."""
        self.temporal = None
        for role in list(self.inside):
            self.inside.pop(role).stop()
        super().stop()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _launch(self, role: str) -> Callable[[], None]:
        return self._launch_apart(role) if role in self.apart else self._launch_inside(role)

    def _launch_apart(self, role: str) -> Callable[[], None]:
        if role not in self.commands:
            return super()._launch(role)
        log = self.folder / "logs" / f"{role}.log"
        start = log.stat().st_size if log.exists() else 0
        service = self.services[role] = launch_service(
            role, list(self.commands[role]), log=log, env=self.environment(), cwd=_HERE
        )
        return lambda: wait_until_ready(service, lambda: roles.READY.encode() in log.read_bytes()[start:])

    def _launch_inside(self, role: str) -> Callable[[], None]:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name=f"site {self.namespace}", daemon=True).start()
        loop, ready = self._loop, Future[None]()

        async def begin() -> asyncio.Event:
            return asyncio.Event()

        over = asyncio.run_coroutine_threadsafe(begin(), loop).result()
        ended = asyncio.run_coroutine_threadsafe(self._serve(role, ready, over), loop)
        self.inside[role] = Inside(over, ended, loop)

        def wait() -> None:
            while not ready.done():
                if ended.done():
                    ended.result()
                threading.Event().wait(0.01)

        return wait

    async def _serve(self, role: str, ready: Future[None], over: asyncio.Event) -> None:
        path = self.folder / f"{role}.toml"
        configuration = Configuration.load(path)

        async def connecting() -> Client:
            listen = configuration.metrics.listen if configuration.metrics else None
            return await self.connect(_AsTheSiteWants(self.interceptors, self.cached_workflows), metrics=listen)

        if role == "orchestrator":
            entered = roles.orchestrator(configuration, connecting)
        elif role == "strongroom":
            entered = roles.strongroom(configuration, connecting)
        else:
            served = list(self.keystores) if role == "keystores" else [role.removeprefix("keystore-")]
            entered = roles.keystore(configuration, served, connecting)
        async with entered as started, started.running():
            os.environ.pop(preload.VARIABLE, None)
            ready.set_result(None)
            await over.wait()
