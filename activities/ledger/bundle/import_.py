"""Making a ledger from a bundle, or bringing one up to date: what is missing is added, nothing is overwritten.

The events are applied in their order, through the very triggers that guard the tables, in one transaction: it ends
with a ledger that exports the same bundle, or nothing was changed. Refused is what does not continue the ledger that
is there, what is older than keystores know it, and, where there is no ledger to compare with, what the governance
quorum did not ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from activities.ledger.bundle.export import export_snapshot
from activities.ledger.bundle.format import BundleProtection
from activities.ledger.bundle.verify import Verified
from activities.ledger.log.events import BundleImported, ProtectionStaged, read_event
from activities.ledger.log.records import EventRecord
from activities.ledger.store import chain, rows
from activities.ledger.store.database import WriteSession
from activities.ledger.store.ledger import Ledger
from activities.ledger.store.models import EventRow, MasterKeyRow
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.import_approval import check_import
from workflows.contracts.trust.service_errors import BundleInvalid

Served = Mapping[str, tuple[str, Mapping[str, int]]]
"""For each MasterKey what keystore workers say that they serve: its KCV, and the lowest epoch for each purpose."""


@dataclass(frozen=True)
class ImportResult:
    """What an import did.

    Attributes:
        added: events that were added; 0 if the ledger held everything already.
        approved_by: names of the quorum that asked for it, if the ledger was empty.
    """

    added: int
    approved_by: tuple[str, ...] = ()


def import_bundle(
    ledger: Ledger,
    verified: Verified,
    *,
    roster: RosterChain | None = None,
    approvals: Sequence[Signed] = (),
    served: Served | None = None,
) -> ImportResult:
    """Import a bundle that was verified.

    Args:
        ledger: upgraded; empty, or with a log that the bundle's continues.
        verified: the bundle.
        roster: this host's roster, if it has one; the bundle's is used if that is newer.
        approvals: the governance quorum's signed `ImportApproval`s: needed where the ledger is empty.
        served: what keystore workers serve, as far as they were asked.

    Raises:
        BundleInvalid: it does not continue what is there, or is older than what keystores serve.
        ApprovalInvalid: the ledger is empty, and the quorum did not ask for this bundle.
        LedgerConflict: the ledger's constraints refuse it.
    """
    quorum_chain = agreed_roster(verified.chain, roster)
    check_served(verified, served or {})

    return ledger.write(lambda session: _import(session, verified, quorum_chain, approvals))


def agreed_roster(bundled: RosterChain, ours: RosterChain | None) -> RosterChain:
    """The newer of two rosters, of which one must continue the other.

    Raises:
        BundleInvalid: they do not.
    """
    if ours is None:
        return bundled
    shorter, longer = sorted((bundled, ours), key=lambda chain: len(chain.digests))
    if longer.digests[: len(shorter.digests)] != shorter.digests:
        raise BundleInvalid("the bundle's roster and the one of this host do not continue each other")
    return longer


def check_served(verified: Verified, served: Served) -> None:
    """Check that a bundle is not older than what keystore workers serve.

    Raises:
        BundleInvalid: it lacks a MasterKey that they serve, or a newer protection of it; or it is another MasterKey.
    """
    known = {entry.name: entry for entry in verified.master_keys}
    for name, (kcv, lowest) in sorted(served.items()):
        entry = known.get(name)
        if entry is None:
            if kcv:
                raise BundleInvalid(
                    f"keystores serve {name}, and the bundle does not know it: it is older", subject=name
                )
            continue
        if kcv not in ("", entry.kcv):
            raise BundleInvalid(f"keystores serve another {name}, with the KCV {kcv}", subject=name)
        active: dict[str, int] = {one.purpose: one.epoch for one in entry.protections if one.status == "active"}
        for purpose, epoch in sorted(lowest.items()):
            # Once a protection was retired without a successor, keystores serve from the epoch after it.
            if active.get(purpose, entry.epoch + 1) < epoch:
                raise BundleInvalid(
                    f"keystores serve the {purpose} protection of {name} from epoch {epoch} on, and the bundle does"
                    " not have that: it is older",
                    subject=name,
                )


def _import(
    session: WriteSession, verified: Verified, roster: RosterChain, approvals: Sequence[Signed]
) -> ImportResult:
    if chain.has(session, "", BundleImported.key_of(verified.terms.bundle)):
        return ImportResult(0)
    have = _check_continues(session, verified)
    missing = verified.bundle.events[have:]
    if not missing:
        return ImportResult(0)
    approved: tuple[str, ...] = ()
    if have == 0:
        quorums = {name: _highest_quorum(verified, name) for name in verified.state.master_keys}
        approved = check_import(roster, verified.terms, approvals, quorums, session.now)
    append_events(session, missing, {entry.signed.digest: entry for entry in verified.bundle.protections})
    if export_snapshot(session, verified.bundle.roster).data != verified.bundle.canonical():
        raise BundleInvalid("what would come of the import is not what the bundle says; nothing was changed")
    asked = tuple(approvals) if have == 0 else ()
    rows.write(session, BundleImported(bundle=verified.terms.bundle, events=len(missing), approvals=asked))
    return ImportResult(len(missing), approved)


def append_events(
    session: WriteSession, events: Iterable[EventRecord], committed: Mapping[str, BundleProtection]
) -> None:
    """Append verified events as they are, and do to the rows what the ledger's own did when they were written.

    Only a protection that came to be committed is in the bundle, and gets a row.

    Raises:
        BundleInvalid: an event speaks of something that is not there.
        LedgerConflict: one does not follow the ledger's last.
    """
    for event in events:
        chain.add(session, event)
        if (said := read_event(event)) is not None:
            content = committed.get(said.digest) if isinstance(said, ProtectionStaged) else None
            rows.apply(session, event, said, content)


def _check_continues(session: Session, verified: Verified) -> int:
    """The number of events that the ledger has, all of which the bundle must have too.

    Raises:
        BundleInvalid: it has not.
    """
    theirs = {name: known.kcv for name, known in verified.state.master_keys.items()}
    for row in session.scalars(select(MasterKeyRow)):
        if theirs.get(row.name, row.kcv) != row.kcv:
            raise BundleInvalid(f"the bundle is of another MasterKey {row.name}: its KCV differs", subject=row.name)
    have = 0
    events = verified.bundle.events
    for have, found in enumerate(session.scalars(select(EventRow.digest).order_by(EventRow.seq)), start=1):
        if have > len(events):
            break
        if found != events[have - 1].digest:
            raise BundleInvalid(
                f"the bundle does not continue this ledger: event {have} differs",
                next_step="it is of another installation, or of a ledger that went another way; nothing was changed",
                subject=f"event {have}",
            )
    if have > len(events):
        raise BundleInvalid(
            f"the bundle ends at event {len(events)}, and this ledger goes on after that: the bundle is older",
            next_step="nothing was changed; import a newer one, if there is one",
        )
    return have


def _highest_quorum(verified: Verified, name: str) -> int:
    active = [found for found, past in verified.state.protections.items() if past.status == "active"]
    ours = [verified.manifests[found] for found in active]
    return max((manifest.governance_quorum for manifest in ours if manifest.master_key == name), default=1)
