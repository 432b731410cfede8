"""The hash chain of events: each names the digest of the one before it.

The chain shows a change, a gap, another order, and a missing end, because the head's row keeps the last
number and digest. It does not show a chain that was rewritten as a whole: whoever controls the database
can compute one. Only a head that was noted elsewhere (in a bundle, in a signed report, with the auditor)
tells that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from activities.ledger.log.records import GENESIS, EventRecord, read_row
from activities.ledger.store.models import ChainHead, Event
from workflows.contracts.trust.canonical import canonical_json, digest, format_time
from workflows.contracts.trust.errors import LedgerConflict, LedgerCorrupt


class Head(NamedTuple):
    """Where a chain ends: the number of events, and the digest of the last (`GENESIS` if there is none)."""

    events: int
    digest: str


def event_digest(
    *, seq: int, ceremony: str, key: str, master_key: str, type_: str, body: str, at: str, previous: str
) -> str:
    """SHA-256 over the RFC 8785 form of an event; `body` is in it as its own SHA-256.

    So a chain can be checked by somebody who may not read the bodies.
    """
    return digest(
        canonical_json(
            {
                "seq": seq,
                "ceremony": ceremony,
                "key": key,
                "master_key": master_key,
                "type": type_,
                "body": digest(body.encode()),
                "at": at,
                "previous": previous,
            }
        )
    )


def append(
    session: Session,
    *,
    ceremony: str,
    key: str,
    type_: str,
    body: dict[str, Any],
    master_key: str,
    now: datetime,
) -> EventRecord:
    """Append one event, or return the one that is there under the same ceremony and key.

    Runs in a write transaction, which holds the lock on the head.

    Raises:
        LedgerConflict: there is another event under this ceremony and key.
        ValueError: a field is not of its form, or `body` is not JSON.
    """
    content = canonical_json(body).decode()
    found = session.scalars(select(Event).filter_by(ceremony=ceremony, key=key)).one_or_none()
    if found is not None:
        if (found.type, found.master_key, found.body) != (type_, master_key, content):
            raise LedgerConflict(f"ceremony {ceremony!r} has another event under the key {key!r} already")
        return to_record(found)
    head = session.get_one(ChainHead, 1)
    fields = {"ceremony": ceremony, "key": key, "master_key": master_key, "body": content}
    seq, previous, at = head.seq + 1, head.digest, format_time(now)
    record = EventRecord(
        seq=seq,
        type=type_,
        at=now,
        previous=previous,
        digest=event_digest(seq=seq, type_=type_, at=at, previous=previous, **fields),
        **fields,
    )
    session.add(Event(**record.model_dump()))
    session.flush()  # the triggers want the event first, then the head
    head.seq, head.digest = record.seq, record.digest
    session.flush()
    return record


def to_record(row: Event) -> EventRecord:
    """The record of a row.

    Raises:
        LedgerCorrupt: it is none.
    """
    return read_row(EventRecord, row)


def verify(session: Session) -> Head:
    """Recompute the whole chain.

    Returns:
        The head, to be noted elsewhere or compared with what was noted.

    Raises:
        LedgerCorrupt: naming the first event that does not fit.
    """
    return _check(session, _links(session))


def verified(session: Session) -> tuple[list[EventRecord], Head]:
    """All events, and the head; the chain is recomputed of these very records.

    Raises:
        LedgerCorrupt: as `verify`.
    """
    records = [to_record(row) for row in session.scalars(select(Event).order_by(Event.seq))]
    links = ((record.seq, record.previous, record.digest, digest_of(record)) for record in records)
    return records, _check(session, links)


def _check(session: Session, links: Iterable[tuple[int, str, str, str]]) -> Head:
    count, last = 0, GENESIS
    for seq, previous, stored, computed in links:
        if seq != count + 1:
            raise _broken(count + 1, f"the one in its place is numbered {seq}")
        if previous != last:
            raise _broken(seq, "it does not continue the one before it")
        if stored != computed:
            raise _broken(seq, "its content is not what its digest says")
        count, last = seq, stored
    head = session.get(ChainHead, 1)
    if head is None:
        raise _broken(count, "the head of the chain is gone")
    if head.seq > count:
        raise _broken(count + 1, f"it is missing, and so is all up to {head.seq}")
    if (head.seq, head.digest) != (count, last):
        raise _broken(count, "the head of the chain names another")
    return Head(count, last)


def digest_of(record: EventRecord) -> str:
    """What an event's digest must be."""
    return event_digest(
        seq=record.seq,
        ceremony=record.ceremony,
        key=record.key,
        master_key=record.master_key,
        type_=record.type,
        body=record.body,
        at=format_time(record.at),
        previous=record.previous,
    )


def _links(session: Session) -> Iterator[tuple[int, str, str, str]]:
    rows = session.execute(
        select(
            Event.seq,
            Event.ceremony,
            Event.key,
            Event.master_key,
            Event.type,
            Event.body,
            Event.at,
            Event.previous,
            Event.digest,
        )
        .order_by(Event.seq)
        .execution_options(yield_per=500)
    )
    for seq, ceremony, key, master_key, type_, body, at, previous, stored in rows:
        computed = event_digest(
            seq=seq,
            ceremony=ceremony,
            key=key,
            master_key=master_key,
            type_=type_,
            body=body,
            at=at,
            previous=previous,
        )
        yield seq, previous, stored, computed


def _broken(seq: int, why: str) -> LedgerCorrupt:
    return LedgerCorrupt(f"the hash chain breaks at event {seq}: {why}", subject=f"event {seq}")
