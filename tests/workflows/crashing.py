"""Crashes: ceremonies that are cut off at every boundary of their steps, or held there for something to be killed.

The boundaries come from the ceremonies' own histories: each kind of activity in each phase, before its work, and
after its work but before its answer. For each of them one ceremony is led there: either its activity is cut off, as
if its worker had died with it, or all of them are held, something is killed under them at once and started again, and
they are let go. `python -m tests.workflows.boundaries` lists them.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowFailureError, WorkflowHistory

from activities.ledger.log.records import ProtectionRecord
from tests.driving.gates import CUT, EVERY, Gate, wait_for_gates
from tests.driving.house import Asked
from tests.driving.reading import Handle, clean, ended
from tests.workflows.gated import GatedHouse
from workers.local.stack import CUSTODIANS
from workflows.contracts import names
from workflows.contracts.messages.ledger import ENDS
from workflows.contracts.messages.requests import CollectRequest
from workflows.contracts.messages.results import InitResult, ReshardResult, UnsealResult
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.protection import Manifest

Action = Literal["init", "unseal", "reshard", "recover"]

LEDGER = (
    names.BEGIN_CEREMONY,
    names.RECORD_PLAN,
    names.RECORD_EVENTS,
    names.STAGE_PROTECTION,
    names.COMMIT_PROTECTION,
    names.EXPORT_BUNDLE,
    names.CLOSE_CEREMONY,
)
STRONGROOM = (names.OPEN_SESSION, names.HOLD_SESSION, names.PROTECT, names.RELEASE, names.RESHARD)
_AT_ONCE = 6
"""So many ceremonies are let go at a time: what is held runs out of time after a while."""
_CUT_AT_ONCE = 20


def role_of(activity: str) -> str:
    """Which worker does this."""
    if activity in LEDGER:
        return "orchestrator"
    return "strongroom" if activity in STRONGROOM else "keystores"


@dataclass(frozen=True)
class Boundary:
    """One side of a step of a ceremony.

    Attributes:
        late: it comes after custodians were asked.
        committed: the new protection is in force there.
    """

    phase: str
    activity: str
    late: bool
    committed: bool
    when: Literal["before", "after"]

    @property
    def gate(self) -> str:
        """The kind of activity, as gates know it: what writes down a phase is told by it."""
        return f"{self.activity}@{self.phase}" if self.activity == names.RECORD_EVENTS else self.activity

    @property
    def role(self) -> str:
        """Which worker does this."""
        return role_of(self.activity)

    @property
    def may_be_cancelled(self) -> bool:
        """Whether a cancellation there ends the ceremony: what is about to be committed is."""
        commits = self.activity == names.COMMIT_PROTECTION
        return self.when == "before" and self.holds_up and not self.committed and not commits

    @property
    def holds_up(self) -> bool:
        """Whether the ceremony stands still when this does: a session is held on the side."""
        return self.activity != names.HOLD_SESSION

    def __str__(self) -> str:
        return f"{self.when} {self.activity} in {self.phase}"


def boundaries_of(history: WorkflowHistory) -> list[Boundary]:
    """Both sides of every kind of activity in every phase of a ceremony, in order."""
    found: dict[tuple[str, str, bool], tuple[Boundary, Boundary]] = {}
    phase, late, committed = "", False, False
    for event in history.events:
        kind = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")
        if kind == "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES":
            fields = event.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields
            phase = json.loads(fields[names.PHASE.name].data) if names.PHASE.name in fields else phase
        late |= kind in ("WORKFLOW_EXECUTION_SIGNALED", "WORKFLOW_EXECUTION_UPDATE_ACCEPTED")
        if kind != "ACTIVITY_TASK_SCHEDULED":
            continue
        activity = event.activity_task_scheduled_event_attributes.activity_type.name
        commits = activity == names.COMMIT_PROTECTION
        before = Boundary(phase, activity, late, committed, "before")
        after = Boundary(phase, activity, late, committed or commits, "after")
        found.setdefault((phase, activity, late), (before, after))
        committed |= commits
    return [side for both in found.values() for side in both]


@dataclass
class Case:
    """A ceremony that stands at a boundary.

    Attributes:
        before: the protection in force when it began, if one.
        asked: what its recipient holds, of an unseal.
    """

    name: str
    action: Action
    gates: dict[Boundary, Gate]
    handle: Handle
    ceremony: str
    before: ProtectionRecord | None = None
    asked: Asked | None = None

    @property
    def boundary(self) -> Boundary:
        """Where it stands, first of all."""
        return next(iter(self.gates))

    def close(self) -> None:
        """Ask for its gates."""
        for gate in self.gates.values():
            gate.close()

    def open(self) -> None:
        """Let it go on."""
        for gate in self.gates.values():
            gate.open()

    def __str__(self) -> str:
        return f"{self.ceremony} held {self.boundary}"


@dataclass
class Crashes:
    """Ceremonies to be led to boundaries, and MasterKeys for them, which are used again."""

    gated: GatedHouse
    boundaries: dict[Action, list[Boundary]] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)
    made: dict[str, InitResult | ReshardResult] = field(default_factory=dict)
    lost: str = ""
    active_at: dict[str, list[str]] = field(default_factory=dict)
    """By the name of a gate: the ceremonies whose protections were in force when an activity came there."""
    _free: list[str] = field(default_factory=list)

    async def learn(self) -> None:
        """Run every kind of ceremony once, and take the boundaries from their histories."""
        gated, name = self.gated, self.gated.fresh_name()
        made = InitResult.model_validate(await self._once("init", await gated.start_init(name)))
        await self._once("unseal", (await gated.ask(name, made)).handle)
        await self._once("reshard", await gated.start_reshard(name, self._others(name)), name)
        with self.losing(name):
            await self._once("recover", await gated.start_recover(name), name)

    async def _once(self, action: Action, handle: Handle, name: str = "") -> Any:
        await self.gated.approve(handle, _three_with(self.gated.active(name) if name else None, self.lost))
        result = await ended(handle)
        self.boundaries[action] = boundaries_of(await clean(handle))
        return result

    def at(self, action: Action, *roles: str) -> list[Boundary]:
        """Boundaries of an action; of the activities of these workers, if some are named."""
        return [one for one in self.boundaries[action] if not roles or one.role in roles]

    @contextmanager
    def losing(self, name: str) -> Iterator[None]:
        """Lose the key of a keystore under which a shard of this MasterKey lies; another is made in the end."""
        self.lost = next(one for one in self._keystores(name) if one.startswith("bao-"))
        self.gated.lose(self.lost)
        try:
            yield
        finally:
            self.gated.make_anew(self.lost)
            # Whoever had a shard there and did not recover has one that does not open any more.
            self._free = [name for name in self._free if self.lost not in self._keystores(name)]
            self.lost = ""

    async def masterkeys(self, number: int) -> list[str]:
        """So many MasterKeys, each 2-of-3 over three of the four keystores."""
        await self._make(number - len(self._free))
        taken, self._free = self._free[:number], self._free[number:]
        return taken

    async def alike(self, number: int) -> str:
        """Make sure that the next MasterKeys, so many, lie in the same keystores; gives back one of them."""
        groups: dict[tuple[str, ...], list[str]] = {tuple(self.gated.keystores[:3]): []}
        for name in self._free:
            groups.setdefault(tuple(sorted(self._keystores(name))), []).append(name)
        found = next((group for group in groups.values() if len(group) >= number), None)
        if found is None:
            found, self._free = next(iter(groups.values())), []
            await self._make(number - len(found))
            found += self._free
        self._free = [*found, *(name for group in groups.values() for name in group if name not in found)]
        return self._free[0]

    async def _make(self, number: int) -> None:
        fresh = [self.gated.fresh_name() for _ in range(number)]
        for start in range(0, len(fresh), _AT_ONCE):
            some = fresh[start : start + _AT_ONCE]
            for name, result in zip(some, await asyncio.gather(*map(self.gated.init, some)), strict=True):
                self.made[name] = result
        self._free += fresh

    # --- leading ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def led(self, action: Action, boundaries: Sequence[Boundary]) -> AsyncIterator[None]:
        """Ceremonies of an action stand at these boundaries; a recovery recovers from the loss of a key."""
        name = "" if action == "init" else await self.alike(len(boundaries))
        with self.losing(name) if action == "recover" else nullcontext():
            await self.lead(action, boundaries)
            yield

    async def lead(self, action: Action, boundaries: Sequence[Boundary]) -> None:
        """Lead one ceremony to each boundary, the farthest first."""
        assert boundaries, "there is no such boundary"
        masterkeys = await self._masterkeys_for(action, len(boundaries))
        late = [one for one in reversed(boundaries) if one.late]
        early = [one for one in boundaries if not one.late]
        for start in range(0, len(late), _AT_ONCE):
            some = [await self._start(masterkeys.pop(), action, (one,)) for one in late[start : start + _AT_ONCE]]
            await asyncio.gather(*map(self._push, some))
            await wait_for_gates([gate for case in some for gate in case.gates.values()], limit=60)
        some = [await self._start(masterkeys.pop(), action, (one,)) for one in early]
        await wait_for_gates([gate for case in some for gate in case.gates.values()], limit=60)

    async def cut(self, action: Action, boundaries: Sequence[Boundary]) -> None:
        """Cut a ceremony off on both sides of each step, one side after the other, as if a worker had died there.

        Each completes, and at every cut one protection is in force.
        """
        assert boundaries, "there is no such boundary"
        assert self.gated.interceptor is not None
        self.gated.interceptor.on_reach = self._look
        steps = list[tuple[Boundary, ...]]()
        for before, after in zip(boundaries[::2], boundaries[1::2], strict=True):
            assert str(after) == str(before).replace("before", "after", 1)
            # What does not hold the ceremony up is not done again when it is cut off.
            steps += [(before, after)] if before.holds_up else [(before,), (after,)]
        for start in range(0, len(steps), _CUT_AT_ONCE):
            some = steps[start : start + _CUT_AT_ONCE]
            name = "" if action == "init" else await self.alike(1 if action == "unseal" else len(some))
            with self.losing(name) if action == "recover" else nullcontext():
                masterkeys = await self._masterkeys_for(action, len(some))
                cases = [await self._start(masterkeys.pop(), action, both, CUT) for both in some]
                await asyncio.gather(*(self._push(case) for case in cases if case.boundary.late))
                await self.finish(unsealed=2)
                for case in cases:
                    for side, gate in case.gates.items():
                        found = self.active_at.pop(gate.file.name, None)
                        assert found is not None, f"{case.ceremony} never came to {side}"
                        self._check_active(case, side, found)
                    case.open()
        self.gated.interceptor.on_reach = None

    def _look(self, gate: Path) -> None:
        self.active_at[gate.name] = self._active(gate.name.partition(".")[0])

    def _active(self, name: str) -> list[str]:
        return [one.ceremony for one in self.gated.ledger.protections(name) if one.status == "active"]

    async def _masterkeys_for(self, action: Action, number: int) -> list[str]:
        if action == "init":
            return [self.gated.fresh_name() for _ in range(number)]
        if action == "unseal":
            return await self.masterkeys(1) * number
        return await self.masterkeys(number)

    async def _start(self, name: str, action: Action, sides: Sequence[Boundary], kind: str = EVERY) -> Case:
        gated, ceremony = self.gated, names.new_ceremony_id(name, action)
        whose = ceremony if action == "unseal" else name
        # What comes later is asked for only once the ceremony waits for its custodians.
        gates = {side: Gate(gated.gates / f"{whose}.{side.gate}.{side.when}", kind) for side in sides}
        if not sides[0].late:
            for gate in gates.values():
                gate.close()
        asked, before = None, None if action == "init" else gated.active(name)
        if action == "init":
            handle = await gated.start_init(name, ceremony=ceremony)
        elif action == "unseal":
            asked = await gated.ask(name, self.made[name], ceremony=ceremony)
            handle = asked.handle
        elif action == "reshard":
            handle = await gated.start_reshard(name, self._others(name), ceremony=ceremony)
        else:
            handle = await gated.start_recover(name, ceremony=ceremony)
        case = Case(name, action, gates, handle, ceremony, before, asked)
        self.cases.append(case)
        return case

    async def _push(self, case: Case) -> None:
        await self.gated.reach(case.handle, "quorum", limit=60)
        await self.gated.idle(case.handle)
        case.close()
        await self._approve(case)

    async def _approve(self, case: Case) -> None:
        plan = await self.gated.plan(case.handle)
        decisions = [self.gated.decision(who, plan) for who in _three_with(case.before, self.lost)]
        for one in decisions:
            await case.handle.signal("approve", one)

    def _others(self, name: str) -> list[str]:
        """Three keystores, of which one is another than now."""
        now = self._keystores(name)
        return [*now[1:], *(one for one in self.gated.keystores if one not in now)]

    def _keystores(self, name: str) -> list[str]:
        return [one.keystore for one in self.gated.active(name).shards]

    # --- what must be true ------------------------------------------------------------------------------------

    def check_held(self) -> None:
        """At every boundary exactly one protection is in force: the old one before the commit, the new one after."""
        for case in self.cases:
            self._check_active(case, case.boundary, self._active(case.name))

    def _check_active(self, case: Case, at: Boundary, active: list[str]) -> None:
        old, new = [case.before.ceremony] if case.before else [], [case.ceremony]
        if not at.holds_up:
            assert active in (old, new), (case, at)
        else:
            assert active == (new if at.committed and case.action != "unseal" else old), (case, at)

    def check_again(self) -> None:
        """Of every MasterKey that was protected, one protection of its purpose is in force."""
        for case in self.cases:
            active = [one.ceremony for one in self.gated.ledger.protections(case.name) if one.status == "active"]
            assert len(active) == 1 or (active == [] and case.before is None), case

    def open(self) -> None:
        """Let everybody go on."""
        for case in self.cases:
            case.open()

    async def finish(self, *, unsealed: int = 4, refused_in: Sequence[str] = ()) -> None:
        """Every ceremony completes; what it made is in force, once, and opens; its record was written once.

        Args:
            unsealed: of how many the MasterKey is received; the others are opened by the next ceremony that changes
                them.
            refused_in: phases in which a ceremony may also end, with a reason, and with nothing changed.
        """
        cases, self.cases = self.cases, []
        for case in cases:
            if not case.boundary.late:
                phases = ("quorum", "protecting", "releasing", "reconstructing", "proving", "committing", *ENDS)
                if (await self.gated.reach(case.handle, *phases, limit=60)).phase == "quorum":
                    await self._approve(case)
        ends = {case.ceremony: await self._outcome(case) for case in cases}
        wrong = [f"{case}: {why}" for case in cases if (why := ends[case.ceremony])]
        assert all(case.boundary.phase in refused_in for case in cases if ends[case.ceremony]), wrong
        await self.collect()
        for case in [one for one in cases if ends[one.ceremony]]:
            self._stands_refused(case)
        cases = [case for case in cases if not ends[case.ceremony]]
        for case in cases:
            self._recorded_once(case)
        changed = [case for case in cases if case.action != "unseal"]
        for case in changed[:: max(1, len(changed) // unsealed)]:
            await self.unseal(case)
        self.gated.ledger.verify_chain()
        # A recovery during which the spare keystore was away does without the third shard.
        self._free += [
            name for name in dict.fromkeys(case.name for case in cases) if self.gated.active(name).count == 3
        ]

    async def _outcome(self, case: Case) -> str:
        try:
            result: Any = await ended(case.handle, 120)
        except WorkflowFailureError as error:
            return str(error.cause)
        await clean(case.handle, killed=True)
        if case.asked is not None:
            received = self.gated.receive(case.asked, UnsealResult.model_validate(result), self.made[case.name])
            assert len(received) == 32
            return ""
        kind = InitResult if case.action == "init" else ReshardResult
        made = kind.model_validate(result)
        if case.before is not None:
            assert made.kcv == case.before.kcv
        self.made[case.name] = made
        return ""

    async def collect(self) -> None:
        """Collect what nobody needs, at once."""
        await asyncio.sleep(1.1)
        handle = await self.gated.client.start_workflow(
            "CollectWorkflow",
            CollectRequest(grace_seconds=0),
            id=names.new_ceremony_id("collect", "drill"),
            task_queue=names.ORCHESTRATOR_QUEUE,
        )
        await ended(handle)

    def _stands_refused(self, case: Case) -> None:
        """It is closed with a reason, and changed nothing."""
        record, found = self.gated.ledger.ceremony(case.ceremony), self.gated.ledger.protections(case.name)
        assert record.outcome in ("refused", "failed", "expired"), case
        assert record.detail, case
        assert [one.ceremony for one in found if one.status == "active"] == (
            [case.before.ceremony] if case.before else []
        ), case
        assert "staged" not in {one.status for one in found}, case

    def _recorded_once(self, case: Case) -> None:
        """One active protection, nothing staged, the ceremony closed, and every event once."""
        ledger = self.gated.ledger
        found = ledger.protections(case.name)
        active = [one for one in found if one.status == "active"]
        assert len(active) == 1, case
        assert (active[0].digest, active[0].kcv) == (self.made[case.name].manifest.digest, self.made[case.name].kcv)
        assert {one.status for one in found} <= {"active", "retired"}, case
        assert ledger.ceremony(case.ceremony).outcome == "done"
        events = ledger.events(ceremony=case.ceremony)
        assert max(Counter(event.key for event in events).values()) == 1
        kinds = Counter(event.type for event in events)
        committed = 0 if case.action == "unseal" else 1
        for kind in ("ceremony-opened", "ceremony-closed"):
            assert kinds[kind] == 1, (case, kind)
        assert kinds["protection-committed"] == committed, case
        if committed:
            proven = {json.loads(event.body)["keystore"] for event in events if event.type == "data-key-proven"}
            assert proven >= {one.keystore for one in active[0].shards}, case

    def in_force(self, case: Case) -> InitResult:
        """What tells of the protection in force at this moment, and the KCV that its recipient had pinned before."""
        active = self.gated.active(case.name)
        assert case.before is not None
        return InitResult(
            ceremony=active.ceremony,
            master_key=case.name,
            kcv=case.before.kcv,
            manifest=Signed(document=active.manifest, signature=active.signature),
            approved_by=(),
            attempt=active.attempt,
        )

    def spare(self, case: Case) -> str:
        """The keystore in which the protection that was in force at the beginning has no shard."""
        used = {one.keystore for one in (case.before or self.gated.active(case.name)).shards}
        return next(one for one in self.gated.keystores if one not in used)

    async def unseal(self, case: Case, made: InitResult | ReshardResult | None = None) -> None:
        """Receive the MasterKey; its KCV is checked."""
        who = _three_with(self.gated.active(case.name))
        received = await self.gated.unseal(case.name, made or self.made[case.name], who)
        assert len(received) == 32


def _three_with(protection: ProtectionRecord | None, lost: str = "") -> tuple[str, ...]:
    """Three custodians, those of the shards of a protection among them, but of a lost one."""
    shards = Manifest.parse(protection.manifest.encode()).shards if protection else ()
    first = [shard.custodians[0] for shard in shards if shard.binding.keystore != lost]
    return tuple(dict.fromkeys([*first, *CUSTODIANS]))[:3]
