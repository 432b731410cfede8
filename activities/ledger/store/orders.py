"""Orders that end a protection: retired without a successor, and destroyed.

To destroy a protection deletes its shards, in the transaction that says so; its manifest and signature stay
for ever. It revokes nothing by itself: a copy that was made before still opens for whoever controls enough of
its old keys, so the event lists every version of a key that would have to be destroyed too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from activities.ledger.store import ceremonies, chain
from activities.ledger.store.database import Database
from activities.ledger.store.models import Event, Protection, Shard, Stop
from workflows.contracts import names
from workflows.contracts.messages.results import DrillResult
from workflows.contracts.trust.canonical import format_time
from workflows.contracts.trust.errors import NotKnown, PlanInvalid


class Orders:
    """What a governance quorum has ordered, or what is due. Whoever calls has verified the order."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    def check(self, master_key: str, action: str, manifest: str) -> None:
        """Check that an order to retire or to destroy could be carried out now.

        Raises:
            NotKnown: this MasterKey has no such protection.
            PlanInvalid: it is not in the state for it, or is the last that serves the MasterKey.
        """
        self._database.read(lambda s: _find(s, master_key, action, manifest))

    def retire(self, ceremony: str, manifest: str) -> None:
        """Retire an active protection without a successor, with the event `protection-retired`; once.

        Raises:
            NotKnown, CeremonyEnded: there is no such ceremony or protection, or the ceremony is closed.
            PlanInvalid: the protection is not active, or is the last that serves the MasterKey.
        """

        def work(session: Session) -> None:
            if _done(session, ceremony, key := f"ledger:protection-retired:{manifest}"):
                return
            master_key = ceremonies.find_open(session, ceremony).master_key
            row = _find(session, master_key, "retire", manifest)
            row.status = "retired"
            session.flush()
            chain.append(
                session,
                ceremony=ceremony,
                key=key,
                type_="protection-retired",
                body={"digest": row.digest, "purpose": row.purpose, "epoch": row.epoch},
                master_key=row.master_key,
                now=self._clock(),
            )

        self._database.write(work)

    def destroy(self, ceremony: str, manifest: str) -> None:
        """Delete the shards of a retired protection, with the event `protection-destroyed`; once.

        Raises:
            NotKnown, CeremonyEnded: there is no such ceremony or protection, or the ceremony is closed.
            PlanInvalid: the protection is not retired.
        """

        def work(session: Session) -> None:
            if _done(session, ceremony, _destroyed(manifest)):
                return
            master_key = ceremonies.find_open(session, ceremony).master_key
            _destroy(session, _find(session, master_key, "destroy", manifest), ceremony, self._clock())

        self._database.write(work)

    def destroy_due(self) -> list[str]:
        """Destroy retired protections whose time has come.

        It waits while a stop is in force, and while the last drill says that the MasterKey cannot be recovered
        from what is active: what was kept may be needed then.

        Returns:
            Digests of the manifests.
        """

        def work(session: Session) -> list[str]:
            now = self._clock()
            rows = session.scalars(
                select(Protection)
                .where(Protection.status == "retired", Protection.destroy_after <= format_time(now))
                .order_by(Protection.master_key, Protection.epoch)
            ).all()
            due = [row for row in rows if not _needed(session, row.master_key)]
            for row in due:
                _destroy(session, row, "", now)
            return [row.digest for row in due]

        return self._database.write(work)


_FROM = {"retire": "active", "destroy": "retired"}


def _find(session: Session, master_key: str, action: str, manifest: str) -> Protection:
    """The protection that an order is about, if it can be carried out."""
    row = session.scalars(select(Protection).filter_by(master_key=master_key, digest=manifest)).one_or_none()
    if row is None:
        raise NotKnown(f"{master_key} has no protection {manifest}", subject=master_key)
    if row.status != _FROM[action]:
        raise PlanInvalid(
            f"only a protection that is {_FROM[action]} can be {'retired' if action == 'retire' else 'destroyed'};"
            f" the {row.purpose} one of epoch {row.epoch} is {row.status}",
            next_step=f"see `masterkey status {master_key}`",
            subject=master_key,
        )
    serving = select(func.count()).select_from(Protection).filter_by(master_key=master_key, status="active")
    if action == "retire" and session.scalar(serving) == 1:
        raise PlanInvalid(
            f"this is the last protection that serves {master_key}: without it nobody could unseal",
            next_step="make another first with `masterkey reshard`, which retires this one",
            subject=master_key,
        )
    return row


def _destroy(session: Session, row: Protection, ceremony: str, now: datetime) -> None:
    keys = [{"keystore": s.keystore, "key_id": s.key_id, "key_version": s.key_version} for s in row.shards]
    row.status = "destroyed"
    session.flush()  # the triggers want the status first, then the shards
    session.execute(delete(Shard).where(Shard.protection == row.protection))
    session.expire(row, ["shards"])
    chain.append(
        session,
        ceremony=ceremony,
        key=_destroyed(row.digest),
        type_="protection-destroyed",
        body={
            "digest": row.digest,
            "purpose": row.purpose,
            "epoch": row.epoch,
            "threshold": row.threshold,
            "keys": keys,
            "scheduled": row.destroy_after if not ceremony else None,
        },
        master_key=row.master_key,
        now=now,
    )


def _destroyed(manifest: str) -> str:
    return f"ledger:protection-destroyed:{manifest}"


def _done(session: Session, ceremony: str, key: str) -> bool:
    return session.scalar(select(Event.seq).filter_by(ceremony=ceremony, key=key)) is not None


def _needed(session: Session, master_key: str) -> bool:
    """Whether what was retired may be needed still."""
    in_force = select(Stop.digest).where(Stop.master_key == master_key, Stop.lifted_at.is_(None)).limit(1)
    if session.scalar(in_force) is not None:
        return True
    drill = _newest(session, master_key, names.DRILL_FINISHED)
    commit = _newest(session, master_key, "protection-committed")
    if drill is None or (commit is not None and commit.seq > drill.seq):
        return False
    return DrillResult.model_validate_json(json.loads(drill.body)["result"]).spare < 0


def _newest(session: Session, master_key: str, type_: str) -> Event | None:
    query = select(Event).filter_by(master_key=master_key, type=type_).order_by(Event.seq.desc()).limit(1)
    return session.scalars(query).one_or_none()
