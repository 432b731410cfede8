"""Verifying a bundle, offline: a pure function of its bytes and of what is pinned.

Every signature, hash and rule that the ledger, the keystore workers and the strongroom go by is gone through again.
What a person approved is judged by the roster version and at the time of the approval; what serves now is judged by
the newest roster version too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from activities.ledger.bundle.format import Bundle, BundleProtection, normal_signature, read_bundle, terms_of
from activities.ledger.log.authorization import Authorization, as_of
from activities.ledger.log.records import GENESIS, MasterKeyRecord, ShardRecord, event_digest
from activities.ledger.log.signed import verify_signatures
from activities.ledger.log.state import LedgerState, ProtectionPast, fold
from workflows.contracts.trust.authority import check_manifest
from workflows.contracts.trust.canonical import decode64, digest, encode64
from workflows.contracts.trust.chain import RosterChain, RosterFile, signers_of, verify_chain
from workflows.contracts.trust.errors import MasterKeyError
from workflows.contracts.trust.fields import Mode, Purpose
from workflows.contracts.trust.import_approval import ImportTerms
from workflows.contracts.trust.protection import Manifest, ManifestShard
from workflows.contracts.trust.service_errors import BundleInvalid

_NONCE_BYTES = 12


@dataclass(frozen=True)
class ProtectionOverview:
    """What a bundle holds of one protection: M, N and its status."""

    purpose: Purpose
    status: str
    epoch: int
    mode: Mode
    threshold: int
    count: int
    manifest: str


@dataclass(frozen=True)
class MasterKeyOverview:
    """What a bundle holds of one MasterKey."""

    name: str
    kcv: str
    epoch: int
    protections: tuple[ProtectionOverview, ...]
    stops: int


@dataclass(frozen=True)
class Verified:
    """A bundle that verifies, and what it says.

    Attributes:
        terms: digest of the file, where its event log ends, its date, its MasterKeys.
        chain: its roster, verified from the pinned digest.
        state: what its event log tells.
        manifests: by digest; every one that was ever committed.
        warnings: what was recorded as it came, and does not verify; nothing depends on it.
    """

    bundle: Bundle
    terms: ImportTerms
    chain: RosterChain
    state: LedgerState
    manifests: dict[str, Manifest]
    master_keys: tuple[MasterKeyOverview, ...]
    warnings: tuple[str, ...]


def verify(data: bytes, *, genesis: str, minimum_version: int = 1) -> Verified:
    """Verify a bundle.

    Args:
        data: the file.
        genesis: the pinned digest of the first roster version.
        minimum_version: the oldest roster version that may be its newest.

    Raises:
        BundleInvalid: naming the place, and what is wrong there.
    """
    bundle = read_bundle(data)
    _check_events(bundle)
    chain = _roster(bundle, genesis, minimum_version)
    state = fold(bundle.events)
    if missing := set(state.rosters) - set(chain.digests):
        raise BundleInvalid(f"roster version {min(missing)} was in force, and is not in it", subject="roster")
    if list(bundle.master_keys) != [state.master_keys[name] for name in sorted(state.master_keys)]:
        raise BundleInvalid("the MasterKeys are not those that the event log tells", subject="master_keys")
    signatures = verify_signatures(bundle.events, chain)
    authorization = Authorization(
        chain, signatures, {entry.signed.digest: entry.signed for entry in bundle.protections}
    )
    manifests = _protections(bundle, chain, state, authorization)
    for stop, past in state.stops.items():
        with at(f"stop {stop}"):
            authorization.check_stop(past)
    for event, body in state.orders:
        authorization.check_order(event, body)
    return Verified(
        bundle=bundle,
        terms=terms_of(bundle, digest(data)),
        chain=chain,
        state=state,
        manifests=manifests,
        master_keys=tuple(_overview(entry, state) for entry in bundle.master_keys),
        warnings=tuple(signatures.warnings),
    )


@contextmanager
def at(place: str) -> Iterator[None]:
    """Whatever is found wrong inside is wrong at this place of the bundle.

    Raises:
        BundleInvalid: instead of any other of our errors.
    """
    try:
        yield
    except BundleInvalid:
        raise
    except MasterKeyError as error:
        raise BundleInvalid(f"{place}: {error.message}", subject=place) from None


def _check_events(bundle: Bundle) -> None:
    last, seen = GENESIS, set()
    for number, event in enumerate(bundle.events, start=1):
        if (event.seq, event.previous) != (number, last) or event.digest != event_digest(event.model_dump()):
            raise BundleInvalid(f"the hash chain breaks at event {number}", subject=f"event {number}")
        if (event.ceremony, event.key) in seen:
            raise BundleInvalid(f"event {number} has the key of another", subject=f"event {number}")
        seen.add((event.ceremony, event.key))
        last = event.digest
    if (bundle.head.events, bundle.head.digest) != (len(bundle.events), last):
        raise BundleInvalid("the head is not where the event log ends", subject="head")
    if bundle.created != bundle.events[-1].at:
        raise BundleInvalid("the date is not that of the last event", subject="created")


def _roster(bundle: Bundle, genesis: str, minimum: int) -> RosterChain:
    if not bundle.roster:
        raise BundleInvalid("there is no roster in it", subject="roster")
    with at("roster"):
        chain = verify_chain(RosterFile(versions=bundle.roster), genesis=genesis, minimum_number=minimum)
    for number, entry in enumerate(bundle.roster):
        before = chain.versions[number - 1] if number else None
        counting = len(signers_of(entry, before.change, before)) if before else 0
        if counting != len(entry.signatures) or any(s != normal_signature(s) for s in entry.signatures):
            raise BundleInvalid(f"roster version {number + 1} has a signature that does not count", subject="roster")
    return chain


def _protections(
    bundle: Bundle, chain: RosterChain, state: LedgerState, authorization: Authorization
) -> dict[str, Manifest]:
    """Check every manifest and every shard, and who authorised it."""
    manifests: dict[str, Manifest] = {}
    entries = {entry.signed.digest: entry for entry in bundle.protections}
    told = sorted(state.protections.values(), key=lambda past: (past.master_key, past.said.epoch))
    if [entry.signed.digest for entry in bundle.protections] != [past.said.digest for past in told]:
        raise BundleInvalid("the protections are not those that the event log tells", subject="protections")
    for found, past in state.protections.items():
        place = f"protection {past.said.protection}"
        with at(place):
            manifests[found] = _manifest(entries[found], chain, past, place)
            authorization.check_protection(manifests[found], past)
    return manifests


def _manifest(entry: BundleProtection, chain: RosterChain, past: ProtectionPast, place: str) -> Manifest:
    if (entry.status, entry.destroy_after) != (past.status, past.destroy_after):
        raise BundleInvalid(f"{place}: its status is not the one that the event log tells", subject=place)
    if entry.signature != normal_signature(entry.signature):
        raise BundleInvalid(f"{place}: its signature is not in the form that OpenSSH writes", subject=place)
    parsed = Manifest.parse(entry.manifest.encode())
    # A strongroom that was revoked later signed validly then; what serves now must stand by today's roster.
    manifest = check_manifest(entry.signed, chain if past.status == "active" else as_of(chain, parsed.roster))
    said = {name: getattr(manifest, name) for name in type(past.said).model_fields if name != "digest"}
    if said != past.said.model_dump(exclude={"digest"}) or (manifest.ceremony, manifest.master_key) != (
        past.ceremony,
        past.master_key,
    ):
        raise BundleInvalid(f"{place}: the event log tells something else of its manifest", subject=place)
    check_shards(entry, manifest, place)
    return manifest


def check_shards(entry: BundleProtection, manifest: Manifest, place: str) -> None:
    """Check that a protection has exactly the wrapped keys and ciphertexts that its manifest describes.

    Raises:
        BundleInvalid: it has not; a destroyed one has none.
    """
    rows = () if entry.status == "destroyed" else manifest.shards
    if len(entry.shards) != len(rows):
        raise BundleInvalid(f"{place}: it has {len(entry.shards)} shards, not {len(rows)}", subject=place)
    for row, shard in zip(entry.shards, rows, strict=True):
        _check_shard(row, shard, f"{place}, shard {shard.binding.index}")


def _check_shard(row: ShardRecord, shard: ManifestShard, place: str) -> None:
    binding = shard.binding
    where = (row.index, row.keystore, row.key_id, row.key_version)
    if where != (binding.index, binding.keystore, binding.key_id, binding.key_version):
        raise BundleInvalid(f"{place}: it lies elsewhere than its manifest says", subject=place)
    wrapped, nonce, ciphertext = (decode64(text) for text in (row.wrapped_dek, row.nonce, row.ciphertext))
    if any(encode64(decode64(text)) != text for text in (row.wrapped_dek, row.nonce, row.ciphertext)):
        raise BundleInvalid(f"{place}: its base64 is not the only one of these bytes", subject=place)
    if digest(wrapped) != binding.wrapped_hash:
        raise BundleInvalid(f"{place}: the wrapped data key is not the one of the manifest", subject=place)
    if len(nonce) != _NONCE_BYTES or digest(nonce + ciphertext) != shard.ciphertext_hash:
        raise BundleInvalid(f"{place}: the ciphertext is not the one of the manifest", subject=place)


def _overview(known: MasterKeyRecord, state: LedgerState) -> MasterKeyOverview:
    name = known.master_key
    protections = tuple(
        ProtectionOverview(
            purpose=one.said.purpose,
            status=one.status,
            epoch=one.said.epoch,
            mode=one.said.mode,
            threshold=one.said.threshold,
            count=one.said.count,
            manifest=one.said.digest,
        )
        for one in state.protections.values()
        if one.master_key == name
    )
    stops = sum(stop.master_key == name and stop.lifted_at is None for stop in state.stops.values())
    return MasterKeyOverview(name=name, kcv=known.kcv, epoch=known.epoch, protections=protections, stops=stops)
