"""The attacker: a Temporal worker of its own, that calls whatever it likes on any task queue.

`Puppet` is a workflow that executes named activities with any JSON; `Hostile` is the front that tests use.
Failures come back as our errors, by type, so that a test reads as if it had called the role itself.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from tests.driving.reading import ended
from workflows.contracts import names
from workflows.contracts.messages.keystore import (
    CheckDataKey,
    DescribeKey,
    GenerateDataKey,
    NoteCommit,
    NoteOrder,
    StopServing,
    UnwrapDataKey,
)
from workflows.contracts.messages.protection import DekAnswer, StoredProtection
from workflows.contracts.messages.strongroom import Delivered, Protect, Release, Reshard, SessionOpened
from workflows.contracts.trust.canonical import Message, Signed
from workflows.contracts.trust.keystore import KeystoreState, StateStatement
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.service_errors import narrowest

M = TypeVar("M", bound=Message)

QUEUE = "attacker"
Call = tuple[str, str, Any]
"""Name of an activity, task queue, and what is sent: a message, or any JSON."""


class Unforeseen(Exception):
    """A failure that is none of our errors; `type` is Temporal's."""


@workflow.defn(name="Puppet", sandboxed=False)
class Puppet:
    """Executes activities, whatever they are, wherever they are, all at once."""

    @workflow.run
    async def run(self, wanted: list[Call]) -> list[dict[str, Any]]:
        """For each the answer, or the failure's type, message and details."""
        return list(await asyncio.gather(*(self._one(*call) for call in wanted)))

    async def _one(self, activity_name: str, queue: str, request: Any) -> dict[str, Any]:
        try:
            answer = await workflow.execute_activity(
                activity_name,
                request,
                task_queue=queue,
                start_to_close_timeout=timedelta(seconds=20),
                schedule_to_close_timeout=timedelta(seconds=20),
                retry_policy=RetryPolicy(maximum_attempts=1),
            )
        except ActivityError as error:
            cause = error.cause
            if isinstance(cause, ApplicationError):
                return {"type": cause.type, "message": cause.message, "details": [str(d) for d in cause.details]}
            return {"type": type(cause).__name__, "message": str(cause), "details": []}
        return {"answer": answer}


def _plain(request: Any) -> Any:
    return request.model_dump(mode="json") if isinstance(request, Message) else request


def _outcome(found: dict[str, Any]) -> Any:
    if "answer" in found:
        return found["answer"]
    details = [*found["details"], "", "", ""]
    kind = narrowest(found["type"], str(details[2]))
    if kind is None:
        return Unforeseen(f"{found['type']}: {found['message']}")
    return kind(found["message"], next_step=details[0], subject=details[1])


class Hostile:
    """An orchestrator that sends what it likes."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def ask(self, activity_name: str, queue: str, request: Any) -> Any:
        """Ask one activity on one queue, once.

        Raises:
            MasterKeyError: by type, as the role raised it.
            Unforeseen: any other failure.
        """
        (outcome,) = await self.ask_all([(activity_name, queue, request)])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def ask_all(self, wanted: Sequence[Call]) -> list[Any]:
        """Ask several activities at once; an answer or an error for each."""
        calls = [(name, queue, _plain(request)) for name, queue, request in wanted]
        handle = await self.client.start_workflow(
            "Puppet", args=[calls], id=f"attack/{uuid.uuid4()}", task_queue=QUEUE, result_type=list[dict[str, Any]]
        )
        return [_outcome(found) for found in await ended(handle)]

    # --- a keystore worker, asked past the workflow -------------------------------------------------------

    async def keystore(self, call: str, request: Message, result: type[M], *, at: str = "") -> M:
        """Any call of a keystore; `at` sends it to another worker than the one it names."""
        queue = names.keystore_queue(at or str(request.model_dump()["keystore"]))
        return result.model_validate(await self.ask(call, queue, request))

    async def describe(self, keystore: str) -> Signed:
        """The key that a keystore uses."""
        return await self.keystore(names.DESCRIBE_KEY, DescribeKey(keystore=keystore), Signed)

    async def generate(self, keystore: str, index: int, authority: Authority, session: Signed) -> DekAnswer:
        """A fresh DEK."""
        request = GenerateDataKey(keystore=keystore, index=index, authority=authority, session=session)
        return await self.keystore(names.GENERATE_DATA_KEY, request, DekAnswer)

    async def unwrap(
        self,
        stored: StoredProtection,
        place: int,
        authority: Authority,
        session: Signed,
        *,
        at: str = "",
        **changes: Any,
    ) -> DekAnswer:
        """An unwrapped DEK of a stored protection; `changes` go into what is asked."""
        row = stored.shards[place - 1]
        request = UnwrapDataKey(
            keystore=at or row.keystore,
            index=place,
            authority=authority,
            session=session,
            manifest=stored.manifest,
            wrapped_dek=row.wrapped_dek,
        )
        return await self.keystore(names.UNWRAP_DATA_KEY, request.model_copy(update=changes), DekAnswer)

    async def refusals(
        self, plan: Plan, authority: Authority, *, stored: StoredProtection | None = None, place: int = 1
    ) -> tuple[Any, Any]:
        """What keystore worker and session, both asked directly, say to a plan and what shall authorise it.

        Args:
            plan: what the session is opened for.
            authority: what is shown to both.
            stored: what shall be released; without it the plan is one to protect.
            place: which shard's keystore is asked.
        """
        opened = await self.open(plan, "release" if stored else "protect")
        shown = {"authority": authority, "session": opened.announcement, "index": place}
        if stored is None:
            keystore = f"bao-{place}"
            first: Message = GenerateDataKey(keystore=keystore, **shown)
            second: Message = Protect(session=opened.session, authority=authority, deks=())
            calls = (names.GENERATE_DATA_KEY, names.PROTECT)
        else:
            row = stored.shards[place - 1]
            keystore = row.keystore
            first = UnwrapDataKey(keystore=keystore, manifest=stored.manifest, wrapped_dek=row.wrapped_dek, **shown)
            second = Release(session=opened.session, authority=authority, protection=stored, deks=())
            calls = (names.UNWRAP_DATA_KEY, names.RELEASE)
        asked = [(calls[0], names.keystore_queue(keystore), first), (calls[1], opened.queue, second)]
        at_keystore, at_session = await self.ask_all(asked)
        return at_keystore, at_session

    async def check(self, stored: StoredProtection, index: int, **changes: Any) -> Signed:
        """A proof that a DEK can be given back."""
        row = stored.shards[index - 1]
        request = CheckDataKey(
            keystore=row.keystore,
            index=index,
            manifest=stored.manifest,
            wrapped_dek=row.wrapped_dek,
            nonce="ab" * 16,
        )
        return await self.keystore(names.CHECK_DATA_KEY, request.model_copy(update=changes), Signed)

    async def proofs(self, stored: StoredProtection) -> tuple[Signed, ...]:
        """Every keystore's proof that it can give back its data key; anybody may ask for one."""
        return tuple(await asyncio.gather(*(self.check(stored, row.index) for row in stored.shards)))

    async def note(self, keystore: str, manifest: Signed, proofs: Sequence[Signed] = ()) -> KeystoreState:
        """Tell a keystore what is in force; it answers with what it remembers of that MasterKey."""
        request = NoteCommit(keystore=keystore, manifest=manifest, proofs=tuple(proofs))
        return self._remembered(await self.keystore(names.NOTE_COMMIT, request, Signed))

    async def order(self, keystore: str, authority: Authority, manifest: Signed | None = None) -> KeystoreState:
        """Tell a keystore what a quorum has ordered."""
        request = NoteOrder(keystore=keystore, authority=authority, manifest=manifest)
        return self._remembered(await self.keystore(names.NOTE_ORDER, request, Signed))

    async def stop(self, keystore: str, stop: Signed) -> KeystoreState:
        """Tell a keystore that somebody has ordered to stop."""
        return self._remembered(
            await self.keystore(names.STOP_SERVING, StopServing(keystore=keystore, stop=stop), Signed)
        )

    def _remembered(self, signed: Signed) -> KeystoreState:
        (one,) = StateStatement.parse(signed.document.encode()).master_keys
        return one

    # --- the strongroom, asked past the workflow ----------------------------------------------------------

    async def open(self, plan: Plan, purpose: str, attempt: int = 1) -> SessionOpened:
        """A session for a plan; nobody has to approve that."""
        request = {"purpose": purpose, "plan": plan.canonical().decode(), "attempt": attempt}
        answer = await self.ask(names.OPEN_SESSION, names.strongroom_queue("vault"), request)
        return SessionOpened.model_validate(answer)

    async def protect(self, opened: SessionOpened, authority: Authority, deks: Sequence[DekAnswer]) -> StoredProtection:
        """Let a session protect."""
        request = Protect(session=opened.session, authority=authority, deks=tuple(deks))
        return StoredProtection.model_validate(await self.ask(names.PROTECT, opened.queue, request))

    async def release(
        self, opened: SessionOpened, authority: Authority, stored: StoredProtection, deks: Sequence[DekAnswer]
    ) -> Delivered:
        """Let a session release."""
        request = Release(session=opened.session, authority=authority, protection=stored, deks=tuple(deks))
        return Delivered.model_validate(await self.ask(names.RELEASE, opened.queue, request))

    async def reshard(
        self,
        opened: SessionOpened,
        authority: Authority,
        stored: StoredProtection,
        given: Sequence[DekAnswer],
        deks: Sequence[DekAnswer],
    ) -> StoredProtection:
        """Let a session open a protection and make another."""
        request = Reshard(
            session=opened.session,
            authority=authority,
            protection=stored,
            opened=tuple(given),
            deks=tuple(deks),
        )
        return StoredProtection.model_validate(await self.ask(names.RESHARD, opened.queue, request))

    async def generate_all(self, plan: Plan, authority: Authority, opened: SessionOpened) -> list[DekAnswer]:
        """Fresh DEKs for every shard of a plan's target."""
        assert plan.target is not None
        places = plan.target.shards
        calls = [self.generate(place.keystore, place.index, authority, opened.announcement) for place in places]
        return list(await asyncio.gather(*calls))

    async def create(self, plan: Plan, authority: Authority, attempt: int = 1) -> StoredProtection:
        """The whole of an init, past the workflow and past the ledger."""
        opened = await self.open(plan, "protect", attempt)
        return await self.protect(opened, authority, await self.generate_all(plan, authority, opened))

    async def remake(
        self,
        plan: Plan,
        authority: Authority,
        stored: StoredProtection,
        places: Sequence[int],
        attempt: int = 1,
    ) -> StoredProtection:
        """The whole of a reshard, past the workflow and past the ledger: staged, and not proven."""
        opened = await self.open(plan, "reshard", attempt)
        calls = [self.unwrap(stored, place, authority, opened.announcement) for place in places]
        given = await asyncio.gather(*calls)
        return await self.reshard(opened, authority, stored, given, await self.generate_all(plan, authority, opened))


@asynccontextmanager
async def hostile(client: Client) -> AsyncIterator[Hostile]:
    """An attacker at work."""
    async with Worker(client, task_queue=QUEUE, workflows=[Puppet], workflow_runner=UnsandboxedWorkflowRunner()):
        yield Hostile(client)


@asynccontextmanager
async def impostor(
    client: Client, queue: str, *, activities: Sequence[Any] = (), workflows: Sequence[type] = ()
) -> AsyncIterator[None]:
    """A worker of the attacker's on somebody else's task queue."""
    async with Worker(
        client,
        task_queue=queue,
        activities=list(activities),
        workflows=list(workflows),
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        yield


@contextmanager
def altered_ledger(file: Path, *statements: tuple[str, tuple[Any, ...]]) -> Iterator[None]:
    """Alter rows of the ledger as whoever has the database can; what was altered is put back afterwards."""
    tables = sorted({re.sub(r"^(UPDATE|DELETE FROM|INSERT INTO) (\w+).*$", r"\2", words) for words, _ in statements})
    marks = ", ".join("?" for _ in tables)
    with closing(_open(file)) as database:
        triggers = database.execute(
            f"SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name IN ({marks})",  # noqa: S608
            tables,
        ).fetchall()
        saved = {table: database.execute(f"SELECT * FROM {table}").fetchall() for table in tables}  # noqa: S608
        database.execute("BEGIN IMMEDIATE")
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        for words, values in statements:
            assert database.execute(words, values).rowcount > 0, f"nothing was altered by {words}"
        database.execute("COMMIT")
    try:
        yield
    finally:
        with closing(_open(file)) as database:
            database.execute("BEGIN IMMEDIATE")
            for table, rows in saved.items():
                for row in rows:
                    places = ", ".join("?" for _ in row)
                    database.execute(f"INSERT OR REPLACE INTO {table} VALUES ({places})", row)  # noqa: S608
            for _, words in triggers:
                database.execute(words)
            database.execute("COMMIT")


def _open(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file, isolation_level=None, timeout=10)
    database.execute("PRAGMA foreign_keys = OFF")
    return database
