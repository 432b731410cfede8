"""A session: the one-shot process that holds a MasterKey for a few milliseconds.

It makes its own HPKE key, announces the public half signed by the strongroom's identity, receives DEKs that
keystore workers encrypted to that key, protects or releases a MasterKey, answers with ciphertext and signed
documents, and exits. It verifies for itself everything that authorises the work: whoever sends the work is
not trusted.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from activities.identity import Identity
from activities.roster import RosterSource
from activities.strongroom import envelope, hpke, shamir
from activities.strongroom.process import Channel
from workflows.contracts.authority import (
    CLOCK_SKEW,
    SESSION_LIFETIME,
    Granted,
    check_protect,
    check_release,
    check_time,
    parse_plan,
)
from workflows.contracts.canonical import Message, Signed, decode64, digest, encode64, seconds
from workflows.contracts.documents import (
    SUITE,
    DekResponse,
    Delivery,
    KeystoreContext,
    Manifest,
    ManifestShard,
    Mechanism,
    Plan,
    SessionAnnouncement,
    ShardBinding,
    Target,
    Work,
    dek_info,
    delivery_info,
)
from workflows.contracts.errors import ApprovalInvalid, CiphertextInvalid
from workflows.contracts.messages import (
    DekAnswer,
    Delivered,
    Protect,
    Release,
    SessionTerms,
    StoredProtection,
    StoredShard,
)
from workflows.contracts.roster import RosterChain
from workflows.contracts.signatures import open_signed


class ProtectOrRelease(Message):
    """The one thing that a session is asked to do: exactly one of the two is set."""

    protect: Protect | None = None
    release: Release | None = None


@dataclass(frozen=True)
class Session:
    """What a session knows of itself."""

    key: hpke.PrivateKey
    identity: Identity
    chain: RosterChain
    plan: Plan
    announcement: SessionAnnouncement


def serve(channel: Channel) -> None:
    """Run a session over a pipe: terms in, announcement out, work in, answer out."""
    session = open_session(SessionTerms.model_validate_json(channel.receive()), _now())
    # The key dies with its announcement: SIGALRM ends the process, whatever it waits for.
    signal.setitimer(signal.ITIMER_REAL, SESSION_LIFETIME.total_seconds())
    channel.send(session.identity.sign(session.announcement).model_dump_json().encode())
    work = ProtectOrRelease.model_validate_json(channel.receive())
    answer: StoredProtection | Delivered
    if work.protect is not None:
        answer = protect(session, work.protect, _now())
    elif work.release is not None:
        answer = release(session, work.release, _now())
    else:
        raise ApprovalInvalid("the session was asked to do nothing")
    channel.send(answer.model_dump_json().encode())


def open_session(terms: SessionTerms, now: datetime) -> Session:
    """Make a key, and the announcement of its public half.

    Raises:
        ApprovalInvalid: the plan names another strongroom, another roster, or is out of time.
    """
    roster = RosterSource(Path(terms.roster_file), terms.roster_genesis, terms.roster_minimum)
    chain, identity, key = roster.load(), Identity.load(Path(terms.identity)), hpke.PrivateKey()
    plan = parse_plan(terms.plan)
    if plan.strongroom != identity.fingerprint:
        raise ApprovalInvalid("the plan names another strongroom")
    announcement = SessionAnnouncement(
        session=terms.session,
        purpose=terms.purpose,
        suite=SUITE,
        hpke_public_key=key.public_key,
        strongroom=identity.fingerprint,
        master_key=plan.master_key,
        ceremony=plan.ceremony,
        attempt=terms.attempt,
        plan=plan.digest,
        source=plan.source.manifest if plan.source else None,
        roster=chain.digest,
        issued=seconds(now),
        expires=seconds(now) + SESSION_LIFETIME,
    )
    return Session(key, identity, chain, plan, announcement)


def protect(session: Session, work: Protect, now: datetime) -> StoredProtection:
    """Draw a MasterKey and protect it as the approved plan says.

    Raises:
        ApprovalInvalid: plan, approvals, or a keystore's signature do not verify.
        CiphertextInvalid: a DEK does not open, or what was just made does not recombine.
    """
    granted = _granted(session, "protect", check_protect(session.chain, work.authority, now))
    target = granted.plan.target
    assert target is not None  # noqa: S101 - check_protect refuses a plan without one
    if len(work.deks) != target.count:
        raise ApprovalInvalid(f"{len(work.deks)} DEKs for {target.count} shards")
    master_key = secrets.token_bytes(envelope.MASTER_KEY_BYTES)
    plaintexts = _split(master_key, target)
    stored, described = [], []
    for dek_answer, plaintext, place in zip(work.deks, plaintexts, target.shards, strict=True):
        context = context_for(session.announcement, granted.plan, target, place.index)
        binding, dek, mechanism = _open_dek(session, granted, dek_answer, context, now)
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
                wrapped_dek=dek_answer.wrapped_dek,
                nonce=encode64(nonce),
                ciphertext=encode64(ciphertext),
            )
        )
        opened = envelope.decrypt_shard(nonce, ciphertext, dek, binding)
        if opened != plaintext:
            raise CiphertextInvalid(f"shard {binding.index} does not open to what was put in")
    _prove_recombination(master_key, plaintexts, target)
    manifest = Manifest(
        master_key=granted.plan.master_key,
        kcv=envelope.key_check_value(master_key, granted.plan.master_key),
        protection=described[0].binding.protection,
        purpose=target.purpose,
        epoch=target.epoch,
        predecessor=None,
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
        shards=tuple(described),
    )
    return StoredProtection(manifest=session.identity.sign(manifest), shards=tuple(stored))


def release(session: Session, work: Release, now: datetime) -> Delivered:
    """Recombine a MasterKey and encrypt it to the recipient that the plan names.

    Raises:
        ApprovalInvalid, ManifestInvalid: the release is not authorised.
        CiphertextInvalid: a row or a DEK is not what the manifest describes; `subject` is the keystore.
    """
    source = work.protection.manifest
    granted = _granted(session, "release", check_release(session.chain, work.authority, source, now))
    manifest, request = granted.manifest, granted.request
    assert manifest is not None and request is not None  # noqa: S101, PT018 - check_release sets both
    plaintexts: dict[int, bytes] = {}
    rows = {row.index: row for row in work.protection.shards}
    described = {shard.binding.index: shard for shard in manifest.shards}
    for dek_answer in work.deks:
        index = open_signed(DekResponse, dek_answer.response)[0].index
        if index not in rows or index not in described or index in plaintexts:
            raise ApprovalInvalid(f"the DEK for shard {index} belongs to no shard or came twice")
        shard, row = described[index], rows[index]
        binding, dek, _ = _open_dek(session, granted, dek_answer, shard.binding, now)
        if binding != shard.binding or not envelope.equal(envelope.dek_check_value(dek, binding), shard.check_value):
            raise CiphertextInvalid(f"the DEK of shard {index} is another one", subject=binding.keystore)
        plaintexts[index] = _open_shard(row, dek, shard)
    if len(plaintexts) < manifest.threshold:
        raise ApprovalInvalid(f"{len(plaintexts)} shards for a threshold of {manifest.threshold}")
    chosen = [plaintexts[index] for index in sorted(plaintexts)][: manifest.threshold]
    master_key = chosen[0] if manifest.mode == "seal" else shamir.combine(chosen)
    kcv = envelope.key_check_value(master_key, manifest.master_key)
    if not envelope.equal(kcv, manifest.kcv):
        raise CiphertextInvalid("what was recombined does not have the manifest's key check value")
    info = delivery_info(_request_digest(work), source.digest, kcv)
    ciphertext = hpke.encrypt_to(request.hpke_public_key, master_key, info)
    delivery = Delivery(
        master_key=manifest.master_key,
        ceremony=granted.plan.ceremony,
        request=_request_digest(work),
        manifest=source.digest,
        kcv=kcv,
        recipient_key=request.hpke_key,
        strongroom=session.identity.fingerprint,
        ciphertext_hash=digest(ciphertext),
        time=seconds(now),
    )
    return Delivered(delivery=session.identity.sign(delivery), ciphertext=encode64(ciphertext))


def context_for(announcement: SessionAnnouncement, plan: Plan, target: Target, index: int) -> KeystoreContext:
    """The context that a new shard's DEK is wrapped with: keystore worker and session each derive it."""
    place = target.shards[index - 1]
    return KeystoreContext(
        purpose=target.purpose,
        master_key=plan.master_key,
        protection=f"{plan.ceremony}.{announcement.attempt}",
        epoch=target.epoch,
        ceremony=plan.ceremony,
        mode=target.mode,
        threshold=target.threshold,
        count=target.count,
        index=index,
        x=index,
        keystore=place.keystore,
        key_id=place.key_id,
    )


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


def _granted(session: Session, purpose: Work, granted: Granted) -> Granted:
    ours = session.announcement
    if (granted.plan.digest, purpose) != (ours.plan, ours.purpose):
        raise ApprovalInvalid("this session was opened for another plan or purpose")
    return granted


def _open_dek(
    session: Session, granted: Granted, answer: DekAnswer, context: KeystoreContext, now: datetime
) -> tuple[ShardBinding, bytes, Mechanism]:
    # Opens a DEK only if the keystore worker of the roster signed it, for this session, shard and authority.
    response, signer = open_signed(DekResponse, answer.response)
    worker = session.chain.current.keystore(context.keystore)
    if worker is None or signer != worker.fingerprint:
        raise ApprovalInvalid(f"the DEK for {context.keystore} is not signed by its worker", subject=context.keystore)
    ciphertext, wrapped_hash = decode64(answer.ciphertext), digest(decode64(answer.wrapped_dek))
    plan, ours = granted.plan, session.announcement
    expected = (ours.purpose, plan.master_key, context.protection, context.index, context.keystore)
    said = (response.purpose, response.master_key, response.protection, response.index, response.keystore)
    bound = (
        context.key_id,
        context.context_hash,
        wrapped_hash,
        ours.digest,
        granted.digest,
        digest(ciphertext),
    )
    signed = (
        response.key_id,
        response.context,
        response.wrapped_hash,
        response.session,
        response.authority,
        response.ciphertext_hash,
    )
    if said != expected or signed != bound:
        raise ApprovalInvalid(f"the DEK from {context.keystore} was made for something else", subject=context.keystore)
    check_time("the DEK", response.time, ours.expires, now, SESSION_LIFETIME + CLOCK_SKEW)
    binding = ShardBinding.model_validate(
        {**context.context_part(), "key_version": response.key_version, "wrapped_hash": wrapped_hash}
    )
    dek = session.key.open(ciphertext, dek_info(ours.digest, context.context_hash, ours.purpose))
    return binding, dek, response.mechanism


def _open_shard(row: StoredShard, dek: bytes, shard: ManifestShard) -> bytes:
    nonce, ciphertext = decode64(row.nonce), decode64(row.ciphertext)
    keystore = shard.binding.keystore
    if digest(nonce + ciphertext) != shard.ciphertext_hash:
        raise CiphertextInvalid(f"the stored shard {row.index} was altered or swapped", subject=keystore)
    plaintext = envelope.decrypt_shard(nonce, ciphertext, dek, shard.binding)
    if not envelope.equal(envelope.commitment(plaintext, shard.binding, bytes.fromhex(shard.salt)), shard.commitment):
        raise CiphertextInvalid(f"shard {row.index} is not the one that was committed to", subject=keystore)
    return plaintext


def _request_digest(work: Release) -> str:
    signed: Signed | None = work.authority.request
    assert signed is not None  # noqa: S101 - check_release refuses a release without one
    return signed.digest


def _now() -> datetime:
    return datetime.now(UTC)
