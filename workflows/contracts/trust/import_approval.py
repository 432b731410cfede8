"""The governance quorum's word that a bundle may become the ledger, where there is none to compare it with.

An empty ledger cannot tell an old bundle from the newest. Custodians can: they are shown its date, where its event
log ends, and for every MasterKey the key check value and the highest epoch, and sign the digest of the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from workflows.contracts.trust.canonical import Digest, Document, Fingerprint, Name, Part, Role, Signed, Time
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.fields import Check, Number
from workflows.contracts.trust.validity import MAXIMUM_CEREMONY, check_time

IMPORT_LIFETIME = timedelta(days=30)
"""The longest life of an approval to import."""


class BundleHead(Part):
    """Where a bundle's event log ends: the number of events, and the digest of the last."""

    events: Annotated[int, Field(ge=1)]
    digest: Digest


class ImportedMasterKey(Part):
    """What a bundle says of a MasterKey: its key check value, and the highest epoch that was ever committed."""

    name: Name
    kcv: Check
    epoch: Number


class ImportTerms(Part):
    """What a bundle is known by.

    Attributes:
        bundle: SHA-256 of the file.
        created: time of the last event in it.
        master_keys: by name.
    """

    bundle: Digest
    head: BundleHead
    created: Time
    master_keys: tuple[ImportedMasterKey, ...]


class ImportApproval(Document):
    """A custodian's signed consent that an empty ledger is filled from a bundle.

    Attributes:
        terms: the bundle.
        roster: digest of the roster version by which the quorum is judged.
    """

    TYPE: ClassVar[str] = "masterkey-import"
    SIGNER: ClassVar[Role | None] = "custodian"

    type: Literal["masterkey-import"] = "masterkey-import"
    version: Literal[1] = 1
    terms: ImportTerms
    roster: Digest
    custodian: Fingerprint
    issued: Time
    expires: Time


def check_import(
    chain: RosterChain, terms: ImportTerms, approvals: Sequence[Signed], quorums: Mapping[str, int], now: datetime
) -> tuple[str, ...]:
    """Check that the governance quorum of every MasterKey in a bundle wants it to be the ledger.

    Args:
        chain: the verified roster.
        terms: of the bundle that is there.
        approvals: signed `ImportApproval`s, in any order.
        quorums: for each MasterKey, what its active manifests demand; the roster may demand more, never less.
        now: the time.

    Returns:
        Names of those who approved, sorted.

    Raises:
        ApprovalInvalid: one is not a custodian's, is of another bundle or roster or out of time; or too few approved.
        PlanInvalid: the roster has no governance quorum for a MasterKey.
    """
    names = sorted({_approver(chain, terms, signed, now) for signed in approvals})
    for entry in terms.master_keys:
        governance = chain.current.governance_of(entry.name)
        standing, needed = set(names) & set(governance.custodians), max(governance.quorum, quorums.get(entry.name, 1))
        if len(standing) < needed:
            raise ApprovalInvalid(
                f"{len(standing)} custodians of the governance quorum of {entry.name} approved this bundle, "
                f"{needed} are needed",
                next_step="let them sign with `masterkey bundle approve FILE --key KEY`, and give each --approval",
                subject=entry.name,
            )
    return tuple(names)


def _approver(chain: RosterChain, terms: ImportTerms, signed: Signed, now: datetime) -> str:
    approval, name = chain.current.open(ImportApproval, signed)
    if approval.terms != terms:
        raise ApprovalInvalid(
            f"{name} approved another bundle ({approval.terms.bundle})",
            next_step=f"compare the digests: this file is {terms.bundle}",
            subject=name,
        )
    if approval.roster != chain.digest:
        raise ApprovalInvalid(f"{name} approved under another roster version", next_step="sign anew", subject=name)
    what = f"the approval of {name}"
    check_time(what, approval.issued, approval.expires, now, min(IMPORT_LIFETIME, MAXIMUM_CEREMONY))
    return name


def render_import(data: bytes, chain: RosterChain, now: datetime) -> str:
    """An approval to import in words, rendered from the very bytes that are signed.

    Args:
        data: the canonical bytes that will be, or were, signed.
        chain: the verified roster, which gives fingerprints their names.
        now: the time, to say how old the bundle is.

    Returns:
        Lines of text without a trailing newline.

    Raises:
        ApprovalInvalid: the bytes are no approval to import, or were made under another roster.
    """
    approval = ImportApproval.parse(data)
    terms, roster = approval.terms, chain.current
    if approval.roster != chain.digest:
        raise ApprovalInvalid(f"the approval was made under another roster than yours (version {roster.number})")
    signer = roster.custodian(approval.custodian)
    who = signer.name if signer else f"UNKNOWN {approval.custodian}"
    age = max(now - terms.created, timedelta(0))
    lines = [
        f"I, {who}, WANT this bundle to become the ledger, where the ledger is empty:",
        "",
        f"  bundle          {terms.bundle}",
        f"  last event      {terms.created:%Y-%m-%d %H:%M:%S} UTC, {age.days} days and {age.seconds // 3600} hours ago",
        f"  event log       {terms.head.events} events, the last {terms.head.digest}",
    ]
    for entry in terms.master_keys:
        lines.append(f"  MasterKey       {entry.name}, KCV {entry.kcv}, highest epoch {entry.epoch}")
    lines += [
        "",
        "  What happened after its last event is forgotten: a later reshard, stop or retirement. If a newer",
        "  bundle may exist, do not sign.",
        "",
        f"  roster          version {roster.number}, {approval.roster}",
        f"  my consent      signed {approval.issued:%Y-%m-%d %H:%M:%S}, counts until "
        f"{approval.expires:%Y-%m-%d %H:%M:%S} UTC",
        f"  my key          {approval.custodian}",
    ]
    return "\n".join(lines)
