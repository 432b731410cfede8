"""Opening a protection inside a session: data keys in, the MasterKey out, everything verified on the way."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from activities.crypto import envelope, shamir
from activities.strongroom.datakeys import Session, open_data_key
from workflows.contracts.messages.protection import DekAnswer, StoredProtection, StoredShard
from workflows.contracts.trust.authority import Granted
from workflows.contracts.trust.canonical import decode64, digest
from workflows.contracts.trust.errors import AuthorityInvalid, CiphertextInvalid
from workflows.contracts.trust.protection import Manifest, ManifestShard
from workflows.contracts.trust.session import DekResponse


def open_protection(
    session: Session,
    granted: Granted,
    manifest: Manifest,
    protection: StoredProtection,
    deks: Sequence[DekAnswer],
    now: datetime,
) -> bytes:
    """Recombine a MasterKey.

    Args:
        session: whose key the data keys were encrypted to.
        granted: what authorises it.
        manifest: the verified manifest of `protection`.
        protection: its stored rows, unverified.
        deks: data keys of at least M different shards.
        now: the time.

    Returns:
        The MasterKey, 32 bytes, with the manifest's key check value.

    Raises:
        ApprovalInvalid: a data key is not signed by its keystore's worker, is for something else, or none of its
            shard's custodians approved; or too few came.
        CiphertextInvalid: a row or a data key is not what the manifest describes; `subject` is the keystore.
    """
    plaintexts: dict[int, bytes] = {}
    rows = {row.index: row for row in protection.shards}
    described = {shard.binding.index: shard for shard in manifest.shards}
    for answer in deks:
        # Which shard it claims to be of: `open_data_key` verifies that.
        index = DekResponse.parse(answer.response.document.encode()).index
        if index not in rows or index not in described or index in plaintexts:
            raise AuthorityInvalid(f"the DEK for shard {index} belongs to no shard or came twice")
        shard, row = described[index], rows[index]
        granted.check_custodian(shard)
        binding, dek, _ = open_data_key(session, granted, answer, shard.binding, now)
        if binding != shard.binding or not envelope.equal(envelope.dek_check_value(dek, binding), shard.check_value):
            raise CiphertextInvalid(f"the DEK of shard {index} is another one", subject=binding.keystore)
        plaintexts[index] = _open_shard(row, dek, shard)
    if len(plaintexts) < manifest.threshold:
        raise AuthorityInvalid(f"{len(plaintexts)} shards for a threshold of {manifest.threshold}")
    chosen = [plaintexts[index] for index in sorted(plaintexts)][: manifest.threshold]
    master_key = chosen[0] if manifest.mode == "seal" else shamir.combine(chosen)
    if not envelope.equal(envelope.key_check_value(master_key, manifest.master_key), manifest.kcv):
        raise CiphertextInvalid("what was recombined does not have the manifest's key check value")
    return master_key


def _open_shard(row: StoredShard, dek: bytes, shard: ManifestShard) -> bytes:
    nonce, ciphertext = decode64(row.nonce), decode64(row.ciphertext)
    keystore = shard.binding.keystore
    if digest(nonce + ciphertext) != shard.ciphertext_hash:
        raise CiphertextInvalid(f"the stored shard {row.index} was altered or swapped", subject=keystore)
    plaintext = envelope.decrypt_shard(nonce, ciphertext, dek, shard.binding)
    if not envelope.equal(envelope.commitment(plaintext, shard.binding, bytes.fromhex(shard.salt)), shard.commitment):
        raise CiphertextInvalid(f"shard {row.index} is not the one that was committed to", subject=keystore)
    return plaintext
