"""Protections in the ledger: staged, then committed in one transaction, and read.

Before the commit the old protection stands, after it the new one does. To do the same again changes nothing.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from activities.ledger.log.events import ProtectionCommitted, ProtectionStaged
from activities.ledger.log.records import MasterKeyRecord, ProtectionRecord, read_row
from activities.ledger.store import ceremonies, rows
from activities.ledger.store.database import WriteSession
from activities.ledger.store.models import CeremonyRow, MasterKeyRow, ProtectionRow
from workflows.contracts.trust.service_errors import LedgerConflict, NameTaken, NotKnown


def to_record(row: ProtectionRow) -> ProtectionRecord:
    """The record of a row and its shards, verified as far as the ledger can.

    Raises:
        LedgerCorrupt: what is stored is not what was stored.
    """
    record = read_row(ProtectionRecord, row)
    record.verify()
    return record


def stage(session: WriteSession, record: ProtectionRecord) -> None:
    """Store a protection that does not serve yet, with the event `protection-staged`.

    Raises:
        NotKnown: there is no such ceremony, or (except at init) no such MasterKey.
        CeremonyEnded: the ceremony is closed.
        NameTaken: at init: the MasterKey exists already.
        LedgerConflict: this attempt staged something else already, or what it staged was discarded.
        LedgerCorrupt: the digest is not the manifest's, or a shard is missing.
    """
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
    said = ProtectionStaged.of(record)
    if not rows.write(session, said, ceremony=record.ceremony, master_key=record.master_key, content=record):
        raise LedgerConflict(f"what {where} staged was discarded", subject=record.protection)


def commit(session: WriteSession, ceremony: str, attempt: int, *, retention: timedelta | None = None) -> None:
    """Make a staged protection the active one of its purpose; the one before is retired.

    With the event `protection-committed`. At init it creates the MasterKey. What else the ceremony staged is deleted.

    Args:
        session: of the write transaction.
        ceremony: id.
        attempt: number within the ceremony.
        retention: how long the shards of the one before are kept; until their destruction is ordered if None.

    Raises:
        NotKnown: nothing is staged as this attempt.
        CeremonyEnded: the ceremony was closed before.
        NameTaken: at init: the MasterKey exists already.
        LedgerConflict: another KCV, an epoch that is not the highest, or another protection is active
            than the one that this was made to replace.
        LedgerCorrupt: what was staged was altered.
    """
    row = _attempt(session, ceremony, attempt)
    if row is None:
        raise NotKnown(f"ceremony {ceremony} has nothing staged as attempt {attempt}", subject=ceremony)
    if row.status != "staged":
        return
    record = to_record(row)
    master_key = _existing(session, ceremonies.find_open(session, ceremony))
    replaced = _active(session, record.master_key, record.purpose)
    if master_key is not None and master_key.kcv != record.kcv:
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
    said = ProtectionCommitted.of(
        record,
        retired=record.predecessor,
        discarded=tuple(other.digest for other in rows.staged_by(session, ceremony) if other is not row),
        destroy_after=None if replaced is None or retention is None else session.now + retention,
    )
    rows.write(session, said, ceremony=ceremony, master_key=record.master_key)


def find(session: Session, master_key: str, *, digest: str | None = None, purpose: str = "primary") -> ProtectionRecord:
    """The active protection of a purpose, or the one of a digest, whatever its purpose and status.

    The manifest fits its digest and the shards are complete; all else is for the caller to verify.

    Raises:
        NotKnown: there is none.
        LedgerCorrupt: it was altered.
    """
    if digest is None:
        row = _active(session, master_key, purpose)
    else:
        row = session.scalars(select(ProtectionRow).filter_by(master_key=master_key, digest=digest)).one_or_none()
    if row is None:
        which = f"no active {purpose} protection" if digest is None else f"no protection {digest}"
        raise NotKnown(f"{master_key} has {which}", subject=master_key)
    return to_record(row)


def of(session: Session, master_key: str) -> list[ProtectionRecord]:
    """All protections of a MasterKey, staged and retired ones too, by epoch; none if it is not known.

    Raises:
        LedgerCorrupt: one was altered.
    """
    query = select(ProtectionRow).filter_by(master_key=master_key)
    ordered = query.order_by(ProtectionRow.epoch, ProtectionRow.ceremony, ProtectionRow.attempt)
    return [to_record(row) for row in session.scalars(ordered)]


def master_keys(session: Session) -> list[MasterKeyRecord]:
    """The MasterKeys that were ever committed, by name."""
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
        for row in session.scalars(select(MasterKeyRow).order_by(MasterKeyRow.name))
    ]


def _attempt(session: Session, ceremony: str, attempt: int) -> ProtectionRow | None:
    return session.scalars(select(ProtectionRow).filter_by(ceremony=ceremony, attempt=attempt)).one_or_none()


def _active(session: Session, master_key: str, purpose: str) -> ProtectionRow | None:
    query = select(ProtectionRow).filter_by(master_key=master_key, purpose=purpose, status="active")
    return session.scalars(query).one_or_none()


def _existing(session: Session, ceremony: CeremonyRow) -> MasterKeyRow | None:
    """The ceremony's MasterKey: at init there must be none yet, otherwise there must be one."""
    row = session.get(MasterKeyRow, ceremony.master_key)
    if ceremony.action == "init" and row is not None:
        raise NameTaken(f"there is a MasterKey {row.name} already", subject=row.name)
    if ceremony.action != "init" and row is None:
        raise NotKnown(f"there is no MasterKey {ceremony.master_key}", subject=ceremony.master_key)
    return row


def _highest_epoch(session: Session, master_key: str) -> int:
    committed = select(func.max(ProtectionRow.epoch)).where(ProtectionRow.status != "staged")
    return session.scalar(committed.filter_by(master_key=master_key)) or 0
