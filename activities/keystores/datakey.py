"""The three things that a keystore does, in a one-shot process: generate, unwrap and check a data key.

The process verifies for itself everything that authorises the call, talks to its one keystore, encrypts the
DEK to the session that the strongroom has signed, signs what it did, and exits. The caller is not trusted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from activities.crypto.context import context_for
from activities.crypto.envelope import DEK_BYTES, dek_check_value, equal
from activities.crypto.hpke import encrypt_to
from activities.keystores import memory
from activities.keystores.context import CallContext, KeystoreTerms
from activities.keystores.kinds.base import KeyRef, WrappedKey
from activities.oneshot.child import Channel
from activities.oneshot.requests import Asked
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
from workflows.contracts.trust.errors import AuthorityInvalid, CiphertextInvalid, ManifestInvalid
from workflows.contracts.trust.fields import Work
from workflows.contracts.trust.keystore import CheckResponse, KeyDescription, check_session
from workflows.contracts.trust.plan import parse_plan
from workflows.contracts.trust.protection import KeystoreContext, Manifest, ManifestShard
from workflows.contracts.trust.service_errors import KeyNotFound
from workflows.contracts.trust.session import DekResponse, SessionAnnouncement, dek_info


class KeystoreCall(Asked):
    """The one call that a process serves, and of which worker."""

    terms: KeystoreTerms


def serve(channel: Channel) -> None:
    """Serve one call over a pipe: a `KeystoreCall` in, the answer out."""
    asked = channel.read(KeystoreCall)
    call, request = CallContext.open(asked.terms), asked.request(CALLS)
    channel.reply(CALLS[type(request)](call, request, datetime.now(UTC)))


def describe(call: CallContext, _: DescribeKey, now: datetime) -> Signed:
    """Which key this keystore uses, signed (`KeyDescription`).

    Raises:
        KeystoreError: the key is not there or cannot be used.
    """
    key = call.keystore.describe()
    return call.identity.sign(
        KeyDescription(
            keystore=call.terms.name,
            kind=str(call.terms.settings["type"]),
            key_id=key.key_id,
            key_version=key.key_version,
            modes=call.terms.modes,
            time=seconds(now),
        )
    )


def generate(call: CallContext, request: GenerateDataKey, now: datetime) -> DekAnswer:
    """Make a DEK, wrap it, and encrypt it to a session that protects by an approved plan.

    Raises:
        ApprovalInvalid, PlanInvalid: plan, approvals or session do not verify, or do not name this keystore.
        KeystoreError: the keystore refused or failed.
    """
    granted = check_protect(call.chain, request.authority, now)
    purpose: Work = "protect" if granted.plan.action == "init" else "reshard"
    session = check_session(call.chain, request.session, granted.plan, purpose, now)
    target = granted.plan.target
    if target is None or not 1 <= request.index <= target.count:
        raise AuthorityInvalid("the plan has no such shard")
    context = context_for(session, granted.plan, target, request.index)
    _check_place(call, context)
    state = call.state.read()
    state.check_serving(granted.plan.master_key)
    known = state.master_keys.get(granted.plan.master_key)
    if granted.plan.action == "init" and known is not None:
        raise ManifestInvalid(f"MasterKey {granted.plan.master_key} was committed here before")
    if known is not None and target.epoch < known.epochs.get(target.purpose, 1):
        raise ManifestInvalid(f"epoch {target.epoch} is older than what {call.terms.name} serves")
    dek = os.urandom(DEK_BYTES)
    wrapped = call.keystore.wrap(dek, context.fields())
    if wrapped.key.key_id != context.key_id:
        raise KeyNotFound(f"{call.terms.name} uses another key than the plan names", subject=call.terms.name)
    return _answer(call, granted, session, context, dek, wrapped, now)


def unwrap(call: CallContext, request: UnwrapDataKey, now: datetime) -> DekAnswer:
    """Unwrap a DEK and encrypt it to a session that releases, or reshards, by an authorised plan.

    In `sss` mode one of this shard's own custodians must be among those who approved.

    Raises:
        ApprovalInvalid, ManifestInvalid: manifest, approvals, request or session do not verify.
        Stopped: a custodian has ordered to stop.
        KeystoreError: the keystore refused or failed, or the DEK is not the one that was wrapped.
    """
    resharding = parse_plan(request.authority.plan).action in RESHARDING
    check = check_reshard if resharding else check_release
    granted = check(call.chain, request.authority, request.manifest, now)
    assert granted.manifest is not None  # noqa: S101 - both checks set it
    purpose: Work = "reshard" if resharding else "release"
    session = check_session(call.chain, request.session, granted.plan, purpose, now)
    call.state.read().check_serving(granted.plan.master_key)
    shard = _own_shard(call, granted.manifest, request.index)
    granted.check_custodian(shard)
    binding = shard.binding
    key = KeyRef(binding.key_id, binding.key_version)
    wrapped = WrappedKey(decode64(request.wrapped_dek), key, shard.mechanism)
    dek = _unwrap(call, shard, wrapped.wrapped)
    # Again, because a keystore takes its time: no key leaves after a stop or a retirement was acknowledged.
    call.state.read().check_serving(granted.plan.master_key)
    call.state.note_key(granted.manifest)
    return _answer(call, granted, session, binding, dek, wrapped, now)


def check(call: CallContext, request: CheckDataKey, now: datetime) -> Signed:
    """Unwrap a DEK, compare it with its check value, release nothing; the answer is a signed `CheckResponse`.

    Raises:
        ManifestInvalid: the manifest does not verify.
        KeystoreError: the keystore refused or failed, or the DEK is not the one that was wrapped.
    """
    shard = _own_shard(call, check_manifest(request.manifest, call.chain), request.index)
    _unwrap(call, shard, decode64(request.wrapped_dek))
    return call.identity.sign(
        CheckResponse(
            manifest=request.manifest.digest,
            master_key=shard.binding.master_key,
            index=request.index,
            keystore=call.terms.name,
            key_id=shard.binding.key_id,
            key_version=shard.binding.key_version,
            nonce=request.nonce,
            matches=True,
            time=seconds(now),
        )
    )


CALLS: Mapping[type[Message], Callable[[CallContext, Any, datetime], Message]] = {
    DescribeKey: describe,
    GenerateDataKey: generate,
    UnwrapDataKey: unwrap,
    CheckDataKey: check,
    NoteCommit: memory.note_commit,
    NoteOrder: memory.note_order,
    StopServing: memory.stop_serving,
    ReportState: memory.report_state,
}
"""What a keystore worker is asked, and what answers."""


def _own_shard(call: CallContext, manifest: Manifest, index: int) -> ManifestShard:
    call.state.read().check_manifest(manifest)
    if not 1 <= index <= manifest.count:
        raise ManifestInvalid("the manifest has no such shard")
    shard = manifest.shards[index - 1]
    _check_place(call, shard.binding)
    return shard


def _check_place(call: CallContext, context: KeystoreContext) -> None:
    if context.keystore != call.terms.name:
        raise AuthorityInvalid(f"shard {context.index} does not lie in {call.terms.name}")
    if context.mode not in call.terms.modes:
        raise AuthorityInvalid(
            f"{call.terms.name} does not serve {context.mode} protections",
            next_step=f"allow it with `modes` in this worker's configuration, or leave {call.terms.name} out",
            subject=call.terms.name,
        )


def _unwrap(call: CallContext, shard: ManifestShard, wrapped: bytes) -> bytes:
    binding, name = shard.binding, call.terms.name
    if digest(wrapped) != binding.wrapped_hash:
        raise CiphertextInvalid(f"the wrapped DEK in {name} was altered or swapped", subject=name)
    dek = call.keystore.unwrap(wrapped, binding.fields(), KeyRef(binding.key_id, binding.key_version))
    # Some services do not authenticate the context; the check value does, for all of them.
    if not equal(dek_check_value(dek, binding), shard.check_value):
        raise CiphertextInvalid(f"{name} gave back another DEK than it wrapped", subject=name)
    return dek


def _answer(
    call: CallContext,
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
        response=call.identity.sign(response),
        ciphertext=encode64(ciphertext),
        wrapped_dek=encode64(wrapped.wrapped),
    )
