"""Ceremonies in the ledger: opened, moved from phase to phase, closed once.

Every function runs in a write transaction, and again changes nothing: an activity may have been killed
after the commit and before its answer.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from activities.ledger.log.records import CeremonyRecord, read_row
from activities.ledger.store import chain
from activities.ledger.store.models import Ceremony, Event
from workflows.contracts.messages.ledger import Outcome
from workflows.contracts.names import parts_of
from workflows.contracts.trust.canonical import digest, format_time
from workflows.contracts.trust.errors import CeremonyEnded, LedgerConflict, NotKnown
from workflows.contracts.trust.plan import parse_plan


def find(session: Session, ceremony: str) -> Ceremony:
    """The ceremony's row.

    Raises:
        NotKnown: there is none.
    """
    row = session.get(Ceremony, ceremony)
    if row is None:
        raise NotKnown(f"there is no ceremony {ceremony!r}", subject=ceremony)
    return row


def find_open(session: Session, ceremony: str) -> Ceremony:
    """The row of a ceremony that may still do something.

    Raises:
        NotKnown: there is none.
        CeremonyEnded: it is closed.
    """
    row = find(session, ceremony)
    if row.outcome:
        raise CeremonyEnded(f"ceremony {ceremony} is over: {row.outcome}", subject=ceremony)
    return row


def to_record(row: Ceremony) -> CeremonyRecord:
    """The record of a row.

    Raises:
        LedgerCorrupt: the plan is not the one of its digest.
    """
    record = read_row(CeremonyRecord, row)
    record.verify()
    return record


def open_(session: Session, record: CeremonyRecord, event_body: dict[str, Any], now: datetime) -> CeremonyRecord:
    """See `Ledger.open_ceremony`."""
    record.verify()
    if record.outcome or record.closed_at:
        raise LedgerConflict(f"ceremony {record.ceremony} cannot begin closed", subject=record.ceremony)
    if parts_of(record.ceremony) not in (None, (record.master_key, record.action)):
        # A bundle is refused in which the two differ: whoever can start workflows must not spoil it.
        raise LedgerConflict(
            f"the id {record.ceremony} is not of {record.action} {record.master_key}", subject=record.ceremony
        )
    row = session.get(Ceremony, record.ceremony)
    made = row is None
    if row is None:
        row = Ceremony(**record.model_dump())
        session.add(row)
    else:
        told = record.model_dump(include={"workflow_id", "master_key", "action", "opened_at"})
        # What may come later is compared only if it was given now.
        told |= record.model_dump(include={"plan", "deadline"}, exclude_none=True)
        if any(getattr(row, field) != value for field, value in told.items()):
            raise LedgerConflict(f"ceremony {record.ceremony} is another already", subject=record.ceremony)
    chain.append(
        session,
        ceremony=record.ceremony,
        key="ledger:ceremony-opened",
        type_="ceremony-opened",
        body={**event_body, "opened": record.model_dump(include={"workflow_id", "action", "opened_at"})},
        master_key=record.master_key,
        now=now,
    )
    if record.plan is not None and made:
        _plan_made(session, record, now)
    return to_record(row)


def set_phase(
    session: Session, ceremony: str, phase: str, *, plan: str | None, deadline: datetime | None, now: datetime
) -> None:
    """See `Ledger.set_phase`."""
    row = find(session, ceremony)
    change = CeremonyRecord.model_validate(
        {
            **to_record(row).model_dump(),
            "phase": phase,
            **({} if plan is None else {"plan": plan, "plan_digest": digest(plan.encode())}),
            **({} if deadline is None else {"deadline": deadline}),
        }
    )
    replaces = row.plan is not None and change.plan != row.plan
    if replaces:
        _check_replacement(session, row, change)
    told = change.model_dump(include={"phase", "plan", "plan_digest", "deadline"})
    if all(getattr(row, field) == value for field, value in told.items()):
        return
    find_open(session, ceremony)
    planned = plan is not None and (replaces or row.plan is None)
    for field, value in told.items():
        setattr(row, field, value)
    if planned:
        _plan_made(session, change, now)


def close(session: Session, ceremony: str, outcome: Outcome, detail: str, now: datetime) -> None:
    """See `Ledger.close_ceremony`."""
    row = find(session, ceremony)
    if row.outcome and (row.outcome, row.detail) != (outcome, detail):
        raise LedgerConflict(f"ceremony {ceremony} is over already: {row.outcome}", subject=ceremony)
    if row.outcome:
        return
    row.outcome, row.detail, row.closed_at = outcome, detail, format_time(now)
    chain.append(
        session,
        ceremony=ceremony,
        key="ledger:ceremony-closed",
        type_="ceremony-closed",
        body={"outcome": outcome, "detail": detail},
        master_key=row.master_key,
        now=now,
    )


def _check_replacement(session: Session, row: Ceremony, change: CeremonyRecord) -> None:
    """Only a recovery takes another plan, of its own, and never one that was replaced before."""
    if row.action != "recover" or parse_plan(str(change.plan)).ceremony != row.ceremony:
        raise LedgerConflict(f"ceremony {row.ceremony} has another plan already", subject=row.ceremony)
    made = select(Event.seq).filter_by(ceremony=row.ceremony, key=_plan_key(change))
    if session.scalar(made) is not None:
        # An activity that was thought dead, and comes late.
        raise LedgerConflict(f"this plan of ceremony {row.ceremony} was replaced", subject=row.ceremony)


def _plan_made(session: Session, record: CeremonyRecord, now: datetime) -> None:
    chain.append(
        session,
        ceremony=record.ceremony,
        key=_plan_key(record),
        type_="plan-made",
        body=record.model_dump(include={"plan", "deadline"}),
        master_key=record.master_key,
        now=now,
    )


def _plan_key(record: CeremonyRecord) -> str:
    return f"ledger:plan-made:{record.plan_digest}"
