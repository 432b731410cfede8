"""Stops in the ledger: who has ordered that a MasterKey is served to nobody, and who must hear of it.

Keystore workers keep stops for themselves and refuse by themselves. The ledger's record tells people early,
and finds those that a stop must reach: unseals that run, and recipients that hold the MasterKey. Both are
recorded in a transaction that also tells which stops are in force, so that none slips through between.
Whoever calls has verified what is signed.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from activities.ledger.log.events import HoldingBegan, HoldingEnded, StopOrdered, StopsLifted
from activities.ledger.log.records import StopRecord, read_row
from activities.ledger.store import ceremonies, chain, rows
from activities.ledger.store.database import WriteSession
from activities.ledger.store.models import CeremonyRow, EventRow, MasterKeyRow, StopRow
from workflows.contracts.trust.canonical import Signed, digest
from workflows.contracts.trust.service_errors import LedgerConflict, LedgerCorrupt, NotKnown


def order(session: WriteSession, ceremony: str, master_key: str, stop: Signed) -> None:
    """Record a custodian's order, with the event `stop-ordered`; once.

    Raises:
        NotKnown: there is no such MasterKey or ceremony.
        CeremonyEnded: the ceremony is closed, and did not order it.
    """
    if session.get(StopRow, stop.digest) is not None:
        return
    ceremonies.find_open(session, ceremony)
    if session.get(MasterKeyRow, master_key) is None:
        raise NotKnown(f"there is no MasterKey {master_key}", subject=master_key)
    rows.write(session, StopOrdered(**stop.model_dump()), ceremony=ceremony, master_key=master_key)


def lift(session: WriteSession, ceremony: str, digests: tuple[str, ...]) -> None:
    """Lift stops of the ceremony's MasterKey, with the event `stops-lifted`; once. Others stay in force.

    Raises:
        NotKnown: there is no such ceremony, or a stop is of another MasterKey.
        CeremonyEnded: the ceremony is closed.
        LedgerConflict: the ceremony has lifted others already.
    """
    said = StopsLifted(stops=tuple(sorted(set(digests))))
    master_key = ceremonies.find(session, ceremony).master_key
    if not chain.has(session, ceremony, said.key):
        ceremonies.find_open(session, ceremony)
        # One that is not here is remembered by keystores: this ledger was made from an older bundle.
        for row in session.scalars(select(StopRow).where(StopRow.digest.in_(said.stops))):
            if row.master_key != master_key:
                raise NotKnown(f"{master_key} has no stop {row.digest}", subject=master_key)
    rows.write(session, said, ceremony=ceremony, master_key=master_key)


def in_force(session: Session, master_key: str | None = None) -> list[StopRecord]:
    """Stops that nobody has lifted, of one MasterKey or of all, the oldest first.

    Raises:
        LedgerCorrupt: one was altered.
    """
    query = select(StopRow).where(StopRow.lifted_at.is_(None)).order_by(StopRow.ordered_at, StopRow.digest)
    if master_key is not None:
        query = query.filter_by(master_key=master_key)
    return [_to_record(row) for row in session.scalars(query)]


def hold(
    session: WriteSession,
    ceremony: str,
    master_key: str,
    workflow_id: str,
    *,
    ended: Signed | None = None,
    over: bool = False,
) -> list[StopRecord]:
    """Record that a recipient holds a MasterKey since an unseal, or no more: `holding-began`, `holding-ended`.

    Args:
        session: of the write transaction.
        ceremony: of the unseal; it is closed by then.
        master_key: name.
        workflow_id: of whoever waits for a stop on the recipient's behalf.
        ended: the recipient's acknowledgement of a stop, if there is one.
        over: the recipient holds it no more.

    Returns:
        The stops in force.

    Raises:
        NotKnown: there is no such ceremony.
        LedgerConflict: it is no unseal of this MasterKey, or ended with another acknowledgement.
    """
    row = ceremonies.find(session, ceremony)
    if (row.action, row.master_key) != ("unseal", master_key):
        raise LedgerConflict(f"ceremony {ceremony} released no {master_key} to anybody", subject=ceremony)
    said = HoldingEnded(workflow_id=workflow_id, ended=ended) if over else HoldingBegan(workflow_id=workflow_id)
    rows.write(session, said, ceremony=ceremony, master_key=master_key)
    return in_force(session, master_key)


def releases(session: Session, master_key: str) -> list[str]:
    """Workflow ids of unseals that run, and of those who wait on behalf of recipients that hold the MasterKey."""
    running = select(CeremonyRow.workflow_id).filter_by(master_key=master_key, action="unseal", outcome="")
    began, ended = aliased(EventRow), aliased(EventRow)
    prefix = f"{HoldingBegan.key_of()}:"
    over = select(ended.seq).where(
        ended.ceremony == began.ceremony,
        ended.key == func.replace(began.key, HoldingBegan.key_of(), HoldingEnded.key_of()),
    )
    holding = (
        select(began.key)
        .where(began.master_key == master_key, began.type == HoldingBegan.TYPE, began.key.startswith(prefix))
        .where(~over.exists())
        .order_by(began.seq)
    )
    waiting = [key.removeprefix(prefix) for key in session.scalars(holding)]
    return [*session.scalars(running.order_by(CeremonyRow.opened_at, CeremonyRow.ceremony)), *waiting]


def _to_record(row: StopRow) -> StopRecord:
    record = read_row(StopRecord, row)
    if digest(record.document.encode()) != record.digest:
        raise LedgerCorrupt(f"the digest of a stop of {record.master_key} is not its own", subject=record.master_key)
    return record
