"""Replaying events into a ledger: each is appended as it is, and the rows change as they changed then.

Everything goes through the triggers: a protection is staged before it is active, and active before it is retired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from activities.ledger.bundle.format import BundleProtection
from activities.ledger.log.events import (
    Body,
    Closed,
    Committed,
    Destroyed,
    Discarded,
    Lifted,
    Opened,
    Planned,
    Retired,
    Staged,
    read_body,
    wrong,
)
from activities.ledger.log.records import EventRecord
from activities.ledger.log.state import past_of
from activities.ledger.store.models import Ceremony, ChainHead, Event, MasterKey, Protection, Shard, Stop
from activities.ledger.store.protections import delete_staged
from workflows.contracts.trust.canonical import Signed, digest, format_time

IMPORTED = "imported"
"""The phase of a ceremony that came with a bundle: no event tells how far it was."""


def replay_into(session: Session, events: Iterable[EventRecord], committed: Mapping[str, BundleProtection]) -> None:
    """Append events to the ledger, and do what they tell.

    Args:
        session: of a write transaction.
        events: those that follow the ledger's last, verified.
        committed: by digest, the protections that came to be committed; others are not worth a row.

    Raises:
        BundleInvalid: an event speaks of something that is not there.
    """
    head = session.get_one(ChainHead, 1)
    for event in events:
        row = Event(**event.model_dump())
        session.add(row)
        session.flush()  # the triggers want the event first, then the head
        head.seq, head.digest = event.seq, event.digest
        session.flush()
        session.expunge(row)
        body = read_body(event)
        if body is not None:
            _apply(session, event, body, committed)
            session.flush()


def _apply(session: Session, event: EventRecord, body: Body, committed: Mapping[str, BundleProtection]) -> None:
    match body:
        case Opened():
            _open(session, event, body)
        case Planned():
            ceremony = _ceremony(session, event)
            ceremony.plan, ceremony.plan_digest = body.plan, digest(body.plan.encode())
            ceremony.deadline = format_time(body.deadline) if body.deadline else ceremony.deadline
        case Closed():
            ceremony = _ceremony(session, event)
            ceremony.outcome, ceremony.detail, ceremony.closed_at = body.outcome, body.detail, format_time(event.at)
        case Committed():
            _commit(session, event, body)
        case Staged():
            if body.digest in committed:
                _stage(session, event, body, committed[body.digest])
        case Discarded():
            delete_staged(session, event.ceremony)
        case Destroyed():
            row = _protection(session, event, body.digest)
            row.status = "destroyed"
            session.flush()  # the triggers want the status first, then the shards
            session.execute(delete(Shard).where(Shard.protection == row.protection))
            session.expire(row, ["shards"])
        case Retired():
            _protection(session, event, body.digest).status = "retired"
        case Signed():
            session.add(Stop(**_stop(event, body)))
        case Lifted():
            for stop in session.scalars(select(Stop).where(Stop.digest.in_(body.stops), Stop.lifted_at.is_(None))):
                stop.lifted_at, stop.lifted_by = format_time(event.at), event.ceremony


def _open(session: Session, event: EventRecord, body: Opened) -> None:
    past = past_of(event, body)
    session.add(
        Ceremony(
            ceremony=past.ceremony,
            workflow_id=past.workflow_id,
            master_key=past.master_key,
            action=past.action,
            phase=IMPORTED,
            opened_at=format_time(past.opened_at),
            outcome="",
            detail="",
        )
    )


def _stage(session: Session, event: EventRecord, body: Staged, entry: BundleProtection) -> None:
    session.add(
        Protection(
            **body.model_dump(),
            master_key=event.master_key,
            ceremony=event.ceremony,
            manifest=entry.manifest,
            signature=entry.signature,
            status="staged",
        )
    )
    session.flush()
    session.add_all(Shard(protection=body.protection, **shard.model_dump()) for shard in entry.shards)


def _commit(session: Session, event: EventRecord, body: Committed) -> None:
    if session.get(MasterKey, event.master_key) is None:
        created = format_time(event.at)
        session.add(MasterKey(name=event.master_key, kcv=body.kcv, ceremony=event.ceremony, created_at=created))
    if body.retired is not None:
        retired = _protection(session, event, body.retired)
        retired.status = "retired"
        retired.destroy_after = format_time(body.destroy_after) if body.destroy_after else None
        session.flush()  # the schema allows one active protection for each purpose at any moment
    _protection(session, event, body.digest).status = "active"
    session.flush()
    delete_staged(session, event.ceremony)


def _stop(event: EventRecord, signed: Signed) -> dict[str, str]:
    return {
        "digest": signed.digest,
        "master_key": event.master_key,
        "document": signed.document,
        "signature": signed.signature,
        "ordered_at": format_time(event.at),
    }


def _ceremony(session: Session, event: EventRecord) -> Ceremony:
    row = session.get(Ceremony, event.ceremony)
    if row is None:
        raise wrong(event, "its ceremony is not in the ledger")
    return row


def _protection(session: Session, event: EventRecord, manifest: str) -> Protection:
    row = session.scalars(select(Protection).filter_by(digest=manifest)).one_or_none()
    if row is None:
        raise wrong(event, "its protection is not in the ledger")
    return row
