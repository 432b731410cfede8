"""What a one-shot process costs: time beside the same work without a process, and private memory at its end.

A session is timed from the request to open it to its answer, less the time in which keystores work; a
keystore's call as a whole, with the real keystore. *Warm* takes a spare that waits, *cold* starts a process.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from activities.keystores import datakey
from activities.keystores.context import KeystoreTerms
from activities.keystores.kinds import preload
from activities.oneshot.child import Channel
from activities.oneshot.process import OneShot, Pool
from activities.oneshot.requests import Asked
from activities.strongroom import session
from activities.strongroom.session import SessionTerms
from tests.bench import targets
from tests.bench.measure import Collected, Row, Series, milliseconds_since, take_turns_async
from tests.bench.unseals import Unseals
from workers.config import Configuration
from workflows.contracts.messages.keystore import UnwrapDataKey
from workflows.contracts.messages.protection import DekAnswer, StoredProtection, StoredShard
from workflows.contracts.messages.strongroom import Release
from workflows.contracts.trust.canonical import Message, Signed, seconds
from workflows.contracts.trust.plan import Plan, PlanRecipient, RecipientRequest, Source
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.quorum import Authority

KEYSTORE = "bao-1"
MEBI = 1024 * 1024
_PAUSE = 0.8


class Direct(Channel):
    """A channel without a process: what is received lies ready, what is sent is kept."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.sent: list[bytes] = []

    def receive(self) -> bytes:
        """The next frame."""
        return self.frames.pop(0)

    def send(self, data: bytes) -> None:
        """Keep an answer."""
        self.sent.append(data)


@dataclass
class Material:
    """An authorised release of a `seal` protection, as the workflow shows it to a keystore and a session."""

    terms: SessionTerms
    authority: Authority
    stored: StoredProtection
    keystore: KeystoreTerms

    @classmethod
    def make(cls, unseals: Unseals, name: str) -> Material:
        """Sign a request for this MasterKey, and plan its release."""
        folder = unseals.installation.folder
        record = unseals.installation.ledger.protection(name)
        signed = Signed(document=record.manifest, signature=record.signature)
        manifest, asked = Manifest.parse(record.manifest.encode()), unseals.request(name)
        request = RecipientRequest.parse(asked.request.document.encode())
        source = Configuration.load(folder / "strongroom.toml").roster_source()
        now = seconds(datetime.now(UTC))
        plan = Plan(
            action="unseal",
            master_key=name,
            ceremony=asked.ceremony,
            governance_quorum=3,
            source=Source(
                manifest=signed.digest,
                epoch=manifest.epoch,
                mode=manifest.mode,
                threshold=manifest.threshold,
                count=manifest.count,
            ),
            target=None,
            recipient=PlanRecipient(name="crypto", fingerprint=request.recipient, hpke_key=request.hpke_key),
            strongroom=manifest.strongroom,
            roster=source.load().digest,
            created=now,
            expires=now + timedelta(minutes=4),
        )
        terms = SessionTerms(
            identity=str(folder / "keys" / "strongroom"),
            roster_file=str(source.file),
            roster_genesis=source.genesis,
            roster_minimum=source.minimum,
            purpose="release",
            plan=plan.canonical().decode(),
            attempt=1,
            session=secrets.token_hex(16),
        )
        rows = tuple(StoredShard.model_validate(row.model_dump()) for row in record.shards)
        authority = Authority(plan=terms.plan, request=asked.request)
        keystore = Configuration.load(folder / f"keystore-{KEYSTORE}.toml").keystore_terms(KEYSTORE)
        return cls(terms, authority, StoredProtection(manifest=signed, shards=rows), keystore)

    def unwrap(self, announcement: Signed) -> bytes:
        """The call of the keystore."""
        request = UnwrapDataKey(
            keystore=KEYSTORE,
            index=1,
            authority=self.authority,
            session=announcement,
            manifest=self.stored.manifest,
            wrapped_dek=self.stored.shards[0].wrapped_dek,
        )
        return _frame(datakey.KeystoreCall.of(request, terms=self.keystore))

    def release(self, answer: bytes) -> bytes:
        """The work of the session."""
        deks = (DekAnswer.model_validate_json(answer),)
        work = Release(session=self.terms.session, authority=self.authority, protection=self.stored, deks=deks)
        return _frame(Asked.of(work))


def _frame(message: Message) -> bytes:
    return message.model_dump_json().encode()


@dataclass
class Bench:
    """Runs releases with and without processes, and collects times and memory by name."""

    unseals: Unseals
    name: str
    pools: dict[str, tuple[Pool, Pool]]
    found: Collected = field(default_factory=Collected)

    async def with_processes(self, kind: str) -> float:
        """One release through a session's process and a keystore's process."""
        material = Material.make(self.unseals, self.name)
        sessions, keystores = self.pools[kind]
        await asyncio.sleep(_PAUSE)
        start = time.perf_counter()
        held = await sessions.take()
        announcement = Signed.model_validate_json(await held.call(_frame(material.terms)))
        opening = milliseconds_since(start)
        await asyncio.sleep(_PAUSE)
        call, start = material.unwrap(announcement), time.perf_counter()
        asked = await keystores.take()
        answer = await asked.call(call)
        self.found.add(f"{kind} keystore", milliseconds_since(start))
        await self._end(keystores, asked, "keystore memory")
        await asyncio.sleep(_PAUSE)
        work, start = material.release(answer), time.perf_counter()
        await held.call(work)
        self.found.add(f"{kind} session", opening + milliseconds_since(start))
        await self._end(sessions, held, "session memory")
        return 0.0

    async def _end(self, pool: Pool, process: OneShot, name: str) -> None:
        self.found.add(name, int(await process.answer()) / MEBI)
        pool.release(process)

    async def directly(self) -> float:
        """The same release without a process."""
        material, here, there = Material.make(self.unseals, self.name), Direct(), Direct()
        here.frames.append(_frame(material.terms))

        before, start = 0.0, time.perf_counter()

        # The session asks for its work once it is announced: the keystore is called in between, off the clock.
        def work() -> bytes:
            nonlocal start, before
            before = milliseconds_since(start)
            there.frames.append(material.unwrap(Signed.model_validate_json(here.sent[0])))
            begun = time.perf_counter()
            datakey.serve(there)
            self.found.add("direct keystore", milliseconds_since(begun))
            answer = material.release(there.sent[0])
            start = time.perf_counter()
            return answer

        receive = here.receive
        here.receive = lambda: receive() if here.frames else work()  # type: ignore[method-assign]
        start = time.perf_counter()
        try:
            session.serve(here)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.found.add("direct session", before + milliseconds_since(start))
        return 0.0


async def measure(unseals: Unseals, name: str, rounds: int) -> list[Row]:
    """Time and memory of both kinds of process.

    Args:
        unseals: gives access to the installation.
        name: a MasterKey in `seal` mode.
        rounds: how often.
    """
    terms = Material.make(unseals, name).keystore
    os.environ[preload.VARIABLE] = json.dumps({terms.name: terms.settings})
    modules = (preload.__name__, targets.__name__)
    pools = {
        kind: (Pool(targets.SESSION, modules, spares), Pool(targets.KEYSTORE, modules, spares))
        for kind, spares in (("cold", 0), ("warm", 1))
    }
    for pair in pools.values():
        for pool in pair:
            await pool.start()
    bench = Bench(unseals, name, pools)
    turns: dict[str, Callable[[], Awaitable[float]]] = {
        "direct": bench.directly,
        "warm": lambda: bench.with_processes("warm"),
        "cold": lambda: bench.with_processes("cold"),
    }
    await take_turns_async(turns, rounds)
    for pair in pools.values():
        for pool in pair:
            await pool.close()
    found, python = bench.found, _bare_memory()
    rows = [
        Row(
            "one-shot process",
            f"{what}, {kind}",
            "ms",
            found[f"{kind} {what}"],
            found[f"direct {what}"],
            "same work, no process",
        )
        for what in ("session", "keystore")
        for kind in ("warm", "cold")
    ]
    return rows + [
        Row("one-shot process", f"{what}, private memory", "MiB", found[f"{what} memory"], python, "python -c pass")
        for what in ("session", "keystore")
    ]


def _bare_memory() -> Series:
    code = "import psutil; print(psutil.Process().memory_full_info().uss)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(3)]
    return Series(tuple(int(run.stdout) / MEBI for run in runs))
