"""The three things that a keystore does, in a one-shot process: generate, unwrap and check a data key.

The process verifies for itself everything that authorises the call, talks to its one keystore, encrypts the
DEK to the session that the strongroom has signed, signs what it did, and exits. The caller is not trusted.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

from activities.crypto.context import context_for
from activities.crypto.envelope import DEK_BYTES, dek_check_value, equal
from activities.crypto.hpke import encrypt_to
from activities.keystores import memory as orders
from activities.keystores.context import Desk, KeystoreTerms
from activities.keystores.kinds.base import KeyRef, WrappedKey
from activities.oneshot.process import Channel
from workflows.contracts.messages.keystore import (
    CheckDataKey,
    DescribeKey,
    GenerateDataKey,
    NoteCommit,
    NoteOrder,
    ReportState,
    StopServing,
    UnwrapDataKey,
)
from workflows.contracts.messages.protection import DekAnswer
from workflows.contracts.trust.authority import (
    RESHARDING,
    Granted,
    check_manifest,
    check_protect,
    check_release,
    check_reshard,
)
from workflows.contracts.trust.canonical import Message, Signed, decode64, digest, encode64, seconds
from workflows.contracts.trust.errors import ApprovalInvalid, CiphertextInvalid, KeyNotFound, ManifestInvalid
from workflows.contracts.trust.fields import Work
from workflows.contracts.trust.keystore import CheckResponse, KeyDescription
from workflows.contracts.trust.plan import parse_plan
from workflows.contracts.trust.protection import KeystoreContext, Manifest, ManifestShard
from workflows.contracts.trust.session import DekResponse, SessionAnnouncement, check_session, dek_info


class KeystoreCall(Message):
    """The one call that a process serves: exactly one of the requests is set."""

    terms: KeystoreTerms
    describe: DescribeKey | None = None
    generate: GenerateDataKey | None = None
    unwrap: UnwrapDataKey | None = None
    check: CheckDataKey | None = None
    note: NoteCommit | None = None
    order: NoteOrder | None = None
    stop: StopServing | None = None
    report: ReportState | None = None


def serve(channel: Channel) -> None:
    """Serve one call over a pipe: a `KeystoreCall` in, the answer's JSON out."""
    call = KeystoreCall.model_validate_json(channel.receive())
    desk, now = Desk.open(call.terms), datetime.now(UTC)
    answer: Message
    if call.describe is not None:
        answer = describe(desk, now)
    elif call.generate is not None:
        answer = generate(desk, call.generate, now)
    elif call.unwrap is not None:
        answer = unwrap(desk, call.unwrap, now)
    elif call.check is not None:
        answer = check(desk, call.check, now)
    elif call.note is not None:
        answer = orders.note_commit(desk, call.note, now)
    elif call.order is not None:
        answer = orders.note_order(desk, call.order, now)
    elif call.stop is not None:
        answer = orders.stop_serving(desk, call.stop, now)
    elif call.report is not None:
        answer = orders.report_state(desk, call.report, now)
    else:
        raise ApprovalInvalid("the keystore was asked for nothing")
    channel.send(answer.model_dump_json().encode())


def describe(desk: Desk, now: datetime) -> Signed:
    """Which key this keystore uses, signed (`KeyDescription`).

    Raises:
        KeystoreError: the key is not there or cannot be used.
    """
    key = desk.keystore.describe()
    return desk.identity.sign(
        KeyDescription(
            keystore=desk.terms.name,
            kind=str(desk.terms.settings["type"]),
            key_id=key.key_id,
            key_version=key.key_version,
            modes=desk.terms.modes,
            time=seconds(now),
        )
    )


def generate(desk: Desk, request: GenerateDataKey, now: datetime) -> DekAnswer:
    """Make a DEK, wrap it, and encrypt it to a session that protects by an approved plan.

    Raises:
        ApprovalInvalid, PlanInvalid: plan, approvals or session do not verify, or do not name this keystore.
        KeystoreError: the keystore refused or failed.
    """
    granted = check_protect(desk.chain, request.authority, now)
    purpose: Work = "protect" if granted.plan.action == "init" else "reshard"
    session = check_session(desk.chain, request.session, granted.plan, purpose, now)
    target = granted.plan.target
    if target is None or not 1 <= request.index <= target.count:
        raise ApprovalInvalid("the plan has no such shard")
    context = context_for(session, granted.plan, target, request.index)
    _check_place(desk, context)
    state = desk.state.read()
    state.check_serving(granted.plan.master_key)
    known = state.master_keys.get(granted.plan.master_key)
    if granted.plan.action == "init" and known is not None:
        raise ManifestInvalid(f"MasterKey {granted.plan.master_key} was committed here before")
    if known is not None and target.epoch < known.epochs.get(target.purpose, 1):
        raise ManifestInvalid(f"epoch {target.epoch} is older than what {desk.terms.name} serves")
    dek = os.urandom(DEK_BYTES)
    wrapped = desk.keystore.wrap(dek, context.fields())
    if wrapped.key.key_id != context.key_id:
        raise KeyNotFound(f"{desk.terms.name} uses another key than the plan names", subject=desk.terms.name)
    return _answer(desk, granted, session, context, dek, wrapped, now)


def unwrap(desk: Desk, request: UnwrapDataKey, now: datetime) -> DekAnswer:
    """Unwrap a DEK and encrypt it to a session that releases, or reshards, by an authorised plan.

    In `sss` mode one of this shard's own custodians must be among those who approved.

    Raises:
        ApprovalInvalid, ManifestInvalid: manifest, approvals, request or session do not verify.
        Stopped: a custodian has ordered to stop.
        KeystoreError: the keystore refused or failed, or the DEK is not the one that was wrapped.
    """
    resharding = parse_plan(request.authority.plan).action in RESHARDING
    check = check_reshard if resharding else check_release
    granted = check(desk.chain, request.authority, request.manifest, now)
    assert granted.manifest is not None  # noqa: S101 - both checks set it
    purpose: Work = "reshard" if resharding else "release"
    session = check_session(desk.chain, request.session, granted.plan, purpose, now)
    desk.state.read().check_serving(granted.plan.master_key)
    shard = _own_shard(desk, granted.manifest, request.index)
    if granted.manifest.mode == "sss" and not set(shard.custodians) & set(granted.approvers):
        raise ApprovalInvalid(
            f"none of the custodians of {desk.terms.name} approved ({', '.join(shard.custodians)})",
            subject=desk.terms.name,
        )
    binding = shard.binding
    key = KeyRef(binding.key_id, binding.key_version)
    wrapped = WrappedKey(decode64(request.wrapped_dek), key, shard.mechanism)
    dek = _unwrap(desk, shard, wrapped.wrapped)
    # Again, because a keystore takes its time: no key leaves after a stop or a retirement was acknowledged.
    desk.state.read().check_serving(granted.plan.master_key)
    desk.state.note_key(granted.manifest)
    return _answer(desk, granted, session, binding, dek, wrapped, now)


def check(desk: Desk, request: CheckDataKey, now: datetime) -> Signed:
    """Unwrap a DEK, compare it with its check value, release nothing; the answer is a signed `CheckResponse`.

    Raises:
        ManifestInvalid: the manifest does not verify.
        KeystoreError: the keystore refused or failed, or the DEK is not the one that was wrapped.
    """
    shard = _own_shard(desk, check_manifest(request.manifest, desk.chain), request.index)
    _unwrap(desk, shard, decode64(request.wrapped_dek))
    return desk.identity.sign(
        CheckResponse(
            manifest=request.manifest.digest,
            master_key=shard.binding.master_key,
            index=request.index,
            keystore=desk.terms.name,
            key_id=shard.binding.key_id,
            key_version=shard.binding.key_version,
            nonce=request.nonce,
            matches=True,
            time=seconds(now),
        )
    )


def _own_shard(desk: Desk, manifest: Manifest, index: int) -> ManifestShard:
    desk.state.read().check_manifest(manifest)
    if not 1 <= index <= manifest.count:
        raise ManifestInvalid("the manifest has no such shard")
    shard = manifest.shards[index - 1]
    _check_place(desk, shard.binding)
    return shard


def _check_place(desk: Desk, context: KeystoreContext) -> None:
    if context.keystore != desk.terms.name:
        raise ApprovalInvalid(f"shard {context.index} does not lie in {desk.terms.name}")
    if context.mode not in desk.terms.modes:
        raise ApprovalInvalid(
            f"{desk.terms.name} does not serve {context.mode} protections",
            next_step=f"allow it with `modes` in this worker's configuration, or leave {desk.terms.name} out",
            subject=desk.terms.name,
        )


def _unwrap(desk: Desk, shard: ManifestShard, wrapped: bytes) -> bytes:
    binding, name = shard.binding, desk.terms.name
    if digest(wrapped) != binding.wrapped_hash:
        raise CiphertextInvalid(f"the wrapped DEK in {name} was altered or swapped", subject=name)
    dek = desk.keystore.unwrap(wrapped, binding.fields(), KeyRef(binding.key_id, binding.key_version))
    # Some services do not authenticate the context; the check value does, for all of them.
    if not equal(dek_check_value(dek, binding), shard.check_value):
        raise CiphertextInvalid(f"{name} gave back another DEK than it wrapped", subject=name)
    return dek


def _answer(
    desk: Desk,
    granted: Granted,
    session: SessionAnnouncement,
    context: KeystoreContext,
    dek: bytes,
    wrapped: WrappedKey,
    now: datetime,
) -> DekAnswer:
    info = dek_info(session.digest, context.context_hash, session.purpose)
    ciphertext = encrypt_to(session.hpke_public_key, dek, info)
    response = DekResponse(
        purpose=session.purpose,
        master_key=context.master_key,
        protection=context.protection,
        index=context.index,
        keystore=context.keystore,
        key_id=context.key_id,
        key_version=wrapped.key.key_version,
        mechanism=wrapped.mechanism,
        context=context.context_hash,
        wrapped_hash=digest(wrapped.wrapped),
        session=session.digest,
        authority=granted.digest,
        ciphertext_hash=digest(ciphertext),
        time=seconds(now),
    )
    return DekAnswer(
        response=desk.identity.sign(response),
        ciphertext=encode64(ciphertext),
        wrapped_dek=encode64(wrapped.wrapped),
    )
