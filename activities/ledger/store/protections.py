"""Protections in the ledger: staged, committed in one transaction, or discarded.

Before the commit the old protection stands, after it the new one does. Every function runs in a write
transaction, which no other writer shares, and again changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from activities.ledger.log.records import MasterKeyRecord, ProtectionRecord, read_row
from activities.ledger.store import ceremonies, chain
from activities.ledger.store.models import Ceremony, MasterKey, Protection, Shard
from workflows.contracts.trust.canonical import canonical_json, digest, format_time
from workflows.contracts.trust.errors import LedgerConflict, NameTaken, NotKnown


def to_record(row: Protection) -> ProtectionRecord:
    """The record of a row and its shards, verified as far as the ledger can.

    Raises:
        LedgerCorrupt: what is stored is not what was stored.
    """
    record = read_row(ProtectionRecord, row)
    record.verify()
    return record


def stage(session: Session, record: ProtectionRecord, now: datetime) -> None:
    """See `Ledger.stage`."""
    record.verify()
    where = f"attempt {record.attempt} of ceremony {record.ceremony}"
    if record.status != "staged" or record.destroy_after is not None:
        raise LedgerConflict(f"{where} cannot begin {record.status}", subject=record.protection)
    row = _attempt(session, record.ceremony, record.attempt)
    if row is not None:
        known = to_record(row).model_copy(update={"status": "staged", "destroy_after": None})
        gone = {"shards": ()} if row.status == "destroyed" else {}
        if known != record.model_copy(update=gone):
            raise LedgerConflict(f"{where} has staged something else already", subject=record.protection)
        return
    ceremony = ceremonies.find_open(session, record.ceremony)
    if ceremony.master_key != record.master_key:
        raise LedgerConflict(f"ceremony {record.ceremony} is about another MasterKey", subject=record.ceremony)
    _existing(session, ceremony)
    session.add(Protection(**record.model_dump(exclude={"shards"})))
    session.flush()
    session.add_all(Shard(protection=record.protection, **shard.model_dump()) for shard in record.shards)
    session.flush()
    chain.append(
        session,
        ceremony=record.ceremony,
        key=f"ledger:protection-staged:{record.attempt}",
        type_="protection-staged",
        body=record.model_dump(include=IN_EVENTS),
        master_key=record.master_key,
        now=now,
    )


def commit(session: Session, ceremony: str, attempt: int, retention: timedelta | None, now: datetime) -> None:
    """See `Ledger.commit`."""
    row = _attempt(session, ceremony, attempt)
    if row is None:
        raise NotKnown(f"ceremony {ceremony} has nothing staged as attempt {attempt}", subject=ceremony)
    if row.status != "staged":
        return
    record = to_record(row)
    opened = ceremonies.find_open(session, ceremony)
    master_key = _existing(session, opened)
    replaced = _active(session, record.master_key, record.purpose)
    if master_key is None:
        session.add(MasterKey(name=record.master_key, kcv=record.kcv, ceremony=ceremony, created_at=format_time(now)))
    elif master_key.kcv != record.kcv:
        raise LedgerConflict(
            f"the KCV of {record.protection} is not that of {record.master_key}", subject=record.protection
        )
    if record.predecessor != (replaced.digest if replaced else None):
        raise LedgerConflict(
            f"{record.protection} was made to replace another protection than the {record.purpose} one that"
            f" serves {record.master_key} now",
            subject=record.protection,
        )
    if record.epoch <= (highest := _highest_epoch(session, record.master_key)):
        raise LedgerConflict(
            f"epoch {record.epoch} of {record.protection} is not above {highest}", subject=record.protection
        )
    # In this order: the schema allows one active protection for each purpose at any moment.
    destroy_after = None if replaced is None or retention is None else format_time(now + retention)
    if replaced is not None:
        replaced.status, replaced.destroy_after = "retired", destroy_after
        session.flush()
    row.status = "active"
    session.flush()
    discarded = delete_staged(session, ceremony)
    chain.append(
        session,
        ceremony=ceremony,
        key=f"ledger:protection-committed:{attempt}",
        type_="protection-committed",
        body={
            **record.model_dump(include=IN_EVENTS),
            "retired": replaced.digest if replaced else None,
            "discarded": [other.digest for other in discarded],
            "destroy_after": destroy_after,
        },
        master_key=record.master_key,
        now=now,
    )


def discard_staged(session: Session, ceremony: str, now: datetime) -> int:
    """See `Ledger.discard_staged`."""
    discarded = delete_staged(session, ceremony)
    if discarded:
        body = {"discarded": [row.digest for row in discarded]}
        chain.append(
            session,
            ceremony=ceremony,
            key=f"ledger:staged-discarded:{digest(canonical_json(body))}",
            type_="staged-discarded",
            body=body,
            master_key=discarded[0].master_key,
            now=now,
        )
    return len(discarded)


def collect_staged(session: Session, older_than: datetime) -> list[str]:
    """See `Ledger.collect_staged`."""
    return list(
        session.scalars(
            select(Ceremony.ceremony)
            .where(
                Ceremony.closed_at < format_time(older_than),
                Ceremony.ceremony.in_(select(Protection.ceremony).where(Protection.status == "staged")),
            )
            .order_by(Ceremony.ceremony)
        )
    )


def find(session: Session, master_key: str, *, manifest: str | None, purpose: str) -> ProtectionRecord:
    """See `Ledger.protection`."""
    if manifest is None:
        row = _active(session, master_key, purpose)
    else:
        row = session.scalars(select(Protection).filter_by(master_key=master_key, digest=manifest)).one_or_none()
    if row is None:
        which = f"no active {purpose} protection" if manifest is None else f"no protection {manifest}"
        raise NotKnown(f"{master_key} has {which}", subject=master_key)
    return to_record(row)


def of(session: Session, master_key: str) -> list[ProtectionRecord]:
    """See `Ledger.protections`."""
    rows = session.scalars(
        select(Protection)
        .filter_by(master_key=master_key)
        .order_by(Protection.epoch, Protection.ceremony, Protection.attempt)
    )
    return [to_record(row) for row in rows]


def master_keys(session: Session) -> list[MasterKeyRecord]:
    """See `Ledger.master_keys`."""
    return [
        read_row(
            MasterKeyRecord,
            {
                "master_key": row.name,
                "kcv": row.kcv,
                "ceremony": row.ceremony,
                "created_at": row.created_at,
                "epoch": _highest_epoch(session, row.name),
            },
        )
        for row in session.scalars(select(MasterKey).order_by(MasterKey.name))
    ]


IN_EVENTS = {
    "protection",
    "attempt",
    "digest",
    "purpose",
    "mode",
    "threshold",
    "count",
    "epoch",
    "kcv",
    "predecessor",
}
"""What the events say of a protection."""


def _attempt(session: Session, ceremony: str, attempt: int) -> Protection | None:
    return session.scalars(select(Protection).filter_by(ceremony=ceremony, attempt=attempt)).one_or_none()


def _active(session: Session, master_key: str, purpose: str) -> Protection | None:
    return session.scalars(
        select(Protection).filter_by(master_key=master_key, purpose=purpose, status="active")
    ).one_or_none()


def _existing(session: Session, ceremony: Ceremony) -> MasterKey | None:
    """The ceremony's MasterKey: at init there must be none yet, otherwise there must be one."""
    row = session.get(MasterKey, ceremony.master_key)
    if ceremony.action == "init" and row is not None:
        raise NameTaken(f"there is a MasterKey {row.name} already", subject=row.name)
    if ceremony.action != "init" and row is None:
        raise NotKnown(f"there is no MasterKey {ceremony.master_key}", subject=ceremony.master_key)
    return row


def _highest_epoch(session: Session, master_key: str) -> int:
    query = select(func.max(Protection.epoch)).where(Protection.master_key == master_key, Protection.status != "staged")
    return session.scalar(query) or 0


def delete_staged(session: Session, ceremony: str) -> Sequence[Protection]:
    """Delete what a ceremony staged and did not commit, and return it."""
    staged = session.scalars(
        select(Protection).filter_by(ceremony=ceremony, status="staged").order_by(Protection.attempt)
    ).all()
    for row in staged:
        session.delete(row)
    session.flush()
    return staged
