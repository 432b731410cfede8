"""Stand-ins for activities, for tests about waiting: hours pass in milliseconds on the time-skipping server.

They answer at once with documents signed by a `World`; nothing is encrypted. Everything else is the
product's: workflows, sandbox, data converter, names, messages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from tests.world import KEYSTORES, NAMES, World
from workers import roles
from workflows.contracts import names
from workflows.contracts.canonical import Message, Signed, digest, seconds
from workflows.contracts.documents import (
    SUITE,
    Approval,
    KeyDescription,
    Manifest,
    ManifestShard,
    Plan,
    RecipientRequest,
    ShardBinding,
)
from workflows.contracts.errors import MasterKeyError, PlanInvalid
from workflows.contracts.messages import (
    BeginCeremony,
    Begun,
    CloseCeremony,
    Commit,
    DekAnswer,
    Delivered,
    DescribeKey,
    HoldSession,
    InitRequest,
    OpenSession,
    PlanMade,
    RecordEvents,
    Release,
    SessionOpened,
    ShardRequest,
    StoredProtection,
    StoredShard,
    UnsealRequest,
    UnwrapDataKey,
)
from workflows.failures import as_failure

SESSIONS = "doubles-sessions"


@dataclass
class Doubles:
    """The stand-ins; `unwrap` and `open` decide what the outside world does."""

    world: World
    mode: str = "sss"
    unwrap: Callable[[str], MasterKeyError | None] = lambda keystore: None
    open: Callable[[], MasterKeyError | None] = lambda: None
    closed: list[CloseCeremony] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    # --- ledger ----------------------------------------------------------------------------------------------

    @activity.defn(name=names.BEGIN_CEREMONY)
    async def begin(self, request: BeginCeremony) -> Begun:
        roster = self.world.roster
        protection = self.protection() if request.manifest else None
        return Begun(roster=roster.canonical().decode(), roster_digest=roster.digest, protection=protection)

    @activity.defn(name=names.RECORD_PLAN)
    async def record_plan(self, request: PlanMade) -> None:
        Plan.parse(request.plan.encode())

    @activity.defn(name=names.RECORD_EVENTS)
    async def record_events(self, request: RecordEvents) -> None:
        self.events += [event.type for event in request.events]

    @activity.defn(name=names.CLOSE_CEREMONY)
    async def close(self, request: CloseCeremony) -> None:
        self.events += [event.type for event in request.events]
        self.closed.append(request)

    @activity.defn(name=names.COMMIT_PROTECTION)
    async def commit(self, request: Commit) -> None:
        raise AssertionError("these tests end before the commit")

    # --- keystores and strongroom ----------------------------------------------------------------------------

    @activity.defn(name=names.DESCRIBE_KEY)
    async def describe(self, request: DescribeKey) -> Signed:
        name = request.keystore
        return self.world.keystores[name].sign(
            KeyDescription(
                keystore=name,
                kind="memory",
                key_id=f"memory:{name}",
                key_version="1",
                modes=("sss", "seal"),
                time=seconds(activity.info().started_time),
            )
        )

    @activity.defn(name=names.UNWRAP_DATA_KEY)
    async def unwrap_data_key(self, request: UnwrapDataKey) -> DekAnswer:
        self.calls.append(request.keystore)
        if (error := self.unwrap(request.keystore)) is not None:
            raise as_failure(error)
        return DekAnswer(response=Signed(document="a", signature="b"), ciphertext="", wrapped_dek="")

    @activity.defn(name=names.OPEN_SESSION)
    async def open_session(self, request: OpenSession) -> SessionOpened:
        if (error := self.open()) is not None:
            raise as_failure(error)
        announcement = Signed(document=request.plan, signature="")
        return SessionOpened(announcement=announcement, queue=SESSIONS, session="0" * 32)

    @activity.defn(name=names.HOLD_SESSION)
    async def hold(self, request: HoldSession) -> None:
        return

    @activity.defn(name=names.RELEASE)
    async def release(self, request: Release) -> Delivered:
        return Delivered(delivery=Signed(document="delivered", signature=""), ciphertext="")

    # --- documents -------------------------------------------------------------------------------------------

    def protection(self) -> StoredProtection:
        """A protection 3-of-5 (or any of five) with nothing inside."""
        world, sss = self.world, self.mode == "sss"
        common: dict[str, Any] = {
            "purpose": "primary",
            "master_key": "eu10",
            "protection": "eu10.init.0123456789ab.1",
            "epoch": 1,
            "ceremony": "eu10.init.0123456789ab",
            "mode": self.mode,
            "threshold": 3 if sss else 1,
            "count": 5,
        }
        shards = []
        for index, (keystore, custodian) in enumerate(zip(KEYSTORES, NAMES, strict=True), start=1):
            own = {"index": index, "x": index, "keystore": keystore, "key_id": f"memory:{keystore}", "key_version": "1"}
            shards.append(
                ManifestShard(
                    binding=ShardBinding(**common, **own, wrapped_hash=digest(b"")),
                    custodians=(custodian,) if sss else (),
                    ciphertext_hash=digest(b""),
                    salt="0" * 32,
                    commitment="0" * 64,
                    check_value="0" * 32,
                )
            )
        manifest = Manifest(
            **common,
            kcv="0" * 32,
            predecessor=None,
            governance_quorum=3,
            attempt=1,
            plan=digest(b"plan"),
            authority=(),
            roster=world.roster.digest,
            strongroom=world.strongroom.fingerprint,
            created=world.roster.issued,
            shards=tuple(shards),
        )
        rows = tuple(
            StoredShard(
                index=s.binding.index,
                keystore=s.binding.keystore,
                key_id=s.binding.key_id,
                key_version="1",
                wrapped_dek="",
                nonce="",
                ciphertext="",
            )
            for s in shards
        )
        return StoredProtection(manifest=world.strongroom.sign(manifest), shards=rows)

    def init_request(self, **more: Any) -> InitRequest:
        """An init 3-of-5."""
        fields: dict[str, Any] = {
            "ceremony": names.new_ceremony_id("eu10", "init"),
            "master_key": "eu10",
            "mode": "sss",
            "threshold": 3,
            "shards": tuple(ShardRequest(keystore=name) for name in KEYSTORES),
        }
        return InitRequest(**{**fields, **more})

    def unseal_request(self, now: datetime, lifetime: timedelta, **more: Any) -> UnsealRequest:
        """An unseal of `protection`."""
        ceremony = names.new_ceremony_id("eu10", "unseal")
        signed = self.protection().manifest
        request = RecipientRequest(
            master_key="eu10",
            ceremony=ceremony,
            manifest=signed.digest,
            epoch=1,
            recipient=self.world.recipient.fingerprint,
            suite=SUITE,
            hpke_public_key="",
            strongroom=self.world.strongroom.fingerprint,
            nonce="0" * 32,
            issued=seconds(now),
            expires=seconds(now) + lifetime,
        )
        fields: dict[str, Any] = {
            "ceremony": ceremony,
            "master_key": "eu10",
            "request": self.world.recipient.sign(request),
        }
        return UnsealRequest(**{**fields, **more})

    def decision(self, name: str, plan: Plan, now: datetime, lifetime: timedelta, decision: str = "approve") -> Signed:
        """A custodian's decision, signed at a time of the server's."""
        return self.world.custodians[name].sign(
            Approval(
                decision=decision,
                plan=plan,
                plan_digest=plan.digest,
                custodian=self.world.custodians[name].fingerprint,
                issued=seconds(now),
                expires=seconds(now) + lifetime,
            )
        )

    # --- workers ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def working(self, environment: WorkflowEnvironment) -> AsyncIterator[None]:
        """Workers on every queue; workflows in production's sandbox."""
        client = environment.client
        ledger: list[Callable[..., Any]] = [
            self.begin,
            self.record_plan,
            self.record_events,
            self.close,
            self.commit,
        ]
        workers = [
            Worker(
                client,
                task_queue=names.ORCHESTRATOR_QUEUE,
                workflows=roles.WORKFLOWS,
                activities=ledger,
                workflow_runner=roles.sandbox(),
            ),
            Worker(client, task_queue=names.strongroom_queue("vault"), activities=[self.open_session]),
            Worker(client, task_queue=SESSIONS, activities=[self.hold, self.release]),
        ]
        workers += [
            Worker(client, task_queue=names.keystore_queue(name), activities=[self.describe, self.unwrap_data_key])
            for name in KEYSTORES
        ]
        async with AsyncExitStack() as stack:
            for worker in workers:
                await stack.enter_async_context(worker)
            yield


def stop_here() -> MasterKeyError:
    """What `open` answers when a test ends with the quorum."""
    return PlanInvalid("the quorum stood; this test goes no further")


__all__ = ["SESSIONS", "Doubles", "Message", "stop_here"]
