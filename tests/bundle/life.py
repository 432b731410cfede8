"""The life of a MasterKey in a ledger: recorded by the orchestrator's own activities, signed by everybody for real."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from activities.crypto.hpke import PrivateKey
from activities.ledger.activities import LedgerActivities
from activities.ledger.bundle.export import export
from activities.ledger.bundle.places import Place
from activities.ledger.store.ledger import Ledger
from activities.strongroom import session
from tests.strongroom.test_reshard import Resharding
from tests.world import NAMES, World, now
from workflows.contracts.messages.ledger import (
    BeginCeremony,
    Begun,
    CloseCeremony,
    Collect,
    Collected,
    Commit,
    Event,
    ExecuteOrder,
    PlanMade,
    RecordEvents,
    RecordHolding,
    Stage,
)
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.messages.strongroom import Protect, Release, Reshard
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.fields import Action
from workflows.contracts.trust.plan import Plan, Target
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.stop import Ended

QUORUM = NAMES[:3]
NAME = "eu10"


class Life:
    """Does to one MasterKey what the workflows do."""

    def __init__(self, world: World, ledger: Ledger, places: Sequence[Place] = ()) -> None:
        self.world = world
        self.people = Resharding(world)
        self.ledger = ledger
        self.activities = LedgerActivities(ledger, world.source, places)
        self.build: str | None = None
        self._number = 0
        self._opened: dict[str, datetime] = {}

    # --- steps that workflows share --------------------------------------------------------------------------

    def id_of(self, action: str) -> str:
        """A fresh ceremony id."""
        self._number += 1
        return f"{NAME}.{action}.{self._number:012x}"

    def begin(self, ceremony: str, **fields: Any) -> Begun:
        """Open a ceremony; the action is in its id."""
        action: Action = ceremony.split(".")[1]  # type: ignore[assignment]
        request = BeginCeremony(
            ceremony=ceremony,
            workflow_id=f"masterkey/{ceremony}",
            action=action,
            master_key=NAME,
            opened_at=self._opened.setdefault(ceremony, now()),
            build=self.build,
            **fields,
        )
        return self.activities.begin_ceremony(request)

    def plan(self, plan: Plan) -> None:
        """Record a plan."""
        made = PlanMade(ceremony=plan.ceremony, master_key=NAME, phase="quorum", plan=plan.canonical().decode())
        self.activities.record_plan(made)

    def record(self, ceremony: str, *events: Event) -> None:
        """Record events of a ceremony."""
        self.activities.record_events(RecordEvents(ceremony=ceremony, master_key=NAME, phase="quorum", events=events))

    def record_approvals(self, ceremony: str, authority: Authority, type_: str = "approval-recorded") -> None:
        """Record approvals as a workflow does."""
        events = [signed_event(f"approve.{s.digest[7:19]}", type_, s) for s in authority.approvals]
        self.record(ceremony, *events)

    def close(self, ceremony: str, outcome: Any = "done") -> None:
        """Close a ceremony."""
        ended = CloseCeremony(ceremony=ceremony, master_key=NAME, outcome=outcome, detail="as it came")
        self.activities.close_ceremony(ended)

    def protect(self, plan: Plan, authority: Authority, source: StoredProtection | None = None) -> StoredProtection:
        """What keystores and strongroom make of an approved plan."""
        assert plan.target is not None
        opened = self.people.open(plan, "protect" if source is None else "reshard")
        announced = self.people.announce(opened)
        deks = tuple(self.people.generate(plan.target, authority, announced))
        if source is None:
            return session.protect(opened, Protect(session="ab" * 16, authority=authority, deks=deks), now())
        indexes = [row.index for row in source.shards][: plan.source.threshold if plan.source else 1]
        given = tuple(self.people.unwrap(source, index, authority, announced) for index in indexes)
        work = Reshard(session="ab" * 16, authority=authority, protection=source, opened=given, deks=deks)
        return session.reshard(opened, work, now())

    # --- ceremonies --------------------------------------------------------------------------------------------

    def init(self, mode: str = "sss", threshold: int = 2, count: int = 3) -> StoredProtection:
        """Create the MasterKey."""
        ceremony = self.id_of("init")
        self.begin(ceremony)
        return self.make(self.world.init_plan(self.world.target(mode, threshold, count), ceremony=ceremony))

    def reshard(self, source: StoredProtection, target: Target, action: str = "reshard") -> StoredProtection:
        """Make another protection."""
        ceremony = self.id_of(action)
        self.begin(ceremony, all_active=True)
        fields = {"ceremony": ceremony, "action": action}
        return self.make(self.world.reshard_plan(source, target, **fields), source)

    def make(self, plan: Plan, source: StoredProtection | None = None) -> StoredProtection:
        """From the plan to the end."""
        assert plan.target is not None
        ceremony, stored = plan.ceremony, self.stage(plan, source)
        proofs = self.people.proofs(stored)
        self.record(ceremony, *(signed_event(f"proven.1.{n}", "data-key-proven", s) for n, s in enumerate(proofs, 1)))
        commit = Commit(ceremony=ceremony, attempt=1, retention_hours=plan.target.retention_hours)
        self.activities.commit_protection(commit)
        self.close(ceremony)
        return stored

    def stage(self, plan: Plan, source: StoredProtection | None = None) -> StoredProtection:
        """From the plan to before the proofs."""
        authority = self.world.authority(plan, QUORUM)
        self.plan(plan)
        self.record_approvals(plan.ceremony, authority)
        stored = self.protect(plan, authority, source)
        self.activities.stage_protection(Stage(ceremony=plan.ceremony, attempt=1, protection=stored))
        return stored

    def refused_reshard(self, source: StoredProtection, target: Target) -> None:
        """A reshard that stages something, and ends before its commit."""
        ceremony = self.id_of("reshard")
        self.begin(ceremony, all_active=True)
        plan = self.world.reshard_plan(source, target, ceremony=ceremony)
        self.stage(plan, source)
        rejected = self.world.authority(plan, ())
        rejection = self.world.approval(NAMES[4], plan, decision="reject")
        self.record_approvals(ceremony, rejected.model_copy(update={"approvals": (rejection,)}), "rejection-recorded")
        self.close(ceremony, "refused")

    def replanned_recovery(self, source: StoredProtection, *targets: Target) -> StoredProtection:
        """A recovery for which one plan after the other is made; the last is carried out."""
        ceremony = self.id_of("recover")
        self.begin(ceremony, all_active=True)
        for target in targets[:-1]:
            plan = self.world.reshard_plan(source, target, ceremony=ceremony, action="recover")
            self.plan(plan)
            self.record_approvals(ceremony, self.world.authority(plan, QUORUM[:1]))
        last = self.world.reshard_plan(source, targets[-1], ceremony=ceremony, action="recover")
        return self.make(last, source)

    def stop(self, by: str = "erin") -> Signed:
        """An emergency stop."""
        ceremony = self.id_of("seal")
        signed = self.world.stop(by, ceremony=ceremony)
        self.begin(ceremony, stop=signed)
        self.close(ceremony)
        return signed

    def order(self, action: Action, about: StoredProtection | Sequence[str], approvers: Sequence[str] = QUORUM) -> str:
        """A lift, a retirement or a destruction; returns the ceremony."""
        ceremony = self.id_of(action)
        manifest = about.manifest.digest if isinstance(about, StoredProtection) else None
        self.begin(ceremony, manifest=manifest)
        plan = self.order_plan(action, about, ceremony)
        self.plan(plan)
        self.record_approvals(ceremony, self.world.authority(plan, approvers))
        order = ExecuteOrder(
            ceremony=ceremony, master_key=NAME, action=action, manifest=manifest, stops=plan.stops or ()
        )
        self.activities.execute_order(order)
        self.close(ceremony)
        return ceremony

    def order_plan(self, action: Action, about: StoredProtection | Sequence[str], ceremony: str) -> Plan:
        """A plan to lift stops, or to retire or destroy a protection."""
        if isinstance(about, StoredProtection):
            return self.world.order_plan(action, about, ceremony=ceremony)
        fields = {"action": action, "target": None, "stops": tuple(about), "ceremony": ceremony}
        return Plan.model_validate({**self.world.init_plan(self.world.target()).model_dump(), **fields})

    def unseal(self, stored: StoredProtection) -> str:
        """A release, and a recipient that held the MasterKey for a while; returns the ceremony."""
        ceremony, key = self.id_of("unseal"), PrivateKey()
        request = self.world.request(stored, key.public_key, ceremony=ceremony)
        signed = self.world.recipient.sign(request)
        self.begin(ceremony, manifest=stored.manifest.digest, request=signed)
        plan = self.world.unseal_plan(stored, request, ceremony=ceremony)
        authority = self.world.authority(plan, QUORUM, signed)
        self.plan(plan)
        self.record_approvals(ceremony, authority)
        opened = self.people.open(plan, "release")
        deks = tuple(self.people.unwrap(stored, index, authority, self.people.announce(opened)) for index in (1, 2, 3))
        work = Release(session="ab" * 16, authority=authority, protection=stored, deks=deks)
        delivery = session.release(opened, work, now()).delivery
        body = {"delivery": delivery.document, "signature": delivery.signature}
        self.record(ceremony, Event(key="delivered", type="masterkey-delivered", body={**body}))
        self.close(ceremony)
        self.hold(ceremony, "began")
        self.hold(ceremony, "ended")
        return ceremony

    def hold(self, ceremony: str, state: Any) -> tuple[Signed, ...]:
        """A recipient holds what it got, or no more."""
        ended = None
        if state == "ended":
            document = Ended(
                master_key=NAME,
                ceremony=ceremony,
                stop="sha256:" + "0" * 64,
                recipient=self.world.recipient.fingerprint,
                time=now(),
            )
            ended = self.world.recipient.sign(document)
        holding = RecordHolding(
            ceremony=ceremony, master_key=NAME, workflow_id=f"masterkey/{ceremony}/hold", state=state, ended=ended
        )
        return self.activities.record_holding(holding).stops

    def drill(self, *protections: StoredProtection) -> None:
        """Every keystore proves its data key."""
        ceremony = self.id_of("drill")
        self.begin(ceremony, all_active=True)
        for stored in protections:
            for number, signed in enumerate(self.people.proofs(stored), 1):
                key = f"proven.{stored.manifest.digest[7:19]}.{number}"
                self.record(ceremony, signed_event(key, "data-key-proven", signed))
        self.close(ceremony)

    def collect(self) -> Collected:
        """Collect what is due by now."""
        return self.activities.collect(Collect(older_than=now() + timedelta(seconds=1)))

    def bundle(self) -> bytes:
        """The bundle of this ledger."""
        return export(self.ledger, self.world.source).data

    def whole(self) -> None:
        """A life in which everything happens that a ledger records."""
        world = self.world
        first = self.init(threshold=3, count=5)
        self.drill(first)
        self.unseal(first)
        self.order("lift", [self.stop().digest])
        second = self.reshard(first, world.target_over(world_keystores(3), epoch=2, retention_hours=0))
        emergency = world.target_over(world_keystores(2), "seal", 1, epoch=3, purpose="emergency")
        beside = self.reshard(second, emergency)
        self.collect()
        self.order("retire", beside)
        self.order("destroy", beside)
        self.refused_reshard(second, world.target_over(world_keystores(4), epoch=4))
        four, three = world_keystores(4), world_keystores(3, 2)
        self.replanned_recovery(second, world.target_over(four, epoch=4), world.target_over(three, epoch=4))
        world.write_roster(world.next_version(QUORUM, recipients=()))
        self.stop("dave")
        self.begin(self.id_of("drill"), all_active=True)


def world_keystores(count: int, first: int = 1) -> list[str]:
    """Names of keystores of the world."""
    return [f"ks-{number}" for number in range(first, first + count)]


def signed_event(key: str, type_: str, signed: Signed) -> Event:
    """An event that carries something signed."""
    return Event(key=key, type=type_, body={"document": signed.document, "signature": signed.signature})
