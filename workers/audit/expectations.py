"""What the event log must say of a ceremony, concluded from its workflows' histories, and what it says.

Every record that a workflow asked the ledger to make is in its history, as an activity's input. From those follows
every event of the ceremony, to the field: more, fewer or others are differences. Where an activity was never answered
(the process died, the ceremony was ended from outside), what it asked for may be there or not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from activities.ledger.log.events import (
    CeremonyClosed,
    CeremonyOpened,
    HoldingBegan,
    HoldingEnded,
    LedgerEvent,
    PlanProposed,
    ProtectionCommitted,
    ProtectionDestroyed,
    ProtectionRetired,
    ProtectionStaged,
    StopOrdered,
    StopsLifted,
)
from activities.ledger.log.records import EventRecord
from activities.ledger.log.signed import read_object
from workers.audit.histories import Call
from workflows.contracts import names
from workflows.contracts.messages.ledger import (
    BeginCeremony,
    CloseCeremony,
    Commit,
    ExecuteOrder,
    PlanMade,
    RecordEvents,
    RecordHolding,
    Stage,
)
from workflows.contracts.trust.canonical import canonical_json, format_time
from workflows.contracts.trust.errors import MasterKeyError
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.protection import Manifest

CLOCKS_APART = timedelta(minutes=5)
"""How far the clocks of Temporal's and of the ledger's host may be apart."""
HOLDING = (HoldingBegan.key_of(), HoldingEnded.key_of())
"""How the keys begin of what a `HoldWorkflow` has recorded, under the ceremony of the unseal."""


@dataclass(frozen=True)
class Expected:
    """An event that a workflow asked for.

    Attributes:
        body: fields that it must have, as JSON has them.
        needed: the activity was answered, so the event must be there.
        open: fields that it has besides, of whatever value.
        since: when the activity was scheduled.
        until: when it was answered, if it was.
        kept: for a commit: how long what it replaces is kept; None: until its destruction is ordered.
    """

    key: str
    type: str
    master_key: str
    body: Mapping[str, Any]
    needed: bool
    since: datetime
    until: datetime | None
    open: frozenset[str] = frozenset()
    kept: timedelta | None = None

    def disagreement(self, event: EventRecord) -> str:
        """What an event under this key says otherwise; empty if nothing."""
        said = read_object(event.body)
        if (event.type, event.master_key) != (self.type, self.master_key):
            return f"it is {event.type} of {event.master_key or 'nothing'}, not {self.type} of {self.master_key}"
        other = {name for name, value in self.body.items() if name not in said or said[name] != value}
        other |= set(said) - set(self.body) - self.open
        if self.type == ProtectionCommitted.TYPE:
            due = format_time(event.at + self.kept) if self.kept is not None and said.get("retired") else None
            other |= set() if said.get("destroy_after", "") == due else {"destroy_after"}
        if other:
            return f"it says something else than the workflow recorded: {', '.join(sorted(other))}"
        if event.at < self.since - CLOCKS_APART or (self.until is not None and event.at > self.until + CLOCKS_APART):
            return (
                f"it is dated {format_time(event.at)}, and the workflow recorded it at {self.since:%Y-%m-%d %H:%M:%S}"
            )
        return ""


@dataclass
class Expectations:
    """All events that the workflows of one ceremony asked for.

    Attributes:
        by_key: the same may be asked for more than once: after a crash, or by a second run.
        staged: digests of what was staged.
        begun: the ledger has opened the ceremony.
        unreadable: activities whose input is none of ours.
    """

    by_key: dict[str, list[Expected]] = field(default_factory=dict)
    staged: set[str] = field(default_factory=set)
    begun: bool = False
    unreadable: list[str] = field(default_factory=list)
    _attempts: dict[int, tuple[str, ProtectionStaged]] = field(default_factory=dict)

    def take(self, call: Call) -> None:
        """Learn from one activity."""
        reader = _READERS.get(call.activity)
        try:
            for one in reader(self, call) if reader else ():
                self.by_key.setdefault(one.key, []).append(one)
        except (MasterKeyError, ValueError) as error:
            self.unreadable.append(
                f"event {call.number} of the history ({call.activity}) has an input that is none of ours"
                f" ({type(error).__name__})"
            )

    # --- one reader for each activity over the ledger ---------------------------------------------------------

    def _begin(self, call: Call) -> Iterator[Expected]:
        asked = BeginCeremony.model_validate_json(call.data)
        self.begun = self.begun or call.done
        opened = CeremonyOpened.Said(workflow_id=asked.workflow_id, action=asked.action, opened_at=asked.opened_at)
        said = CeremonyOpened(request=asked.request, opened=opened, build=asked.build)
        yield _own(call, asked.master_key, said)
        if asked.stop is not None:
            yield _own(call, asked.master_key, StopOrdered(**asked.stop.model_dump()))

    def _plan(self, call: Call) -> Iterator[Expected]:
        asked = PlanMade.model_validate_json(call.data)
        deadline = Plan.parse(asked.plan.encode()).expires
        yield _own(call, asked.master_key, PlanProposed(plan=asked.plan, deadline=deadline))

    def _events(self, call: Call) -> Iterator[Expected]:
        kind = CloseCeremony if call.activity == names.CLOSE_CEREMONY else RecordEvents
        asked = kind.model_validate_json(call.data)
        for event in asked.events:
            yield Expected(
                event.key, event.type, asked.master_key, _plain(event.body), call.done, call.since, call.until
            )
        if isinstance(asked, CloseCeremony):
            # One that failed before it was opened has no record to close.
            closed = CeremonyClosed(outcome=asked.outcome, detail=asked.detail)
            yield _own(call, asked.master_key, closed, needed=call.done and self.begun)

    def _stage(self, call: Call) -> Iterator[Expected]:
        asked = Stage.model_validate_json(call.data)
        signed = asked.protection.manifest
        manifest = Manifest.parse(signed.document.encode())
        staged = ProtectionStaged.of(manifest, attempt=asked.attempt, digest=signed.digest)
        self._attempts[asked.attempt] = (manifest.master_key, staged)
        self.staged.add(signed.digest)
        yield _own(call, manifest.master_key, staged)

    def _commit(self, call: Call) -> Iterator[Expected]:
        asked = Commit.model_validate_json(call.data)
        if asked.attempt not in self._attempts:
            raise ValueError("it commits what was not staged")
        master_key, staged = self._attempts[asked.attempt]
        committed = ProtectionCommitted.of(staged, retired=staged.predecessor, discarded=(), destroy_after=None)
        kept = None if asked.retention_hours is None else timedelta(hours=asked.retention_hours)
        yield _own(call, master_key, committed, open_={"discarded", "destroy_after"}, kept=kept)

    def _order(self, call: Call) -> Iterator[Expected]:
        asked = ExecuteOrder.model_validate_json(call.data)
        if asked.action == "lift":
            yield _own(call, asked.master_key, StopsLifted(stops=tuple(sorted(set(asked.stops)))))
            return
        # Of what it is about, the workflow told the ledger no more than the digest: the rest is open.
        retired = ProtectionRetired(digest=str(asked.manifest), purpose="primary", epoch=0)
        if asked.action == "retire":
            yield _own(call, asked.master_key, retired, open_={"purpose", "epoch"})
        else:
            destroyed = ProtectionDestroyed.of(retired, threshold=0, keys=(), scheduled=None)
            yield _own(call, asked.master_key, destroyed, open_={"purpose", "epoch", "threshold", "keys"})

    def _holding(self, call: Call) -> Iterator[Expected]:
        asked = RecordHolding.model_validate_json(call.data)
        began = HoldingBegan(workflow_id=asked.workflow_id)
        ended = HoldingEnded(workflow_id=asked.workflow_id, ended=asked.ended)
        yield _own(call, asked.master_key, ended if asked.state == "ended" else began)


_READERS: Mapping[str, Callable[[Expectations, Call], Iterator[Expected]]] = {
    names.BEGIN_CEREMONY: Expectations._begin,
    names.RECORD_PLAN: Expectations._plan,
    names.RECORD_EVENTS: Expectations._events,
    names.CLOSE_CEREMONY: Expectations._events,
    names.STAGE_PROTECTION: Expectations._stage,
    names.COMMIT_PROTECTION: Expectations._commit,
    names.EXECUTE_ORDER: Expectations._order,
    names.RECORD_HOLDING: Expectations._holding,
}


def _own(
    call: Call,
    master_key: str,
    said: LedgerEvent,
    *,
    needed: bool | None = None,
    open_: Collection[str] = (),
    kept: timedelta | None = None,
) -> Expected:
    """One of the ledger's own events; `open_` are fields of which the workflow's history does not tell the value."""
    needed = call.done if needed is None else needed
    body = _plain(said.model_dump(exclude=set(open_)))
    return Expected(said.key, said.TYPE, master_key, body, needed, call.since, call.until, frozenset(open_), kept)


def _plain(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body as it comes back from the event log; raises ValueError if the ledger would not have taken it."""
    return read_object(canonical_json(dict(body)).decode())
