"""The ledger's front: everything that may be read from it and written to it.

Every write happens once, however often it is asked for: activities are repeated after a crash. What
contradicts an earlier write is refused. Nothing here is secret, and nothing here is trusted: readers verify
the manifests they get.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from activities.ledger.log.records import (
    CeremonyRecord,
    EventRecord,
    MasterKeyRecord,
    ProtectionRecord,
)
from activities.ledger.store import ceremonies, chain, protections, schema
from activities.ledger.store.chain import Head
from activities.ledger.store.database import UPGRADE, Database
from activities.ledger.store.models import Ceremony, Event
from activities.ledger.store.orders import Orders
from activities.ledger.store.stops import Stops
from workflows.contracts.messages.ledger import Outcome
from workflows.contracts.trust.canonical import seconds
from workflows.contracts.trust.errors import ConfigurationInvalid, LedgerConflict

T = TypeVar("T")

_PAGE = 100


def _now() -> datetime:
    return seconds(datetime.now(UTC))


class NewEvent(NamedTuple):
    """An event to append: see `Ledger.append` for its fields."""

    key: str
    type: str
    body: dict[str, Any]


class Ledger:
    """A ledger in SQLite or PostgreSQL.

    Attributes:
        orders: what a governance quorum has ordered, or what is due.
        stops: what a custodian has ordered to stop, and who must hear of it.

    Calls block. Threads may share one; processes each make their own (not across a fork). All raise
    SQLAlchemy's `OperationalError` when the database cannot be reached or stays locked: try again.
    Arguments that are not of their record's form raise ValueError.
    """

    def __init__(self, url: str, *, clock: Callable[[], datetime] = _now) -> None:
        """Prepare; connects to nothing yet.

        Args:
            url: `sqlite:///FILE` or `postgresql+psycopg://...`.
            clock: the time in UTC, whole seconds; for tests.

        Raises:
            ConfigurationInvalid: not such a URL.
        """
        self._database = Database(url)
        self._clock = clock
        self.orders = Orders(self._database, clock)
        self.stops = Stops(self._database, clock)

    def upgrade(self) -> None:
        """Create the ledger, or migrate it to what this code needs. Several may do so at once.

        Raises:
            ConfigurationInvalid: the ledger was made by newer code, or its folder is not there.
        """
        file = self._database.file
        if file is not None:
            try:
                # A copy of the ledger is half of what an attacker needs: for the owner's eyes only.
                os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
            except OSError as error:
                raise ConfigurationInvalid(
                    f"cannot open {file}: {error.strerror}", next_step="correct ledger.url or make the folder"
                ) from None
        self._refuse_newer(self._revision())
        self._database.define(schema.upgrade)

    def check(self) -> None:
        """Check that the database is the ledger that this code needs.

        Raises:
            ConfigurationInvalid: there is none, or it has another schema.
        """
        revision = self._revision()
        self._refuse_newer(revision)
        if revision is None:
            raise ConfigurationInvalid("the database holds no ledger", next_step=UPGRADE)
        if revision != schema.head():
            raise ConfigurationInvalid(f"the ledger's schema is {revision}, not {schema.head()}", next_step=UPGRADE)

    def close(self) -> None:
        """Close the idle connections."""
        self._database.close()

    def read(self, work: Callable[[Session], T]) -> T:
        """Run `work` on one snapshot of the ledger: for what is read as a whole."""
        return self._database.read(work)

    def write(self, work: Callable[[Session, datetime], T]) -> T:
        """Run `work`, which is told the time, in one transaction, alone: for what is written as a whole."""
        return self._database.write(lambda s: work(s, self._clock()))

    # --- ceremonies --------------------------------------------------------------------------------------

    def open_ceremony(self, record: CeremonyRecord, event_body: dict[str, Any]) -> CeremonyRecord:
        """Record that a ceremony began, with the event `ceremony-opened`.

        Returns:
            What is recorded of it: of one that was opened before, how far it is.

        Args:
            record: without an outcome; `plan` and `deadline` may come later.
            event_body: what the event shall say.

        Raises:
            LedgerConflict: another ceremony has this id, or the id is of another MasterKey or action.
            LedgerCorrupt: the plan's digest is not the plan's.
        """
        return self._database.write(lambda s: ceremonies.open_(s, record, event_body, self._clock()))

    def set_phase(
        self, ceremony: str, phase: str, *, plan: str | None = None, deadline: datetime | None = None
    ) -> None:
        """Record how far a ceremony is, and its plan and deadline when they are known; a plan is an event, `plan-made`.

        A recovery may take another plan while it is open, as long as that is a plan of this very ceremony.

        Raises:
            NotKnown: there is no such ceremony.
            CeremonyEnded: it is closed.
            LedgerConflict: it has another plan already, or had this one before and took another.
        """
        self._database.write(
            lambda s: ceremonies.set_phase(s, ceremony, phase, plan=plan, deadline=deadline, now=self._clock())
        )

    def close_ceremony(self, ceremony: str, outcome: Outcome, detail: str = "") -> None:
        """Record that a ceremony ended, with the event `ceremony-closed`.

        Raises:
            NotKnown: there is no such ceremony.
            LedgerConflict: it ended otherwise already.
        """
        self._database.write(lambda s: ceremonies.close(s, ceremony, outcome, detail, self._clock()))

    def end_ceremony(
        self, ceremony: str, outcome: Outcome, detail: str, events: Sequence[NewEvent], master_key: str
    ) -> None:
        """Append a ceremony's last events, delete what it staged and did not commit, and close it: all or nothing.

        Raises:
            As `append`, `discard_staged` and `close_ceremony`.
        """

        def work(session: Session) -> None:
            self._append(session, ceremony, events, master_key)
            protections.discard_staged(session, ceremony, self._clock())
            ceremonies.close(session, ceremony, outcome, detail, self._clock())

        self._database.write(work)

    def ceremony(self, ceremony: str) -> CeremonyRecord:
        """One ceremony.

        Raises:
            NotKnown: there is no such ceremony.
            LedgerCorrupt: its plan was altered.
        """
        return self._database.read(lambda s: ceremonies.to_record(ceremonies.find(s, ceremony)))

    def ceremonies(
        self, master_key: str | None = None, *, open_only: bool = False, limit: int = 100
    ) -> list[CeremonyRecord]:
        """Ceremonies, the newest first.

        Raises:
            LedgerCorrupt: a plan was altered.
        """
        query = select(Ceremony).order_by(Ceremony.opened_at.desc(), Ceremony.ceremony.desc()).limit(limit)
        if master_key is not None:
            query = query.where(Ceremony.master_key == master_key)
        if open_only:
            query = query.where(Ceremony.outcome == "")
        return self._database.read(lambda s: [ceremonies.to_record(row) for row in s.scalars(query)])

    # --- protections -------------------------------------------------------------------------------------

    def stage(self, record: ProtectionRecord) -> None:
        """Store a protection that does not serve yet, with the event `protection-staged`.

        Raises:
            NotKnown: there is no such ceremony, or (except at init) no such MasterKey.
            CeremonyEnded: the ceremony is closed.
            NameTaken: at init: the MasterKey exists already.
            LedgerConflict: this attempt staged something else already.
            LedgerCorrupt: the digest is not the manifest's, or a shard is missing.
        """
        self._database.write(lambda s: protections.stage(s, record, self._clock()))

    def commit(self, ceremony: str, attempt: int, *, retention: timedelta | None = None) -> None:
        """Make a staged protection the active one of its purpose; the one before is retired.

        One transaction, with the event `protection-committed`. At init it creates the MasterKey. What else
        the ceremony staged is deleted.

        Args:
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
        self._database.write(lambda s: protections.commit(s, ceremony, attempt, retention, self._clock()))

    def discard_staged(self, ceremony: str) -> int:
        """Delete what a ceremony staged and did not commit, with the event `staged-discarded` if any.

        Returns:
            How many protections that were.
        """
        return self._database.write(lambda s: protections.discard_staged(s, ceremony, self._clock()))

    def collect_staged(self, older_than: datetime) -> list[str]:
        """The ceremonies that closed before a time and left something staged; for `discard_staged`."""
        return self._database.read(lambda s: protections.collect_staged(s, older_than))

    def protection(self, master_key: str, *, digest: str | None = None, purpose: str = "primary") -> ProtectionRecord:
        """The active protection of a purpose, or the one of a digest, whatever its purpose and status.

        The manifest fits its digest and the shards are complete; all else is for the caller to verify.

        Raises:
            NotKnown: there is none.
            LedgerCorrupt: it was altered.
        """
        return self._database.read(lambda s: protections.find(s, master_key, manifest=digest, purpose=purpose))

    def protections(self, master_key: str) -> list[ProtectionRecord]:
        """All protections of a MasterKey, staged and retired ones too, by epoch; none if it is not known.

        Raises:
            LedgerCorrupt: one was altered.
        """
        return self._database.read(lambda s: protections.of(s, master_key))

    def master_keys(self) -> list[MasterKeyRecord]:
        """The MasterKeys that were ever committed, by name."""
        return self._database.read(protections.master_keys)

    # --- events ------------------------------------------------------------------------------------------

    def append(self, ceremony: str, key: str, type_: str, body: dict[str, Any], master_key: str = "") -> EventRecord:
        """Append an event, once for each ceremony and key; the same again returns what is there.

        Args:
            ceremony: id, or "" for an event that belongs to none.
            key: 1 to 200 printable ASCII characters; those that begin with `ledger:` are the ledger's own.
            type_: lower case and hyphens.
            body: JSON; not secret.
            master_key: name, or "".

        Raises:
            LedgerConflict: another event has this key, or the key is the ledger's own.
        """
        event = NewEvent(key, type_, body)
        return self._database.write(lambda s: self._append(s, ceremony, [event], master_key)[0])

    def note_roster(self, number: int, digest: str) -> None:
        """Record that a roster version is in force, with the event `roster-seen`; once for each."""
        key, body = f"ledger:roster-seen:{digest}", {"number": number, "digest": digest}

        def work(session: Session) -> None:
            chain.append(
                session, ceremony="", key=key, type_="roster-seen", body=body, master_key="", now=self._clock()
            )

        self._database.write(work)

    def record(self, ceremony: str, events: Sequence[NewEvent], master_key: str, phase: str) -> None:
        """Append events of a ceremony, and record how far it is: all or nothing.

        Raises:
            As `append` and `set_phase`.
        """

        def work(session: Session) -> None:
            self._append(session, ceremony, events, master_key)
            ceremonies.set_phase(session, ceremony, phase, plan=None, deadline=None, now=self._clock())

        self._database.write(work)

    def events(
        self,
        master_key: str | None = None,
        ceremony: str | None = None,
        *,
        after: int = 0,
        limit: int = 1000,
    ) -> list[EventRecord]:
        """Events in their order, after a sequence number; unverified, see `verify_chain`."""
        query = select(Event).where(Event.seq > after).order_by(Event.seq).limit(limit)
        if master_key is not None:
            query = query.where(Event.master_key == master_key)
        if ceremony is not None:
            query = query.where(Event.ceremony == ceremony)
        return self._database.read(lambda s: [chain.to_record(row) for row in s.scalars(query)])

    def last_event(self, master_key: str, type_: str) -> EventRecord | None:
        """The newest event of a type about a MasterKey, or None; unverified, see `verify_chain`."""
        query = select(Event).where(Event.master_key == master_key, Event.type == type_)
        query = query.order_by(Event.seq.desc()).limit(1)
        return self._database.read(lambda s: next((chain.to_record(row) for row in s.scalars(query)), None))

    def newest_events(self, master_key: str, type_: str, *, limit: int) -> Iterator[EventRecord]:
        """Events of a type about a MasterKey, the newest first, read as they are asked for; unverified."""
        before = None
        for _ in range(0, limit, _PAGE):
            page = self._database.read(partial(_page, master_key=master_key, type_=type_, before=before))
            yield from page
            if len(page) < _PAGE:
                return
            before = page[-1].seq

    def verify_chain(self) -> Head:
        """Recompute the hash chain of all events.

        It shows what was changed, removed, reordered or cut off. Whoever controls the whole database can
        compute a new chain, or put back an old copy: only a head that was noted elsewhere tells.

        Returns:
            The number of events and the digest of the last.

        Raises:
            LedgerCorrupt: naming the first event that does not fit.
        """
        return self._database.read(chain.verify)

    def verified_events(self) -> tuple[list[EventRecord], Head]:
        """All events, and where their chain ends: one snapshot, whose chain is recomputed.

        Raises:
            LedgerCorrupt: as `verify_chain`.
        """
        return self._database.read(chain.verified)

    def _append(
        self, session: Session, ceremony: str, events: Sequence[NewEvent], master_key: str
    ) -> list[EventRecord]:
        row = session.get(Ceremony, ceremony) if events else None
        if row is not None and row.master_key != master_key:
            raise LedgerConflict(f"ceremony {ceremony} is about {row.master_key}", subject=ceremony)
        for event in events:
            if event.key.startswith("ledger:"):
                raise LedgerConflict(f"the event key {event.key!r} is the ledger's own")
        return [
            chain.append(
                session,
                ceremony=ceremony,
                key=event.key,
                type_=event.type,
                body=event.body,
                master_key=master_key,
                now=self._clock(),
            )
            for event in events
        ]

    def _revision(self) -> str | None:
        return self._database.read(lambda s: schema.current(s.connection()))

    @staticmethod
    def _refuse_newer(revision: str | None) -> None:
        if revision is not None and not schema.known(revision):
            raise ConfigurationInvalid(
                f"the ledger's schema {revision} is newer than this program",
                next_step="install the version of masterkey that migrated it",
            )


def _page(session: Session, *, master_key: str, type_: str, before: int | None) -> list[EventRecord]:
    query = select(Event).where(Event.master_key == master_key, Event.type == type_)
    if before is not None:
        query = query.where(Event.seq < before)
    return [chain.to_record(row) for row in session.scalars(query.order_by(Event.seq.desc()).limit(_PAGE))]
