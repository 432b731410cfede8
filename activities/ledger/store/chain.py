"""The hash chain of events: each names the digest of the one before it.

The chain shows a change, a gap, another order, and a missing end, because the head's row keeps the last
number and digest. It does not show a chain that was rewritten as a whole: whoever controls the database
can compute one. Only a head that was noted elsewhere (in a bundle, in a signed report, with the auditor)
tells that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from activities.ledger.log.records import GENESIS, EventRecord, event_digest, read_row
from activities.ledger.store.database import WriteSession
from activities.ledger.store.models import ChainHeadRow, EventRow
from workflows.contracts.trust.canonical import canonical_json
from workflows.contracts.trust.service_errors import LedgerConflict, LedgerCorrupt


class Head(NamedTuple):
    """Where a chain ends: the number of events, and the digest of the last (`GENESIS` if there is none)."""

    events: int
    digest: str


def has(session: Session, ceremony: str, key: str) -> bool:
    """Whether there is an event under this ceremony and key."""
    return session.scalar(select(EventRow.seq).filter_by(ceremony=ceremony, key=key)) is not None


def append(
    session: WriteSession, *, ceremony: str, key: str, type_: str, body: Mapping[str, Any], master_key: str
) -> EventRecord:
    """Append one event, or return the one that is there under the same ceremony and key.

    Raises:
        LedgerConflict: there is another event under this ceremony and key.
        ValueError: a field is not of its form, or `body` is not JSON.
    """
    content = canonical_json(dict(body)).decode()
    found = session.scalars(select(EventRow).filter_by(ceremony=ceremony, key=key)).one_or_none()
    if found is not None:
        if (found.type, found.master_key, found.body) != (type_, master_key, content):
            raise LedgerConflict(f"ceremony {ceremony!r} has another event under the key {key!r} already")
        return to_record(found)
    head = session.get_one(ChainHeadRow, 1)
    unsigned = EventRecord(
        seq=head.seq + 1,
        ceremony=ceremony,
        key=key,
        master_key=master_key,
        type=type_,
        body=content,
        at=session.now,
        previous=head.digest,
        digest=GENESIS,
    )
    record = unsigned.model_copy(update={"digest": event_digest(unsigned.model_dump())})
    add(session, record)
    return record


def add(session: WriteSession, record: EventRecord) -> None:
    """Add an event that follows the head, as it is, and move the head to it."""
    row = EventRow(**record.model_dump())
    session.add(row)
    session.flush()  # the triggers want the event first, then the head
    session.expunge(row)
    head = session.get_one(ChainHeadRow, 1)
    head.seq, head.digest = record.seq, record.digest
    session.flush()


def to_record(row: EventRow) -> EventRecord:
    """The record of a row.

    Raises:
        LedgerCorrupt: it is none.
    """
    return read_row(EventRecord, row)


def events(
    session: Session,
    master_key: str | None = None,
    ceremony: str | None = None,
    *,
    after: int = 0,
    limit: int | None = None,
) -> list[EventRecord]:
    """Events in their order, after a sequence number; unverified, see `verify`."""
    wanted = {"master_key": master_key, "ceremony": ceremony}
    query = select(EventRow).filter_by(**{name: value for name, value in wanted.items() if value is not None})
    query = query.where(EventRow.seq > after).order_by(EventRow.seq).limit(limit)
    return [to_record(row) for row in session.scalars(query)]


def newest(session: Session, master_key: str, type_: str, *, limit: int) -> Iterator[EventRecord]:
    """Events of a type about a MasterKey, the newest first, read as they are asked for; unverified, see `verify`."""
    query = select(EventRow).filter_by(master_key=master_key, type=type_).order_by(EventRow.seq.desc()).limit(limit)
    return (to_record(row) for row in session.scalars(query.execution_options(yield_per=100)))


def last(session: Session, master_key: str, type_: str) -> EventRecord | None:
    """The newest event of a type about a MasterKey, or None; unverified, see `verify`."""
    return next(newest(session, master_key, type_, limit=1), None)


def verify(session: Session) -> Head:
    """Recompute the hash chain of all events.

    It shows what was changed, removed, reordered or cut off. Whoever controls the whole database can
    compute a new chain, or put back an old copy: only a head that was noted elsewhere tells.

    Returns:
        The head, to be noted elsewhere or compared with what was noted.

    Raises:
        LedgerCorrupt: naming the first event that does not fit.
    """
    rows = session.execute(select(*EventRow.__table__.columns).order_by(EventRow.seq).execution_options(yield_per=500))
    count, last = 0, GENESIS
    for row in rows:
        if row.seq != count + 1:
            raise _broken(count + 1, f"the one in its place is numbered {row.seq}")
        if row.previous != last:
            raise _broken(row.seq, "it does not continue the one before it")
        if row.digest != event_digest(row._asdict()):
            raise _broken(row.seq, "its content is not what its digest says")
        count, last = row.seq, row.digest
    head = session.get(ChainHeadRow, 1)
    if head is None:
        raise _broken(count, "the head of the chain is gone")
    if head.seq > count:
        raise _broken(count + 1, f"it is missing, and so is all up to {head.seq}")
    if (head.seq, head.digest) != (count, last):
        raise _broken(count, "the head of the chain names another")
    return Head(count, last)


def verified(session: Session) -> tuple[list[EventRecord], Head]:
    """All events, and where their chain ends: one snapshot, whose chain is recomputed.

    Raises:
        LedgerCorrupt: as `verify`.
    """
    head = verify(session)
    return events(session), head


def _broken(seq: int, why: str) -> LedgerCorrupt:
    return LedgerCorrupt(f"the hash chain breaks at event {seq}: {why}", subject=f"event {seq}")
