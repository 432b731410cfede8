"""The worker roles: orchestrator, strongroom and keystore. Each is a process of its own with its own secrets.

Every role checks its configuration before it connects, says so when it is ready, and shuts down gracefully
on SIGTERM or SIGINT: running activities get ten seconds.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio import workflow
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client
from temporalio.worker import Worker

from activities.identity import check_private
from activities.keystores.activities import TARGET as KEYSTORE_TARGET
from activities.keystores.activities import KeystoreActivities
from activities.keystores.kinds import preload
from activities.oneshot.process import Pool
from activities.roster import HostTerms
from activities.strongroom.activities import TARGET as STRONGROOM_TARGET
from activities.strongroom.activities import StrongroomActivities
from workers import builds
from workers.builds import NEW_BUILDS, Promotion
from workers.client import running, upkeep
from workers.config import Configuration
from workers.connection import connect
from workers.runner import StrictRunner
from workflows.catalogue import EVERYTHING, sandbox
from workflows.contracts import names
from workflows.contracts.trust.errors import ConfigurationInvalid
from workflows.contracts.trust.signatures import fingerprint

READY = "masterkey worker is ready:"
Connecting = Callable[[], Awaitable[Client]]
"""Connects to Temporal."""
_GRACE = timedelta(seconds=10)
_THROTTLE = timedelta(milliseconds=500)
_SPARES = 1
_SLOTS, _SESSION_SLOTS = 64, 2000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Role:
    """The workers of a role, not yet running.

    Attributes:
        name: for people.
        workers: the role is ready when all of them run.
        begun: what is then done once.
    """

    name: str
    workers: Sequence[Worker]
    begun: Callable[[], Awaitable[None]] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the workers for as long as the block lasts."""
        async with AsyncExitStack() as stack:
            for worker in self.workers:
                await stack.enter_async_context(worker)
            if self.begun is not None:
                await self.begun()
            yield


async def run_orchestrator(configuration: Configuration, how: Promotion = NEW_BUILDS) -> None:
    """Workflows and the ledger. Has the database, and no credentials of any keystore.

    Args:
        configuration: with [ledger].
        how: whether this build becomes the one on which new ceremonies begin.
    """
    async with orchestrator(configuration, _connecting(configuration), how) as role:
        await _run_until_signalled(role)


async def run_strongroom(configuration: Configuration) -> None:
    """Sessions. Has its identity key (read only by each session), no database and no keystore credentials."""
    async with strongroom(configuration, _connecting(configuration)) as role:
        await _run_until_signalled(role)


async def run_keystores(configuration: Configuration, keystores: Sequence[str]) -> None:
    """One or more keystores. Has their credentials and identities, and no database."""
    async with keystore(configuration, keystores, _connecting(configuration)) as role:
        await _run_until_signalled(role)


@asynccontextmanager
async def orchestrator(
    configuration: Configuration, connecting: Connecting, how: Promotion = NEW_BUILDS
) -> AsyncIterator[Role]:
    """The orchestrator; its configuration is checked before it connects."""
    # Here and not above: the other roles have no database, and need no library for one.
    from activities.ledger.activities import LedgerActivities
    from activities.ledger.store.ledger import Ledger

    roster = configuration.roster_source()
    roster.load()
    ledger = Ledger(configuration.ledger_url())
    ledger.check()
    client = await connecting()
    await _check_search_attributes(client)
    before = await builds.known_builds(client) if how.versioned else await builds.check_unversioned(client)
    await upkeep.schedule_collector(client)
    with ThreadPoolExecutor(max_workers=8, thread_name_prefix="ledger") as threads:
        activities = LedgerActivities(ledger, roster, configuration.bundle_places(), running.ended(client))
        worker = orchestrator_worker(client, activities.all(), threads, versioned=how.versioned)
        yield Role("orchestrator", [worker], lambda: _release(client, how, before))


def orchestrator_worker(
    client: Client, activities: Sequence[Callable[..., Any]], threads: ThreadPoolExecutor, *, versioned: bool = True
) -> Worker:
    """The worker that runs all workflows, and the ledger's activities.

    Without versioning a ceremony whose code has changed meanwhile fails, which the client says in one line; with it
    that happens to no ceremony, because each stays on its build.
    """
    return Worker(
        client,
        task_queue=names.ORCHESTRATOR_QUEUE,
        workflows=EVERYTHING,
        activities=activities,
        activity_executor=threads,
        workflow_runner=StrictRunner(sandbox(), versioned=versioned),
        workflow_failure_exception_types=[] if versioned else [workflow.NondeterminismError],
        deployment_config=builds.worker_config(versioned=versioned),
        graceful_shutdown_timeout=_GRACE,
    )


async def _release(client: Client, how: Promotion, before: Sequence[builds.Build]) -> None:
    if how.versioned:
        _log.info("%s", await builds.release(client, how, before))
    else:
        for line in await running.end_incompatible(client):
            _log.warning("%s", line)
        _log.info("build %s runs without worker versioning", builds.build_id())


@asynccontextmanager
async def strongroom(configuration: Configuration, connecting: Connecting) -> AsyncIterator[Role]:
    """A strongroom; its configuration is checked before it connects."""
    source, path = configuration.roster_source(), configuration.path(configuration.need_strongroom().identity)
    public_key = _public_key_of(configuration, path, "[strongroom]")
    entry = source.load().current.strongroom(fingerprint(public_key))
    if entry is None:
        raise ConfigurationInvalid(
            f"{configuration.source}: the identity {path} is no strongroom's in the roster",
            next_step="see `masterkey roster show`",
        )
    client, private = await connecting(), f"{names.strongroom_queue(entry.name)}-{secrets.token_hex(8)}"
    pool = Pool(STRONGROOM_TARGET, ("activities.strongroom.session",), spares=_SPARES)
    host = HostTerms(
        identity=str(path),
        roster_file=str(source.file),
        roster_genesis=source.genesis,
        roster_minimum=source.minimum,
        software=builds.software(),
    )
    activities = StrongroomActivities(pool, private, host)
    try:
        await pool.start()
        workers = [
            _activity_worker(client, names.strongroom_queue(entry.name), activities.shared()),
            # Every open session occupies a slot while it is held: were they to run out, none could be used.
            _activity_worker(client, private, activities.private(), slots=_SESSION_SLOTS),
        ]
        yield Role(f"strongroom {entry.name}", workers)
    finally:
        await pool.close()


@asynccontextmanager
async def keystore(
    configuration: Configuration, keystores: Sequence[str], connecting: Connecting
) -> AsyncIterator[Role]:
    """One or more keystores; their configuration is checked before they connect."""
    chain = configuration.roster_source().load()
    all_terms = [configuration.keystore_terms(name) for name in keystores]
    for terms in all_terms:
        public_key = _public_key_of(configuration, Path(terms.identity), f"[keystores.{terms.name}]")
        entry = chain.current.keystore(terms.name)
        if entry is None or entry.fingerprint != fingerprint(public_key):
            raise ConfigurationInvalid(
                f"{configuration.source}: [keystores.{terms.name}]: the identity {terms.identity} is not the one "
                f"that the roster gives {terms.name}",
                next_step="see `masterkey roster show`",
            )
    client = await connecting()
    os.environ[preload.VARIABLE] = json.dumps({terms.name: terms.settings for terms in all_terms})
    pool = Pool(KEYSTORE_TARGET, (preload.__name__,), spares=_SPARES)
    try:
        await pool.start()
        workers = [
            _activity_worker(client, names.keystore_queue(terms.name), KeystoreActivities(pool, terms).all())
            for terms in all_terms
        ]
        yield Role(f"keystore {' '.join(keystores)}", workers)
    finally:
        await pool.close()


def _connecting(configuration: Configuration) -> Connecting:
    listen = configuration.metrics.listen if configuration.metrics else None
    return functools.partial(connect, listen)


def _activity_worker(client: Client, queue: str, activities: Sequence[object], *, slots: int = _SLOTS) -> Worker:
    return Worker(
        client,
        task_queue=queue,
        activities=activities,  # type: ignore[arg-type]
        graceful_shutdown_timeout=_GRACE,
        max_heartbeat_throttle_interval=_THROTTLE,
        default_heartbeat_throttle_interval=_THROTTLE,
        max_concurrent_activities=slots,
    )


async def _run_until_signalled(role: Role) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with role.running():
        _log.info("%s %s", READY, role.name)
        await stop.wait()
        _log.info("shutting down: %s", role.name)


def _public_key_of(configuration: Configuration, identity: Path, section: str) -> str:
    # The private key is read only in one-shot processes; a worker looks at its public half and its mode.
    public = identity.with_name(identity.name + ".pub")
    for path in (identity, public):
        if not path.is_file():
            raise ConfigurationInvalid(
                f"{configuration.source}: {section}: identity: {path} does not exist",
                next_step="make a key with: ssh-keygen -t ed25519 -N '' -f FILE",
            )
    try:
        check_private(identity)
    except ConfigurationInvalid as error:
        raise ConfigurationInvalid(
            f"{configuration.source}: {section}: identity: {error.message}", next_step=error.next_step
        ) from None
    try:
        return " ".join(public.read_text(encoding="utf-8").split()[:2])
    except (OSError, UnicodeDecodeError):
        raise ConfigurationInvalid(f"{configuration.source}: {section}: cannot read {public}") from None


async def _check_search_attributes(client: Client) -> None:
    # Upserting an attribute that is not registered hangs the workflow, so it is refused here.
    request = ListSearchAttributesRequest(namespace=client.namespace)
    known = (await client.operator_service.list_search_attributes(request)).custom_attributes
    keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
    missing = [key.name for key in names.SEARCH_ATTRIBUTES if known.get(key.name) != keyword]
    if missing:
        commands = " ".join(f"--name {name} --type Keyword" for name in missing)
        raise ConfigurationInvalid(
            f"Temporal namespace {client.namespace} lacks the search attributes {', '.join(missing)}",
            next_step=f"run: temporal operator search-attribute create {commands}",
        )
