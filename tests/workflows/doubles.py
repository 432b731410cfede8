"""Stand-ins for activities, for tests about waiting: hours pass in milliseconds on the time-skipping server.

They answer at once with documents signed by a `World`; nothing is encrypted. Everything else is the
product's: workflows, sandbox, data converter, names, messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from tests.driving.reading import Handle
from tests.world import CUSTODIAN_OF, KEYSTORES, World
from workflows import catalogue
from workflows.calls.failures import as_failure
from workflows.contracts import names
from workflows.contracts.messages.keystore import CheckDataKey, DescribeKey, GenerateDataKey, NoteCommit, UnwrapDataKey
from workflows.contracts.messages.ledger import (
    BeginCeremony,
    Begun,
    BundleExported,
    CloseCeremony,
    Commit,
    ExportBundle,
    PlanMade,
    RecordEvents,
    Stage,
)
from workflows.contracts.messages.protection import DekAnswer, StoredProtection, StoredShard
from workflows.contracts.messages.requests import DrillRequest, InitRequest, RecoverRequest, ShardRequest, UnsealRequest
from workflows.contracts.messages.status import CeremonyStatus
from workflows.contracts.messages.strongroom import Delivered, HoldSession, OpenSession, Release, Reshard, SessionOpened
from workflows.contracts.trust.canonical import Message, Signed, digest, seconds
from workflows.contracts.trust.errors import MasterKeyError, PlanInvalid
from workflows.contracts.trust.fields import SUITE
from workflows.contracts.trust.keystore import CheckResponse, KeyDescription, StateStatement
from workflows.contracts.trust.plan import Approval, Plan, RecipientRequest
from workflows.contracts.trust.protection import Manifest, ManifestShard, ShardBinding
from workflows.contracts.trust.session import DekResponse

SESSIONS = "doubles-sessions"


@dataclass
class Doubles:
    """The stand-ins; `unwrap`, `ask` and `open` decide what the outside world does.

    Attributes:
        count: keystores of the protection that there is; the others of the world are spare.
        unwrap: whether a keystore fails to give back a data key.
        ask: whether it fails to say which key it uses, to prove a data key, or to take in a commit.
        prove: whether it fails to prove a data key of a new protection, if that is another matter.
        open: whether no session is opened.
    """

    world: World
    mode: str = "sss"
    count: int = 5
    unwrap: Callable[[str], MasterKeyError | None] = lambda keystore: None
    ask: Callable[[str], MasterKeyError | None] = lambda keystore: None
    prove: Callable[[str], MasterKeyError | None] | None = None
    open: Callable[[], MasterKeyError | None] = lambda: None
    committed: list[Commit] = field(default_factory=list)
    sessions: list[OpenSession] = field(default_factory=list)
    closed: list[CloseCeremony] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    # --- ledger ----------------------------------------------------------------------------------------------

    @activity.defn(name=names.BEGIN_CEREMONY)
    async def begin(self, request: BeginCeremony) -> Begun:
        roster = self.world.roster
        protection = self.protection() if request.manifest else None
        active = (self.protection(),) if request.all_active else ()
        text = roster.canonical().decode()
        return Begun(
            roster=text, roster_digest=roster.digest, protection=protection, active=active, next_epoch=1 + len(active)
        )

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
        self.committed.append(request)

    @activity.defn(name=names.STAGE_PROTECTION)
    async def stage(self, request: Stage) -> None:
        Manifest.parse(request.protection.manifest.document.encode())

    @activity.defn(name=names.EXPORT_BUNDLE)
    async def export(self, request: ExportBundle) -> BundleExported:
        return BundleExported()

    # --- keystores and strongroom ----------------------------------------------------------------------------

    @activity.defn(name=names.DESCRIBE_KEY)
    async def describe(self, request: DescribeKey) -> Signed:
        name = request.keystore
        await self._asked(name)
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
        await self._asked(request.keystore, self.unwrap)
        return DekAnswer(response=Signed(document="a", signature="b"), ciphertext="", wrapped_dek="")

    @activity.defn(name=names.GENERATE_DATA_KEY)
    async def generate_data_key(self, request: GenerateDataKey) -> DekAnswer:
        return DekAnswer(response=Signed(document="a", signature="b"), ciphertext="", wrapped_dek="")

    @activity.defn(name=names.CHECK_DATA_KEY)
    async def check_data_key(self, request: CheckDataKey) -> Signed:
        manifest = Manifest.parse(request.manifest.document.encode())
        await self._asked(request.keystore, self.prove if manifest.epoch > 1 else None)
        return self.proof(request, activity.info().started_time)

    @activity.defn(name=names.NOTE_COMMIT)
    async def note_commit(self, request: NoteCommit) -> Signed:
        await self._asked(request.keystore)
        return self.world.keystores[request.keystore].sign(
            StateStatement(
                keystore=request.keystore,
                about=request.manifest.digest,
                roster_number=1,
                master_keys=(),
                time=seconds(activity.info().started_time),
            )
        )

    async def _asked(self, keystore: str, fails: Callable[[str], MasterKeyError | None] | None = None) -> None:
        if (error := (fails or self.ask)(keystore)) is not None:
            # After the others have answered: the time-skipping server stops skipping for good when an activity is
            # given up while it runs, or waits to be tried again.
            await asyncio.sleep(0.05)
            raise as_failure(error)

    @activity.defn(name=names.RESHARD)
    async def reshard(self, request: Reshard) -> StoredProtection:
        return self.protection(Plan.parse(request.authority.plan.encode()))

    @activity.defn(name=names.OPEN_SESSION)
    async def open_session(self, request: OpenSession) -> SessionOpened:
        self.sessions.append(request)
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

    def protection(self, plan: Plan | None = None) -> StoredProtection:
        """A protection 3-of-5 (or as many as there are; or any of them) with nothing inside, or a plan's."""
        world, sss = self.world, self.mode == "sss"
        target = plan.target if plan else None
        keystores = [one.keystore for one in target.shards] if target else list(KEYSTORES[: self.count])
        ceremony = plan.ceremony if plan else "eu10.init.0123456789ab"
        common: dict[str, Any] = {
            "purpose": "primary",
            "master_key": "eu10",
            "protection": f"{ceremony}.1",
            "epoch": target.epoch if target else 1,
            "ceremony": ceremony,
            "mode": self.mode,
            "threshold": target.threshold if target else 3 if sss else 1,
            "count": len(keystores),
        }
        shards = []
        for index, keystore in enumerate(keystores, start=1):
            custodians = (CUSTODIAN_OF[keystore],) if sss else ()
            key = world.key_id(keystore)
            own = {"index": index, "x": index, "keystore": keystore, "key_id": key, "key_version": "1"}
            shards.append(
                ManifestShard(
                    binding=ShardBinding(**common, **own, wrapped_hash=digest(b"")),
                    custodians=target.shards[index - 1].custodians if target else custodians,
                    ciphertext_hash=digest(b""),
                    salt="0" * 32,
                    commitment="0" * 64,
                    check_value="0" * 32,
                )
            )
        manifest = Manifest(
            **common,
            kcv="0" * 32,
            predecessor=target.predecessor if target else None,
            governance_quorum=3,
            attempt=1,
            plan=plan.digest if plan else digest(b"plan"),
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

    def proof(self, request: CheckDataKey, at: datetime, **changes: Any) -> Signed:
        """What a keystore, or the custodian of an offline one, answers who is asked for a proof."""
        binding = Manifest.parse(request.manifest.document.encode()).shards[request.index - 1].binding
        fields: dict[str, Any] = {
            "manifest": request.manifest.digest,
            "master_key": binding.master_key,
            "index": request.index,
            "keystore": request.keystore,
            "key_id": binding.key_id,
            "key_version": binding.key_version,
            "nonce": request.nonce,
            "matches": True,
            "time": seconds(at),
        }
        return self.world.keystores[request.keystore].sign(CheckResponse(**{**fields, **changes}))

    def data_key(self, request: UnwrapDataKey, at: datetime, **changes: Any) -> DekAnswer:
        """What the custodian of an offline keystore answers who is asked for a data key."""
        fields: dict[str, Any] = {
            "purpose": "release",
            "master_key": "eu10",
            "protection": "eu10.init.0123456789ab.1",
            "index": request.index,
            "keystore": request.keystore,
            "key_id": self.world.key_id(request.keystore),
            "key_version": "",
            "mechanism": "age-x25519",
            "context": digest(b""),
            "wrapped_hash": digest(b""),
            "session": request.session.digest,
            "authority": digest(b""),
            "ciphertext_hash": digest(b""),
            "time": seconds(at),
        }
        response = self.world.keystores[request.keystore].sign(DekResponse(**{**fields, **changes}))
        return DekAnswer(response=response, ciphertext="", wrapped_dek="")

    def recover_request(self, **more: Any) -> RecoverRequest:
        """A recovery of `protection`."""
        return RecoverRequest(**{"ceremony": names.new_ceremony_id("eu10", "recover"), "master_key": "eu10", **more})

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
            self.stage,
            self.commit,
            self.export,
        ]
        keystore: list[Callable[..., Any]] = [
            self.describe,
            self.generate_data_key,
            self.unwrap_data_key,
            self.check_data_key,
            self.note_commit,
        ]
        workers = [
            Worker(
                client,
                task_queue=names.ORCHESTRATOR_QUEUE,
                workflows=catalogue.WORKFLOWS,
                activities=ledger,
                workflow_runner=catalogue.sandbox(),
            ),
            Worker(client, task_queue=names.strongroom_queue("vault"), activities=[self.open_session]),
            Worker(client, task_queue=SESSIONS, activities=[self.hold, self.release, self.reshard]),
        ]
        workers += [
            Worker(client, task_queue=names.keystore_queue(name), activities=keystore)
            for name in KEYSTORES
            if not self.world.is_offline(name)
        ]
        async with AsyncExitStack() as stack:
            for worker in workers:
                await stack.enter_async_context(worker)
            yield


class Clock:
    """The server's time, and ceremonies on it."""

    def __init__(self, environment: WorkflowEnvironment) -> None:
        self.environment = environment

    async def now(self) -> datetime:
        """The time."""
        return await self.environment.get_current_time()

    async def sleep(self, duration: timedelta) -> None:
        """Let time pass, in steps: the server answers at the end of each, and may not take long for one request."""
        while duration > timedelta():
            step = min(duration, timedelta(minutes=20))
            await self.environment.sleep(step)
            duration -= step

    async def start(self, request: InitRequest | UnsealRequest | RecoverRequest | DrillRequest) -> Handle:
        """Start a ceremony."""
        ceremony = str(request.ceremony)
        action = ceremony.split(".")[1]
        workflow = "DisasterRecoveryWorkflow" if action == "recover" else f"{action.capitalize()}Workflow"
        return await self.environment.client.start_workflow(
            workflow, request, id=names.workflow_id(ceremony), task_queue=names.ORCHESTRATOR_QUEUE
        )

    async def plan(self, handle: Handle) -> Plan:
        """The plan, once custodians are asked about it."""
        status = await self.reach(handle, "quorum")
        assert status.plan is not None
        return Plan.parse(status.plan.encode())

    async def reach(self, handle: Handle, phase: str) -> CeremonyStatus:
        """Wait until a ceremony is in a phase."""
        for _ in range(2000):
            status = await self.status(handle)
            if status.phase == phase:
                return status
            await self.environment.sleep(0.01)
        raise AssertionError(f"it is not in {phase}, but in {status.phase}: {status.detail}")

    async def status(self, handle: Handle) -> CeremonyStatus:
        """What a ceremony is doing."""
        found: CeremonyStatus = await handle.query("status", result_type=CeremonyStatus)
        return found


def stop_here() -> MasterKeyError:
    """What `open` answers when a test ends with the quorum."""
    return PlanInvalid("the quorum stood; this test goes no further")


__all__ = ["SESSIONS", "Clock", "Doubles", "Message", "stop_here"]
