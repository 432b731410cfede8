"""Stops in the ledger: who has ordered that a MasterKey is served to nobody, and who must hear of it.

Keystore workers keep stops for themselves and refuse by themselves. The ledger's record tells people early,
and finds those that a stop must reach: unseals that run, and recipients that hold the MasterKey. Both are
recorded in a transaction that also tells which stops are in force, so that none slips through between.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from activities.ledger.log.records import StopRecord, read_row
from activities.ledger.store import ceremonies, chain
from activities.ledger.store.database import Database
from activities.ledger.store.models import Ceremony, Event, MasterKey, Stop
from workflows.contracts.trust.canonical import Signed, digest, format_time
from workflows.contracts.trust.errors import LedgerConflict, LedgerCorrupt, NotKnown

_BEGAN, _ENDED = "holding-began", "holding-ended"


class Stops:
    """Orders to stop. Whoever calls has verified what is signed."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    def order(self, ceremony: str, master_key: str, stop: Signed) -> None:
        """Record a custodian's order, with the event `stop-ordered`; once.

        Raises:
            NotKnown: there is no such MasterKey or ceremony.
            CeremonyEnded: the ceremony is closed, and did not order it.
        """

        def work(session: Session) -> None:
            if session.get(Stop, stop.digest) is not None:
                return
            ceremonies.find_open(session, ceremony)
            if session.get(MasterKey, master_key) is None:
                raise NotKnown(f"there is no MasterKey {master_key}", subject=master_key)
            now = self._clock()
            session.add(
                Stop(
                    digest=stop.digest,
                    master_key=master_key,
                    document=stop.document,
                    signature=stop.signature,
                    ordered_at=format_time(now),
                )
            )
            session.flush()
            chain.append(
                session,
                ceremony=ceremony,
                key=f"ledger:stop-ordered:{stop.digest}",
                type_="stop-ordered",
                body=stop.model_dump(),
                master_key=master_key,
                now=now,
            )

        self._database.write(work)

    def lift(self, ceremony: str, digests: tuple[str, ...]) -> None:
        """Lift stops of the ceremony's MasterKey, with the event `stops-lifted`; once. Others stay in force.

        Raises:
            NotKnown: there is no such ceremony, or a stop is of another MasterKey.
            CeremonyEnded: the ceremony is closed.
            LedgerConflict: the ceremony has lifted others already.
        """

        def work(session: Session) -> None:
            now, body = self._clock(), {"stops": sorted(set(digests))}
            master_key = ceremonies.find(session, ceremony).master_key
            recorded = select(Event.seq).filter_by(ceremony=ceremony, key="ledger:stops-lifted")
            if session.scalar(recorded) is None:
                ceremonies.find_open(session, ceremony)
                for stop in body["stops"]:
                    row = session.get(Stop, stop)
                    if row is None:
                        continue  # Keystores remember it, and this ledger does not: it was made from an older bundle.
                    if row.master_key != master_key:
                        raise NotKnown(f"{master_key} has no stop {stop}", subject=master_key)
                    if row.lifted_at is None:
                        row.lifted_at, row.lifted_by = format_time(now), ceremony
            chain.append(
                session,
                ceremony=ceremony,
                key="ledger:stops-lifted",
                type_="stops-lifted",
                body=body,
                master_key=master_key,
                now=now,
            )

        self._database.write(work)

    def in_force(self, master_key: str | None = None) -> list[StopRecord]:
        """Stops that nobody has lifted, of one MasterKey or of all, the oldest first.

        Raises:
            LedgerCorrupt: one was altered.
        """
        return self._database.read(lambda s: _in_force(s, master_key))

    def hold(
        self, ceremony: str, master_key: str, workflow_id: str, *, ended: Signed | None = None, over: bool = False
    ) -> list[StopRecord]:
        """Record that a recipient holds a MasterKey since an unseal, or no more: `holding-began`, `holding-ended`.

        Args:
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

        def work(session: Session) -> list[StopRecord]:
            row = ceremonies.find(session, ceremony)
            if (row.action, row.master_key) != ("unseal", master_key):
                raise LedgerConflict(f"ceremony {ceremony} released no {master_key} to anybody", subject=ceremony)
            body = {"workflow_id": workflow_id, **({"ended": ended.model_dump() if ended else None} if over else {})}
            type_ = _ENDED if over else _BEGAN
            chain.append(
                session,
                ceremony=ceremony,
                key=_key(type_, workflow_id),
                type_=type_,
                body=body,
                master_key=master_key,
                now=self._clock(),
            )
            return _in_force(session, master_key)

        return self._database.write(work)

    def releases(self, master_key: str) -> list[str]:
        """Workflow ids of unseals that run, and of those who wait on behalf of recipients that hold the MasterKey."""

        def work(session: Session) -> list[str]:
            running = select(Ceremony.workflow_id).filter_by(master_key=master_key, action="unseal", outcome="")
            began, ended = aliased(Event), aliased(Event)
            over = select(ended.seq).where(
                ended.ceremony == began.ceremony, ended.key == func.replace(began.key, _key(_BEGAN), _key(_ENDED))
            )
            holding = (
                select(began.key)
                .where(began.master_key == master_key, began.type == _BEGAN, began.key.startswith(_key(_BEGAN)))
                .where(~over.exists())
                .order_by(began.seq)
            )
            waiting = [key.removeprefix(_key(_BEGAN)) for key in session.scalars(holding)]
            return [*session.scalars(running.order_by(Ceremony.opened_at, Ceremony.ceremony)), *waiting]

        return self._database.read(work)


def _key(type_: str, workflow_id: str = "") -> str:
    return f"ledger:{type_}:{workflow_id}"


def _in_force(session: Session, master_key: str | None) -> list[StopRecord]:
    query = select(Stop).where(Stop.lifted_at.is_(None)).order_by(Stop.ordered_at, Stop.digest)
    if master_key is not None:
        query = query.where(Stop.master_key == master_key)
    return [_to_record(row) for row in session.scalars(query)]


def _to_record(row: Stop) -> StopRecord:
    record = read_row(StopRecord, row)
    if digest(record.document.encode()) != record.digest:
        raise LedgerCorrupt(f"the digest of a stop of {record.master_key} is not its own", subject=record.master_key)
    return record
