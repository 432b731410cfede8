"""The orchestrator's activities: the ledger, and the roster that plans are made from.

Every write is idempotent, so a repeated attempt after a crash changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from temporalio import activity

from activities.ledger.records import CeremonyRecord, ProtectionRecord, ShardRecord
from activities.ledger.store import Ledger, NewEvent
from activities.roster import RosterSource
from workflows.contracts import names
from workflows.contracts.authority import parse_plan
from workflows.contracts.canonical import Signed
from workflows.contracts.documents import Manifest
from workflows.contracts.errors import LedgerConflict, MasterKeyError, NameTaken, NotKnown
from workflows.contracts.messages import (
    BeginCeremony,
    Begun,
    CeremonySummary,
    CloseCeremony,
    Commit,
    DrillResult,
    Event,
    PlanMade,
    ProtectionSummary,
    RecordEvents,
    Report,
    ReportRequest,
    Stage,
    StoredProtection,
    StoredShard,
)
from workflows.failures import as_failure

P = ParamSpec("P")
R = TypeVar("R")


def _translated(function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except MasterKeyError as error:
            raise as_failure(error) from None
        except ValueError:
            # A record that cannot be: retrying would not mend it, and its text may quote what was given.
            raise as_failure(LedgerConflict("the ledger was given a malformed record")) from None

    return call


class LedgerActivities:
    """Activities over one ledger; they block, and run in threads."""

    def __init__(self, ledger: Ledger, roster: RosterSource) -> None:
        self._ledger = ledger
        self._roster = roster

    def all(self) -> Sequence[Callable[..., Any]]:
        """Everything to register with a Temporal worker."""
        return [
            self.begin_ceremony,
            self.record_plan,
            self.record_events,
            self.stage_protection,
            self.commit_protection,
            self.close_ceremony,
            self.read_report,
        ]

    @activity.defn(name=names.BEGIN_CEREMONY)
    @_translated
    def begin_ceremony(self, request: BeginCeremony) -> Begun:
        """Open a ceremony, and give what its plan is made from.

        A ceremony that changes a MasterKey closes those before it that were ended from outside: Temporal
        runs at most one at a time, so a record that is open still belongs to none.
        """
        record = CeremonyRecord(
            ceremony=request.ceremony,
            workflow_id=request.workflow_id,
            master_key=request.master_key,
            action=request.action,
            phase="planning",
            opened_at=request.opened_at,
        )
        body = {"request": request.request.model_dump() if request.request else None}
        self._ledger.open_ceremony(record, body)
        if request.action in names.CHANGING:
            self._close_abandoned(request)
        chain = self._roster.load()
        known = [key for key in self._ledger.master_keys() if key.master_key == request.master_key]
        if request.action == "init" and known:
            raise NameTaken(f"a MasterKey named {request.master_key} exists already")
        protection = None
        if request.manifest is not None:
            stored = self._ledger.protection(request.master_key, digest=request.manifest)
            if stored.status not in ("active", "retired"):
                raise NotKnown(f"the protection of {request.master_key} that was asked for does not serve")
            protection = _stored(stored)
        active: list[StoredProtection] = []
        if request.all_active:
            if not known:
                raise NotKnown(f"there is no MasterKey {request.master_key}")
            found = self._ledger.protections(request.master_key)
            active = [_stored(record) for record in found if record.status == "active"]
        return Begun(
            roster=chain.current.canonical().decode(),
            roster_digest=chain.digest,
            protection=protection,
            active=tuple(active),
            next_epoch=known[0].epoch + 1 if known else 1,
        )

    @activity.defn(name=names.RECORD_PLAN)
    @_translated
    def record_plan(self, request: PlanMade) -> None:
        """Write down a plan, once."""
        plan = parse_plan(request.plan)
        self._ledger.set_phase(request.ceremony, request.phase, plan=request.plan, deadline=plan.expires)

    @activity.defn(name=names.RECORD_EVENTS)
    @_translated
    def record_events(self, request: RecordEvents) -> None:
        """Append events, and the phase."""
        self._ledger.record(request.ceremony, _new(request.events), request.master_key, request.phase)

    @activity.defn(name=names.STAGE_PROTECTION)
    @_translated
    def stage_protection(self, request: Stage) -> None:
        """Store a protection that does not serve yet."""
        signed = request.protection.manifest
        manifest = Manifest.parse(signed.document.encode())
        self._ledger.stage(
            ProtectionRecord(
                protection=manifest.protection,
                master_key=manifest.master_key,
                purpose=manifest.purpose,
                mode=manifest.mode,
                threshold=manifest.threshold,
                count=manifest.count,
                epoch=manifest.epoch,
                kcv=manifest.kcv,
                predecessor=manifest.predecessor,
                ceremony=request.ceremony,
                attempt=request.attempt,
                manifest=signed.document,
                signature=signed.signature,
                digest=signed.digest,
                shards=tuple(ShardRecord.model_validate(row.model_dump()) for row in request.protection.shards),
            )
        )

    @activity.defn(name=names.COMMIT_PROTECTION)
    @_translated
    def commit_protection(self, request: Commit) -> None:
        """Make a staged protection the active one, in one transaction."""
        self._ledger.commit(request.ceremony, request.attempt)

    @activity.defn(name=names.CLOSE_CEREMONY)
    @_translated
    def close_ceremony(self, request: CloseCeremony) -> None:
        """Close a ceremony; what it staged and did not commit is deleted."""
        events = _new(request.events)
        try:
            self._ledger.end_ceremony(request.ceremony, request.outcome, request.detail, events, request.master_key)
        except NotKnown:
            # It ended before it was opened here: there is nothing to close.
            for event in events:
                self._ledger.append(request.ceremony, *event, request.master_key)
            activity.logger.warning("ceremony %s was never opened in the ledger", request.ceremony)

    @activity.defn(name=names.READ_REPORT)
    @_translated
    def read_report(self, request: ReportRequest) -> Report:
        """What the ledger holds, for a command line without a database.

        Only `status` verifies the whole hash chain: its cost grows with the ledger.
        """
        wanted = [
            key.master_key
            for key in self._ledger.master_keys()
            if request.master_key in (None, key.master_key) and request.kind != "ceremonies"
        ]
        protections = [record for name in wanted for record in self._ledger.protections(name)]
        report = Report(
            protections=tuple(
                ProtectionSummary(manifest=_signed(record), status=record.status) for record in protections
            )
        )
        if request.kind == "protection":
            return report
        ceremonies = self._ledger.ceremonies(request.master_key, limit=request.limit)
        report = report.model_copy(update={"ceremonies": tuple(_summary(record) for record in ceremonies)})
        if request.kind == "ceremonies":
            return report
        head = self._ledger.verify_chain()
        drills = [self._ledger.last_event(name, names.DRILL_FINISHED) for name in wanted]
        found = tuple(DrillResult.model_validate_json(json.loads(e.body)["result"]) for e in drills if e is not None)
        return report.model_copy(update={"drills": found, "events": head.events, "head": head.digest})

    def _close_abandoned(self, request: BeginCeremony) -> None:
        for record in self._ledger.ceremonies(request.master_key, open_only=True):
            if record.action in names.CHANGING and record.ceremony != request.ceremony:
                self._ledger.discard_staged(record.ceremony)
                try:
                    self._ledger.close_ceremony(record.ceremony, "failed", "ended from outside before it was done")
                except LedgerConflict:
                    activity.logger.info("ceremony %s closed meanwhile", record.ceremony)


def _new(events: Sequence[Event]) -> list[NewEvent]:
    return [NewEvent(event.key, event.type, dict(event.body)) for event in events]


def _signed(record: ProtectionRecord) -> Signed:
    return Signed(document=record.manifest, signature=record.signature)


def _stored(record: ProtectionRecord) -> StoredProtection:
    rows = tuple(StoredShard.model_validate(row.model_dump()) for row in record.shards)
    return StoredProtection(manifest=_signed(record), shards=rows)


def _summary(record: CeremonyRecord) -> CeremonySummary:
    return CeremonySummary(
        ceremony=record.ceremony,
        workflow_id=record.workflow_id,
        action=record.action,
        master_key=record.master_key,
        phase=record.phase,
        outcome=record.outcome,
        detail=record.detail,
        opened_at=record.opened_at.isoformat(),
        closed_at=record.closed_at.isoformat() if record.closed_at else None,
    )
