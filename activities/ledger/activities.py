"""The orchestrator's activities: the ledger, and the roster that plans are made from.

Every write is idempotent, so a repeated attempt after a crash changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from temporalio import activity

from activities.ledger.bundle.export import export
from activities.ledger.bundle.places import Place, file_name, write_everywhere
from activities.ledger.log.records import CeremonyRecord, ProtectionRecord, ShardRecord
from activities.ledger.store.begin import begin
from activities.ledger.store.ledger import Ledger
from activities.roster import RosterSource
from workflows.calls.failures import as_failure
from workflows.contracts import names
from workflows.contracts.messages.ledger import (
    BeginCeremony,
    Begun,
    BundleExported,
    CloseCeremony,
    Collect,
    Collected,
    Commit,
    ExecuteOrder,
    ExportBundle,
    HoldingRecorded,
    PlanMade,
    RecordEvents,
    RecordHolding,
    Stage,
)
from workflows.contracts.messages.report import CeremonySummary, ProtectionSummary, Report, ReportRequest
from workflows.contracts.messages.results import DrillResult
from workflows.contracts.trust.canonical import format_time
from workflows.contracts.trust.errors import MasterKeyError, PlanInvalid
from workflows.contracts.trust.plan import parse_plan
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.service_errors import CeremonyEnded, LedgerConflict, NotKnown

ABANDONED = "ended from outside before it was done"
"""What stands in the record of a ceremony that did not close itself."""

_MOST_OPEN = 100_000
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

    def __init__(
        self,
        ledger: Ledger,
        roster: RosterSource,
        places: Sequence[Place] = (),
        ended: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Prepare.

        Args:
            ledger: upgraded.
            roster: of this host.
            places: where bundles are written to.
            ended: whether a ceremony's workflow has ended, as Temporal says; asked in threads.
        """
        self._ledger = ledger
        self._roster = roster
        self._places = places
        self._ended = ended

    def all(self) -> Sequence[Callable[..., Any]]:
        """Everything to register with a Temporal worker."""
        return [
            self.begin_ceremony,
            self.record_plan,
            self.record_events,
            self.stage_protection,
            self.commit_protection,
            self.execute_order,
            self.record_holding,
            self.export_bundle,
            self.collect,
            self.close_ceremony,
            self.read_report,
        ]

    @activity.defn(name=names.BEGIN_CEREMONY)
    @_translated
    def begin_ceremony(self, request: BeginCeremony) -> Begun:
        """Open a ceremony, and give what its plan is made from; see `activities.ledger.store.begin`.

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
        if outcome := self._ledger.open_ceremony(record, request.request, request.build).outcome:
            # To the ledger a repeated activity, but a ceremony that was started again within a second of its start.
            raise CeremonyEnded(f"ceremony {request.ceremony} is over already: {outcome}", subject=request.ceremony)
        if request.action in names.CHANGING:
            self._close_abandoned(request)
        return begin(self._ledger, self._roster.load(), request)

    @activity.defn(name=names.RECORD_PLAN)
    @_translated
    def record_plan(self, request: PlanMade) -> None:
        """Write down a plan, once; a recovery may replace it by another of its own."""
        plan = parse_plan(request.plan)
        if plan.ceremony != request.ceremony:
            raise LedgerConflict(f"the plan is of ceremony {plan.ceremony}", subject=request.ceremony)
        self._ledger.set_plan(request.ceremony, request.phase, request.plan, plan.expires)

    @activity.defn(name=names.RECORD_EVENTS)
    @_translated
    def record_events(self, request: RecordEvents) -> None:
        """Append events, and the phase."""
        self._ledger.record(request.ceremony, request.events, request.master_key, request.phase)

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
        hours = request.retention_hours
        retention = None if hours is None else timedelta(hours=hours)
        self._ledger.commit(request.ceremony, request.attempt, retention=retention)

    @activity.defn(name=names.EXECUTE_ORDER)
    @_translated
    def execute_order(self, request: ExecuteOrder) -> None:
        """Do what the quorum has ordered: lift stops, retire a protection, or destroy a retired one."""
        if self._ledger.ceremony(request.ceremony).master_key != request.master_key:
            raise LedgerConflict(f"the order is not about {request.master_key}", subject=request.ceremony)
        if request.action == "lift":
            if not request.stops:
                raise PlanInvalid("the order names no stop to lift", subject=request.ceremony)
            self._ledger.lift_stops(request.ceremony, request.stops)
        elif request.manifest is None:
            raise PlanInvalid(f"the order names no protection to {request.action}", subject=request.ceremony)
        elif request.action == "retire":
            self._ledger.retire(request.ceremony, request.manifest)
        else:
            self._ledger.destroy(request.ceremony, request.manifest)

    @activity.defn(name=names.RECORD_HOLDING)
    @_translated
    def record_holding(self, request: RecordHolding) -> HoldingRecorded:
        """Record that a recipient holds a MasterKey, or no more, and tell which stops are in force."""
        stops = self._ledger.hold(
            request.ceremony,
            request.master_key,
            request.workflow_id,
            ended=request.ended,
            over=request.state == "ended",
        )
        return HoldingRecorded(stops=tuple(stop.signed for stop in stops))

    @activity.defn(name=names.EXPORT_BUNDLE)
    @_translated
    def export_bundle(self, request: ExportBundle) -> BundleExported:
        """Write the bundle to every configured place; none is an answer too."""
        if not self._places:
            return BundleExported()
        exported = export(self._ledger, self._roster)
        places = write_everywhere(self._places, file_name(exported.head), exported.data)
        return BundleExported(places=places, digest=exported.head.digest)

    @activity.defn(name=names.COLLECT)
    @_translated
    def collect(self, request: Collect) -> Collected:
        """Discard what ended ceremonies left staged, and destroy what was kept for long enough.

        Ceremonies that were ended from outside, or that no build could go on with, are closed first.
        """
        for record in self._ledger.ceremonies(open_only=True, limit=_MOST_OPEN):
            if record.opened_at < request.older_than and self._ended(record.ceremony):
                self._abandon(record)
        discarded = self._ledger.collect_staged(request.older_than)
        for ceremony in discarded:
            self._ledger.discard_staged(ceremony)
        return Collected(discarded=tuple(discarded), destroyed=tuple(self._ledger.destroy_due()))

    @activity.defn(name=names.CLOSE_CEREMONY)
    @_translated
    def close_ceremony(self, request: CloseCeremony) -> None:
        """Close a ceremony; what it staged and did not commit is deleted."""
        about, events = request.master_key, request.events
        try:
            self._ledger.end_ceremony(request.ceremony, request.outcome, request.detail, about, events)
        except NotKnown:
            # It ended before it was opened here: there is nothing to close.
            self._ledger.record(request.ceremony, events, about)
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
                ProtectionSummary(
                    manifest=record.signed,
                    status=record.status,
                    destroy_after=format_time(record.destroy_after) if record.destroy_after else None,
                )
                for record in protections
            ),
            stops=tuple(stop.signed for stop in self._ledger.stops_in_force() if stop.master_key in wanted),
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
                self._abandon(record)

    def _abandon(self, record: CeremonyRecord) -> None:
        try:
            self._ledger.end_ceremony(record.ceremony, "failed", ABANDONED, record.master_key)
        except LedgerConflict:
            activity.logger.info("ceremony %s closed meanwhile", record.ceremony)


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
