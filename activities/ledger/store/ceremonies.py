"""Ceremonies in the ledger: opened, moved from phase to phase, closed once.

To do the same again changes nothing: an activity may have been killed after the commit and before its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from activities.ledger.log.events import OWN, CeremonyClosed, CeremonyOpened, PlanProposed, RosterSeen, StagedDiscarded
from activities.ledger.log.records import CeremonyRecord, EventRecord, read_row
from activities.ledger.store import chain, rows
from activities.ledger.store.database import WriteSession
from activities.ledger.store.models import CeremonyRow, ProtectionRow
from workflows.contracts.messages.ledger import Event, Outcome
from workflows.contracts.names import parts_of
from workflows.contracts.trust.canonical import Signed, format_time
from workflows.contracts.trust.plan import parse_plan
from workflows.contracts.trust.service_errors import CeremonyEnded, LedgerConflict, NotKnown


def find(session: Session, ceremony: str) -> CeremonyRow:
    """The ceremony's row.

    Raises:
        NotKnown: there is none.
    """
    row = session.get(CeremonyRow, ceremony)
    if row is None:
        raise NotKnown(f"there is no ceremony {ceremony!r}", subject=ceremony)
    return row


def find_open(session: Session, ceremony: str) -> CeremonyRow:
    """The row of a ceremony that may still do something.

    Raises:
        NotKnown: there is none.
        CeremonyEnded: it is closed.
    """
    row = find(session, ceremony)
    if row.outcome:
        raise CeremonyEnded(f"ceremony {ceremony} is over: {row.outcome}", subject=ceremony)
    return row


def to_record(row: CeremonyRow) -> CeremonyRecord:
    """The record of a row.

    Raises:
        LedgerCorrupt: the plan is not the one of its digest.
    """
    record = read_row(CeremonyRecord, row)
    record.verify()
    return record


def get(session: Session, ceremony: str) -> CeremonyRecord:
    """One ceremony.

    Raises:
        NotKnown: there is no such ceremony.
        LedgerCorrupt: its plan was altered.
    """
    return to_record(find(session, ceremony))


def newest(
    session: Session, master_key: str | None = None, *, open_only: bool = False, limit: int = 100
) -> list[CeremonyRecord]:
    """Ceremonies, the newest first.

    Raises:
        LedgerCorrupt: a plan was altered.
    """
    query = select(CeremonyRow).order_by(CeremonyRow.opened_at.desc(), CeremonyRow.ceremony.desc()).limit(limit)
    if master_key is not None:
        query = query.filter_by(master_key=master_key)
    if open_only:
        query = query.filter_by(outcome="")
    return [to_record(row) for row in session.scalars(query)]


def open_(
    session: WriteSession, record: CeremonyRecord, request: Signed | None = None, build: str | None = None
) -> CeremonyRecord:
    """Record that a ceremony began, with the event `ceremony-opened`.

    Args:
        session: of the write transaction.
        record: as it begins: without plan, deadline and outcome.
        request: the recipient's, as it came.
        build: of the orchestrator that began it.

    Returns:
        What is recorded of it: of one that was opened before, how far it is.

    Raises:
        LedgerConflict: another ceremony has this id, or the id is of another MasterKey or action.
    """
    if record.plan or record.deadline or record.outcome or record.closed_at:
        raise LedgerConflict(f"ceremony {record.ceremony} cannot begin with a plan or an end", subject=record.ceremony)
    if parts_of(record.ceremony) not in (None, (record.master_key, record.action)):
        # A bundle is refused in which the two differ: whoever can start workflows must not spoil it.
        raise LedgerConflict(
            f"the id {record.ceremony} is not of {record.action} {record.master_key}", subject=record.ceremony
        )
    row = session.get(CeremonyRow, record.ceremony)
    told = record.model_dump(include={"workflow_id", "master_key", "action", "opened_at"})
    if row is not None and any(getattr(row, field) != value for field, value in told.items()):
        raise LedgerConflict(f"ceremony {record.ceremony} is another already", subject=record.ceremony)
    opened = CeremonyOpened.Said(workflow_id=record.workflow_id, action=record.action, opened_at=record.opened_at)
    said = CeremonyOpened(request=request, opened=opened, build=build)
    if rows.write(session, said, ceremony=record.ceremony, master_key=record.master_key):
        find(session, record.ceremony).phase = record.phase
    return get(session, record.ceremony)


def set_phase(session: WriteSession, ceremony: str, phase: str) -> None:
    """Record how far a ceremony is.

    Raises:
        NotKnown: there is no such ceremony.
        CeremonyEnded: it is closed, and was not there.
    """
    if find(session, ceremony).phase != phase:
        find_open(session, ceremony).phase = phase


def set_plan(session: WriteSession, ceremony: str, phase: str, plan: str, deadline: datetime | None = None) -> None:
    """Record a ceremony's plan, with the event `plan-made`, and how far it is.

    A recovery may take another plan while it is open, as long as that is a plan of this very ceremony.

    Raises:
        NotKnown: there is no such ceremony.
        CeremonyEnded: it is closed.
        LedgerConflict: it has another plan already, or had this one before and took another.
    """
    row, made = find(session, ceremony), PlanProposed(plan=plan, deadline=deadline)
    if row.plan != plan:
        if row.plan is not None:
            _check_replacement(session, row, made)
        find_open(session, ceremony)
    rows.write(session, made, ceremony=ceremony, master_key=row.master_key)
    set_phase(session, ceremony, phase)


def close(session: WriteSession, ceremony: str, outcome: Outcome, detail: str = "") -> None:
    """Record that a ceremony ended, with the event `ceremony-closed`.

    Raises:
        NotKnown: there is no such ceremony.
        LedgerConflict: it ended otherwise already.
    """
    row = find(session, ceremony)
    if row.outcome and (row.outcome, row.detail) != (outcome, detail):
        raise LedgerConflict(f"ceremony {ceremony} is over already: {row.outcome}", subject=ceremony)
    said = CeremonyClosed(outcome=outcome, detail=detail)
    rows.write(session, said, ceremony=ceremony, master_key=row.master_key)


def end(
    session: WriteSession, ceremony: str, outcome: Outcome, detail: str, master_key: str, events: Sequence[Event] = ()
) -> None:
    """Append a ceremony's last events, delete what it staged and did not commit, and close it: all or nothing.

    Raises:
        As `record`, `discard_staged` and `close`.
    """
    record(session, ceremony, events, master_key)
    discard_staged(session, ceremony)
    close(session, ceremony, outcome, detail)


def discard_staged(session: WriteSession, ceremony: str) -> int:
    """Delete what a ceremony staged and did not commit, with the event `staged-discarded` if any.

    Returns:
        How many protections that were.
    """
    staged = rows.staged_by(session, ceremony)
    if staged:
        said = StagedDiscarded(discarded=tuple(row.digest for row in staged))
        rows.write(session, said, ceremony=ceremony, master_key=staged[0].master_key)
    return len(staged)


def collect_staged(session: Session, older_than: datetime) -> list[str]:
    """The ceremonies that closed before a time and left something staged; for `discard_staged`."""
    left = select(ProtectionRow.ceremony).where(ProtectionRow.status == "staged")
    query = select(CeremonyRow.ceremony).where(
        CeremonyRow.closed_at < format_time(older_than), CeremonyRow.ceremony.in_(left)
    )
    return list(session.scalars(query.order_by(CeremonyRow.ceremony)))


def append(
    session: WriteSession, ceremony: str, key: str, type_: str, body: dict[str, Any], master_key: str = ""
) -> EventRecord:
    """Append an event of a workflow, once for each ceremony and key; the same again returns what is there.

    Args:
        session: of the write transaction.
        ceremony: id, or "" for an event that belongs to none.
        key: 1 to 200 printable ASCII characters; those that begin with `ledger:` are the ledger's own.
        type_: lower case and hyphens.
        body: JSON; not secret.
        master_key: name, or "".

    Raises:
        LedgerConflict: another event has this key, the key is the ledger's own, or the ceremony is of another
            MasterKey.
        ValueError: one of them is not of its form.
    """
    row = session.get(CeremonyRow, ceremony)
    if row is not None and row.master_key != master_key:
        raise LedgerConflict(f"ceremony {ceremony} is about {row.master_key}", subject=ceremony)
    if key.startswith(OWN):
        raise LedgerConflict(f"the event key {key!r} is the ledger's own")
    return chain.append(session, ceremony=ceremony, key=key, type_=type_, body=body, master_key=master_key)


def record(
    session: WriteSession, ceremony: str, events: Sequence[Event], master_key: str, phase: str | None = None
) -> None:
    """Append events of a ceremony, and record how far it is, if that is told: all or nothing.

    Raises:
        As `append` and `set_phase`.
    """
    for event in events:
        append(session, ceremony, event.key, event.type, event.body, master_key)
    if phase is not None:
        set_phase(session, ceremony, phase)


def note_roster(session: WriteSession, number: int, digest: str) -> None:
    """Record that a roster version is in force, with the event `roster-seen`; once for each."""
    rows.write(session, RosterSeen(number=number, digest=digest))


def _check_replacement(session: Session, row: CeremonyRow, made: PlanProposed) -> None:
    """Only a recovery takes another plan, of its own, and never one that was replaced before."""
    if row.action != "recover" or parse_plan(made.plan).ceremony != row.ceremony:
        raise LedgerConflict(f"ceremony {row.ceremony} has another plan already", subject=row.ceremony)
    if chain.has(session, row.ceremony, made.key):
        # An activity that was thought dead, and comes late.
        raise LedgerConflict(f"this plan of ceremony {row.ceremony} was replaced", subject=row.ceremony)
