"""What the ledger's own events do to its rows: the same when they are written and when they come with a bundle.

Everything goes through the triggers: a protection is staged before it is active, and active before it is retired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from activities.ledger.log.events import (
    CeremonyClosed,
    CeremonyOpened,
    LedgerEvent,
    PlanProposed,
    ProtectionCommitted,
    ProtectionDestroyed,
    ProtectionRetired,
    ProtectionStaged,
    StagedDiscarded,
    StopOrdered,
    StopsLifted,
    wrong,
)
from activities.ledger.log.records import EventRecord, ShardRecord
from activities.ledger.store import chain
from activities.ledger.store.database import WriteSession
from activities.ledger.store.models import CeremonyRow, MasterKeyRow, ProtectionRow, ShardRow, StopRow
from workflows.contracts.trust.canonical import digest, format_time

UNTOLD = "imported"
"""The phase of a ceremony that came with a bundle: no event tells how far it was."""


class Content(Protocol):
    """What is stored of a protection and is not in its events."""

    @property
    def manifest(self) -> str:
        """Canonical text."""

    @property
    def signature(self) -> str:
        """Armoured, over the manifest."""

    @property
    def shards(self) -> tuple[ShardRecord, ...]:
        """In the order of their indexes."""


def write(
    session: WriteSession,
    said: LedgerEvent,
    *,
    ceremony: str = "",
    master_key: str = "",
    content: Content | None = None,
) -> bool:
    """Append one of the ledger's own events, and do to the rows what it says; again changes nothing.

    Args:
        session: of the write transaction.
        said: the event.
        ceremony: that it belongs to, if to any.
        master_key: that it is about, if about any.
        content: of a protection that is staged.

    Returns:
        Whether it was not there before.

    Raises:
        LedgerConflict: there is another event under its key.
    """
    new = not chain.has(session, ceremony, said.key)
    event = chain.append(
        session, ceremony=ceremony, key=said.key, type_=said.TYPE, body=said.model_dump(), master_key=master_key
    )
    if new:
        apply(session, event, said, content)
    return new


def apply(session: Session, event: EventRecord, said: LedgerEvent, content: Content | None = None) -> None:
    """Do to the rows what an event says; it is the log's last.

    Args:
        session: of the write transaction.
        event: as it is in the log.
        said: what it says.
        content: of a protection that is staged; without it, no row is made.

    Raises:
        BundleInvalid: it speaks of something that is not there.
    """
    match said:
        case CeremonyOpened():
            told = said.opened.model_dump()
            name, about = event.ceremony, event.master_key
            session.add(CeremonyRow(ceremony=name, master_key=about, phase=UNTOLD, outcome="", detail="", **told))
        case PlanProposed():
            ceremony = _ceremony(session, event)
            ceremony.plan, ceremony.plan_digest = said.plan, digest(said.plan.encode())
            ceremony.deadline = format_time(said.deadline) if said.deadline else ceremony.deadline
        case CeremonyClosed():
            ceremony = _ceremony(session, event)
            ceremony.outcome, ceremony.detail, ceremony.closed_at = said.outcome, said.detail, format_time(event.at)
        case ProtectionCommitted():
            _commit(session, event, said)
        case ProtectionStaged():
            if content is not None:
                _stage(session, event, said, content)
        case StagedDiscarded():
            for row in staged_by(session, event.ceremony):
                session.delete(row)
        case ProtectionDestroyed():
            row = _protection(session, event, said.digest)
            row.status = "destroyed"
            session.flush()  # the triggers want the status first, then the shards
            session.execute(delete(ShardRow).where(ShardRow.protection == row.protection))
            session.expire(row, ["shards"])
        case ProtectionRetired():
            _protection(session, event, said.digest).status = "retired"
        case StopOrdered():
            at, signed = format_time(event.at), said.model_dump()
            session.add(StopRow(digest=said.digest, master_key=event.master_key, ordered_at=at, **signed))
        case StopsLifted():
            for stop in session.scalars(
                select(StopRow).where(StopRow.digest.in_(said.stops), StopRow.lifted_at.is_(None))
            ):
                stop.lifted_at, stop.lifted_by = format_time(event.at), event.ceremony
    session.flush()


def staged_by(session: Session, ceremony: str) -> Sequence[ProtectionRow]:
    """What a ceremony staged, and neither committed nor discarded, in the order of its attempts."""
    query = select(ProtectionRow).filter_by(ceremony=ceremony, status="staged").order_by(ProtectionRow.attempt)
    return session.scalars(query).all()


def _stage(session: Session, event: EventRecord, said: ProtectionStaged, content: Content) -> None:
    row = ProtectionRow(
        **said.model_dump(),
        master_key=event.master_key,
        ceremony=event.ceremony,
        manifest=content.manifest,
        signature=content.signature,
        status="staged",
    )
    session.add(row)
    session.flush()
    session.add_all(ShardRow(protection=said.protection, **shard.model_dump()) for shard in content.shards)
    session.flush()
    session.expire(row, ["shards"])


def _commit(session: Session, event: EventRecord, said: ProtectionCommitted) -> None:
    if session.get(MasterKeyRow, event.master_key) is None:
        created = format_time(event.at)
        session.add(MasterKeyRow(name=event.master_key, kcv=said.kcv, ceremony=event.ceremony, created_at=created))
    if said.retired is not None:
        retired = _protection(session, event, said.retired)
        retired.status = "retired"
        retired.destroy_after = format_time(said.destroy_after) if said.destroy_after else None
        session.flush()  # the schema allows one active protection for each purpose at any moment
    _protection(session, event, said.digest).status = "active"
    session.flush()
    for row in staged_by(session, event.ceremony):
        session.delete(row)


def _ceremony(session: Session, event: EventRecord) -> CeremonyRow:
    row = session.get(CeremonyRow, event.ceremony)
    if row is None:
        raise wrong(event, "its ceremony is not in the ledger")
    return row


def _protection(session: Session, event: EventRecord, manifest: str) -> ProtectionRow:
    row = session.scalars(select(ProtectionRow).filter_by(digest=manifest)).one_or_none()
    if row is None:
        raise wrong(event, "its protection is not in the ledger")
    return row
