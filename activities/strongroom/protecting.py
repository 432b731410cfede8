"""Making a protection inside a session: the MasterKey in, ciphertexts and a signed manifest out, proven first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime

from activities.crypto import envelope, shamir
from activities.crypto.context import context_for
from activities.strongroom.datakeys import Session, open_data_key
from workflows.contracts.messages.protection import DekAnswer, StoredProtection, StoredShard
from workflows.contracts.trust.authority import Granted
from workflows.contracts.trust.canonical import digest, encode64, seconds
from workflows.contracts.trust.errors import AuthorityInvalid, CiphertextInvalid, ConfigurationInvalid
from workflows.contracts.trust.fields import Mechanism
from workflows.contracts.trust.plan import Target
from workflows.contracts.trust.protection import KeystoreContext, Manifest, ManifestShard, ShardBinding


def make_protection(
    session: Session, granted: Granted, master_key: bytes, deks: Sequence[DekAnswer], now: datetime
) -> StoredProtection:
    """Protect a MasterKey as the approved plan says.

    Args:
        session: whose key the data keys were encrypted to.
        granted: the plan, with the target, and what authorises it.
        master_key: 32 bytes.
        deks: one for each shard whose keystore has a worker, in order. The data key of an offline keystore's shard
            is drawn here: wrapping it takes only what the roster says of that keystore.
        now: the time.

    Raises:
        ApprovalInvalid: a keystore's signature does not verify, or the numbers do not fit.
        CiphertextInvalid: a DEK does not open, or what was just made does not recombine.
    """
    target = granted.plan.target
    assert target is not None  # noqa: S101 - check_protect refuses a plan without one
    plaintexts, waiting = _split(master_key, target), list(deks)
    stored, described = [], []
    for plaintext, place in zip(plaintexts, target.shards, strict=True):
        context = context_for(session.announcement, granted.plan, target, place.index)
        binding, dek, wrapped, mechanism = _data_key(session, granted, waiting, context, now)
        nonce, ciphertext = envelope.encrypt_shard(plaintext, dek, binding)
        salt = os.urandom(envelope.SALT_BYTES)
        described.append(
            ManifestShard(
                binding=binding,
                custodians=place.custodians,
                ciphertext_hash=digest(nonce + ciphertext),
                salt=salt.hex(),
                commitment=envelope.commitment(plaintext, binding, salt),
                check_value=envelope.dek_check_value(dek, binding),
                mechanism=mechanism,
            )
        )
        stored.append(
            StoredShard(
                index=binding.index,
                keystore=binding.keystore,
                key_id=binding.key_id,
                key_version=binding.key_version,
                wrapped_dek=wrapped,
                nonce=encode64(nonce),
                ciphertext=encode64(ciphertext),
            )
        )
        if envelope.decrypt_shard(nonce, ciphertext, dek, binding) != plaintext:
            raise CiphertextInvalid(f"shard {binding.index} does not open to what was put in")
    if waiting:
        raise AuthorityInvalid(f"{len(deks)} DEKs are more than {target.count} shards need")
    _prove_recombination(master_key, plaintexts, target)
    manifest = Manifest(
        master_key=granted.plan.master_key,
        kcv=envelope.key_check_value(master_key, granted.plan.master_key),
        protection=described[0].binding.protection,
        purpose=target.purpose,
        epoch=target.epoch,
        predecessor=target.predecessor,
        mode=target.mode,
        threshold=target.threshold,
        count=target.count,
        governance_quorum=granted.plan.governance_quorum,
        ceremony=granted.plan.ceremony,
        attempt=session.announcement.attempt,
        plan=granted.plan.digest,
        authority=granted.approvals,
        roster=session.chain.digest,
        strongroom=session.identity.fingerprint,
        created=seconds(now),
        software=session.software,
        shards=tuple(described),
    )
    return StoredProtection(manifest=session.identity.sign(manifest), shards=tuple(stored))


def _data_key(
    session: Session, granted: Granted, waiting: list[DekAnswer], context: KeystoreContext, now: datetime
) -> tuple[ShardBinding, bytes, str, Mechanism]:
    keystore = session.chain.current.keystore(context.keystore)
    if keystore is None or keystore.offline is None:
        if not waiting:
            raise AuthorityInvalid(f"no DEK came for shard {context.index}", subject=context.keystore)
        answer = waiting.pop(0)
        binding, dek, mechanism = open_data_key(session, granted, answer, context, now)
        return binding, dek, answer.wrapped_dek, mechanism
    try:
        # Here and not above: its library is there only where offline keystores are used.
        from activities.crypto.age_wrap import wrap_dek
    except ModuleNotFoundError as error:
        raise ConfigurationInvalid(
            f"the strongroom cannot wrap for {keystore.name}: the Python module {error.name!r} is not installed there",
            next_step="install openkcm-masterkey[offline] on the strongroom's host",
            subject=keystore.name,
        ) from None
    if context.key_id != keystore.offline_key_id:
        raise AuthorityInvalid(f"the plan names another key of {context.keystore} than the roster does")
    dek = os.urandom(envelope.DEK_BYTES)
    wrapped = wrap_dek(keystore.offline, dek, context.fields())
    binding = ShardBinding.model_validate(
        {**context.context_part(), "key_version": "", "wrapped_hash": digest(wrapped)}
    )
    return binding, dek, encode64(wrapped), "age-x25519"


def _split(master_key: bytes, target: Target) -> Sequence[bytes]:
    if target.mode == "seal":
        return [master_key] * target.count
    return shamir.split(master_key, target.threshold, [shard.index for shard in target.shards])


def _prove_recombination(master_key: bytes, plaintexts: Sequence[bytes], target: Target) -> None:
    # Every shard is combined once with the same M-1 others: all N then lie on the one polynomial.
    if target.mode == "seal":
        return
    fixed = list(plaintexts[: target.threshold - 1])
    for plaintext in plaintexts[target.threshold - 1 :]:
        if shamir.combine([*fixed, plaintext]) != master_key:
            raise CiphertextInvalid("the shards do not recombine to the MasterKey")
