"""The bundle: everything that is needed to rebuild the ledger, as one file.

Canonical JSON (RFC 8785), so that the same ledger gives the same bytes everywhere, and the digest of the file is
what people compare and sign. It holds the whole event log, from which ceremonies, statuses and stops are folded;
the manifests and ciphertexts of everything that was ever committed (a destroyed protection without ciphertexts);
the roster, from the version that everybody pins; and, for whoever opens it with a text editor, the MasterKeys.
Nothing that is only staged is in it. Nothing in it is secret, but it is half of what an attacker needs.
"""

from __future__ import annotations

import binascii
import json
from typing import ClassVar, Literal

from activities.ledger.log.records import EventRecord, MasterKeyRecord, ShardRecord, Text
from workflows.contracts.trust.canonical import Document, Part, Signed, Time
from workflows.contracts.trust.chain import RosterChain, RosterFile, RosterVersion, signers_of
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.import_approval import BundleHead, ImportedMasterKey, ImportTerms
from workflows.contracts.trust.service_errors import BundleInvalid
from workflows.contracts.trust.signatures import armour

FORMAT = 1
"""The format that is written. Whoever raises it goes on reading the ones before: see `tests/data/bundle`."""
LIMIT = 128 * 2**20
"""Largest bundle, in bytes: some ten years of daily drills of a dozen shards."""


class BundleProtection(Part):
    """A protection that was committed: its signed manifest, and its shards unless it is destroyed."""

    manifest: Text
    signature: Text
    status: Literal["active", "retired", "destroyed"]
    destroy_after: Time | None
    shards: tuple[ShardRecord, ...]

    @property
    def signed(self) -> Signed:
        """The manifest with its signature."""
        return Signed(document=self.manifest, signature=self.signature)


class Bundle(Document):
    """The whole file; see the module.

    Attributes:
        created: time of the last event: the same ledger gives the same file.
        head: where the event log ends.
        roster: every version, oldest first, without one that is still being signed.
        master_keys: by name.
        protections: in the order of MasterKey and epoch.
        events: in their order, the first first.
    """

    TYPE: ClassVar[str] = "masterkey-bundle"

    type: Literal["masterkey-bundle"] = "masterkey-bundle"
    version: Literal[1] = 1
    created: Time
    head: BundleHead
    roster: tuple[RosterVersion, ...]
    master_keys: tuple[MasterKeyRecord, ...]
    protections: tuple[BundleProtection, ...]
    events: tuple[EventRecord, ...]


def read_bundle(data: bytes) -> Bundle:
    """Read a bundle from exactly its canonical bytes; nothing in it is verified.

    Raises:
        BundleInvalid: too large, not this type and version, a field is wrong, or the bytes are not canonical.
    """
    check_size(len(data))
    try:
        return Bundle.parse(data)
    except ApprovalInvalid as error:
        raise _of_newer_format(data) or BundleInvalid(error.message) from None


def _of_newer_format(data: bytes) -> BundleInvalid | None:
    """The refusal of a bundle whose format no version had when this one was written; None for any other."""
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return None
    version = whole.get("version") if isinstance(whole, dict) and whole.get("type") == Bundle.TYPE else None
    if not isinstance(version, int) or version <= FORMAT:
        return None
    return BundleInvalid(
        f"the bundle has format {version}, and this program reads format {FORMAT}",
        next_step="use the version of masterkey that wrote the bundle, or a later one",
    )


def check_size(size: int) -> None:
    """Refuse a bundle that is larger than any host may have to hold in memory.

    Raises:
        BundleInvalid: it is.
    """
    if size > LIMIT:
        raise BundleInvalid(
            f"the bundle has {size} bytes; {LIMIT} are allowed",
            next_step="back up the ledger's database itself, and schedule drills less often",
        )


def terms_of(bundle: Bundle, file: str) -> ImportTerms:
    """What a bundle is known by.

    Args:
        bundle: the bundle.
        file: digest of its bytes.
    """
    return ImportTerms(
        bundle=file,
        head=bundle.head,
        created=bundle.created,
        master_keys=tuple(
            ImportedMasterKey(name=entry.master_key, kcv=entry.kcv, epoch=entry.epoch) for entry in bundle.master_keys
        ),
    )


def normal_roster(file: RosterFile, chain: RosterChain) -> tuple[RosterVersion, ...]:
    """The versions of a verified roster file as they stand in a bundle.

    Without a proposal, and with one signature, in one form, of each custodian whose signature counts. Nobody signs
    the first version: it is pinned by its digest.
    """
    versions = [RosterVersion(document=file.versions[0].document)]
    for before, entry in zip(chain.versions, file.versions[1:], strict=False):
        counting: dict[str, str] = {}
        for signature in entry.signatures:
            alone = RosterVersion(document=entry.document, signatures=(signature,))
            for name in signers_of(alone, before.change, before):
                counting.setdefault(name, normal_signature(signature))
        versions.append(RosterVersion(document=entry.document, signatures=tuple(counting.values())))
    return tuple(versions)


def normal_signature(signature: str) -> str:
    """An armoured signature with the line breaks that OpenSSH writes; what is none comes back as it is."""
    parts = signature.split("-----")
    try:
        return armour(binascii.a2b_base64("".join(parts[2].split()), strict_mode=True))
    except (IndexError, binascii.Error):
        return signature
