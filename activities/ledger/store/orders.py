"""Orders that end a protection: retired without a successor, and destroyed. Whoever calls has verified the order.

To destroy a protection deletes its shards, in the transaction that says so; its manifest and signature stay
for ever. It revokes nothing by itself: a copy that was made before still opens for whoever controls enough of
its old keys, so the event lists every version of a key that would have to be destroyed too.
"""

from __future__ import annotations

import json

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from activities.ledger.log.events import KeyVersion, ProtectionCommitted, ProtectionDestroyed, ProtectionRetired
from activities.ledger.store import ceremonies, chain, rows
from activities.ledger.store.database import WriteSession
from activities.ledger.store.models import ProtectionRow, StopRow
from workflows.contracts import names
from workflows.contracts.messages.results import DrillResult
from workflows.contracts.trust.canonical import format_time
from workflows.contracts.trust.errors import PlanInvalid
from workflows.contracts.trust.service_errors import NotKnown

_FROM = {"retire": "active", "destroy": "retired"}


def check(session: Session, master_key: str, action: str, manifest: str) -> None:
    """Check that an order to retire or to destroy could be carried out now.

    Raises:
        NotKnown: this MasterKey has no such protection.
        PlanInvalid: it is not in the state for it, or is the last that serves the MasterKey.
    """
    _find(session, master_key, action, manifest)


def _find(session: Session, master_key: str, action: str, manifest: str) -> ProtectionRow:
    """The protection that an order is about, if it can be carried out."""
    row = session.scalars(select(ProtectionRow).filter_by(master_key=master_key, digest=manifest)).one_or_none()
    if row is None:
        raise NotKnown(f"{master_key} has no protection {manifest}", subject=master_key)
    if row.status != _FROM[action]:
        raise PlanInvalid(
            f"only a protection that is {_FROM[action]} can be {'retired' if action == 'retire' else 'destroyed'};"
            f" the {row.purpose} one of epoch {row.epoch} is {row.status}",
            next_step=f"see `masterkey status {master_key}`",
            subject=master_key,
        )
    serving = select(func.count()).select_from(ProtectionRow).filter_by(master_key=master_key, status="active")
    if action == "retire" and session.scalar(serving) == 1:
        raise PlanInvalid(
            f"this is the last protection that serves {master_key}: without it nobody could unseal",
            next_step="make another first with `masterkey reshard`, which retires this one",
            subject=master_key,
        )
    return row


def retire(session: WriteSession, ceremony: str, manifest: str) -> None:
    """Retire an active protection without a successor, with the event `protection-retired`; once.

    Raises:
        NotKnown, CeremonyEnded: there is no such ceremony or protection, or the ceremony is closed.
        PlanInvalid: the protection is not active, or is the last that serves the MasterKey.
    """
    if chain.has(session, ceremony, ProtectionRetired.key_of(manifest)):
        return
    master_key = ceremonies.find_open(session, ceremony).master_key
    said = ProtectionRetired.of(_find(session, master_key, "retire", manifest))
    rows.write(session, said, ceremony=ceremony, master_key=master_key)


def destroy(session: WriteSession, ceremony: str, manifest: str) -> None:
    """Delete the shards of a retired protection, with the event `protection-destroyed`; once.

    Raises:
        NotKnown, CeremonyEnded: there is no such ceremony or protection, or the ceremony is closed.
        PlanInvalid: the protection is not retired.
    """
    if chain.has(session, ceremony, ProtectionDestroyed.key_of(manifest)):
        return
    master_key = ceremonies.find_open(session, ceremony).master_key
    _destroy(session, _find(session, master_key, "destroy", manifest), ceremony)


def destroy_due(session: WriteSession) -> list[str]:
    """Destroy retired protections whose time has come.

    It waits while a stop is in force, and while the last drill says that the MasterKey cannot be recovered
    from what is active: what was kept may be needed then.

    Returns:
        Digests of the manifests.
    """
    query = select(ProtectionRow).where(
        ProtectionRow.status == "retired", ProtectionRow.destroy_after <= format_time(session.now)
    )
    retired = session.scalars(query.order_by(ProtectionRow.master_key, ProtectionRow.epoch)).all()
    due = [row for row in retired if not _needed(session, row.master_key)]
    for row in due:
        _destroy(session, row, "")
    return [row.digest for row in due]


def _destroy(session: WriteSession, row: ProtectionRow, ceremony: str) -> None:
    keys = tuple(KeyVersion.model_validate(shard, from_attributes=True) for shard in row.shards)
    said = ProtectionDestroyed.of(row, keys=keys, scheduled=None if ceremony else row.destroy_after)
    rows.write(session, said, ceremony=ceremony, master_key=row.master_key)


def _needed(session: Session, master_key: str) -> bool:
    """Whether what was retired may be needed still."""
    in_force = select(StopRow.digest).where(StopRow.master_key == master_key, StopRow.lifted_at.is_(None)).limit(1)
    if session.scalar(in_force) is not None:
        return True
    drill = chain.last(session, master_key, names.DRILL_FINISHED)
    commit = chain.last(session, master_key, ProtectionCommitted.TYPE)
    if drill is None or (commit is not None and commit.seq > drill.seq):
        return False
    return DrillResult.model_validate_json(json.loads(drill.body)["result"]).spare < 0
