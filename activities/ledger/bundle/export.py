"""Making a bundle from a ledger: one snapshot, the same bytes each time as long as nothing changed.

A ledger that contradicts its own event log is not exported: its bundle would be refused on the day when it is needed.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from activities.ledger.bundle.format import Bundle, BundleProtection, check_size, normal_roster, normal_signature
from activities.ledger.bundle.verify import at, check_shards
from activities.ledger.log.records import ProtectionRecord, StopRecord, read_row
from activities.ledger.log.state import LedgerState, fold
from activities.ledger.store import chain, protections
from activities.ledger.store.ledger import Ledger
from activities.ledger.store.models import ProtectionRow, StopRow
from activities.roster import RosterSource
from workflows.contracts.trust.canonical import digest
from workflows.contracts.trust.chain import RosterVersion, parse_roster_file, verify_chain
from workflows.contracts.trust.errors import RosterInvalid
from workflows.contracts.trust.import_approval import BundleHead
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.service_errors import BundleInvalid, LedgerCorrupt, NotKnown


class Exported(NamedTuple):
    """A bundle's bytes, and where its event log ends."""

    data: bytes
    head: BundleHead


def export(ledger: Ledger, roster: RosterSource) -> Exported:
    """The bundle of a ledger, with the roster of this host.

    Raises:
        NotKnown: the ledger is empty.
        LedgerCorrupt: the hash chain breaks, or rows and events contradict each other.
        RosterInvalid: the roster does not verify, or is older than one under which a ceremony began.
        BundleInvalid: it would be larger than is allowed.
    """
    roster.load()
    file = parse_roster_file(roster.file.read_text(encoding="utf-8"))
    versions = normal_roster(file, verify_chain(file, genesis=roster.genesis, minimum_number=roster.minimum))
    return ledger.read(lambda session: export_snapshot(session, versions))


def export_snapshot(session: Session, roster: tuple[RosterVersion, ...]) -> Exported:
    """As `export`, of what a transaction sees, with roster versions that are in a bundle's form."""
    events, head = chain.verified(session)
    if head.events == 0:
        raise NotKnown("the ledger is empty: there is nothing to export", next_step="create a MasterKey first")
    rows = session.scalars(
        select(ProtectionRow)
        .where(ProtectionRow.status != "staged")
        .order_by(ProtectionRow.master_key, ProtectionRow.epoch)
    )
    records = [protections.to_record(row) for row in rows]
    bundle = Bundle(
        created=events[-1].at,
        head=BundleHead(events=head.events, digest=head.digest),
        roster=roster,
        master_keys=tuple(protections.master_keys(session)),
        protections=tuple(_entry(record) for record in records),
        events=tuple(events),
    )
    try:
        state = fold(events)
        _check(session, bundle, records, state)
    except BundleInvalid as error:
        raise LedgerCorrupt(f"the ledger contradicts its own event log: {error.message}") from None
    if set(state.rosters) - {digest(version.document.encode()) for version in roster}:
        raise RosterInvalid("a ceremony began under a newer roster than this host's: the bundle would not verify")
    data = bundle.canonical()
    check_size(len(data))
    return Exported(data, bundle.head)


def _entry(record: ProtectionRecord) -> BundleProtection:
    return BundleProtection(
        manifest=record.manifest,
        signature=normal_signature(record.signature),
        status=record.status,
        destroy_after=record.destroy_after,
        shards=record.shards,
    )


def _check(session: Session, bundle: Bundle, records: list[ProtectionRecord], state: LedgerState) -> None:
    for record, entry in zip(records, bundle.protections, strict=True):
        with at(place := f"protection {record.protection}"):
            check_shards(entry, Manifest.parse(entry.manifest.encode()), place)
    told = {name: (past.status, past.destroy_after) for name, past in state.protections.items()}
    if {record.digest: (record.status, record.destroy_after) for record in records} != told:
        raise BundleInvalid("the statuses of protections")
    if {entry.master_key: entry for entry in bundle.master_keys} != state.master_keys:
        raise BundleInvalid("the MasterKeys")
    stops = {name: (past.signed.document, past.lifted_at, past.lifted_by) for name, past in state.stops.items()}
    found = [read_row(StopRecord, row) for row in session.scalars(select(StopRow))]
    if {stop.digest: (stop.document, stop.lifted_at, stop.lifted_by) for stop in found} != stops:
        raise BundleInvalid("the stops")
