"""A session, and the data keys that reach it: opened only if the right keystore worker signed them for it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from activities.crypto import hpke
from activities.identity import Identity
from workflows.contracts.messages.protection import DekAnswer
from workflows.contracts.trust.authority import Granted
from workflows.contracts.trust.canonical import decode64, digest
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import AnswerInvalid
from workflows.contracts.trust.fields import Mechanism
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.protection import KeystoreContext, ShardBinding
from workflows.contracts.trust.session import DekResponse, SessionAnnouncement, dek_info
from workflows.contracts.trust.validity import CLOCK_SKEW, SESSION_LIFETIME, check_time


@dataclass(frozen=True)
class Session:
    """What a session knows of itself."""

    key: hpke.PrivateKey
    identity: Identity
    chain: RosterChain
    plan: Plan
    announcement: SessionAnnouncement
    software: str | None = None


def open_data_key(
    session: Session, granted: Granted, answer: DekAnswer, context: KeystoreContext, now: datetime
) -> tuple[ShardBinding, bytes, Mechanism]:
    """Open a DEK that the keystore worker of the roster signed for this session, shard and authority.

    Returns:
        What the shard is bound to, the DEK (32 bytes), and how the keystore says that it wraps.

    Raises:
        DocumentInvalid, AnswerInvalid: another signer, or made for something else.
        ApprovalInvalid: it is out of time.
        CiphertextInvalid: it does not open.
    """
    response, _ = session.chain.current.open(DekResponse, answer.response, of=context.keystore)
    ciphertext, wrapped_hash = decode64(answer.ciphertext), digest(decode64(answer.wrapped_dek))
    plan, ours = granted.plan, session.announcement
    expected = (ours.purpose, plan.master_key, context.protection, context.index)
    said = (response.purpose, response.master_key, response.protection, response.index)
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
        raise AnswerInvalid(f"the DEK from {context.keystore} was made for something else", subject=context.keystore)
    check_time("the DEK", response.time, ours.expires, now, SESSION_LIFETIME + CLOCK_SKEW)
    binding = ShardBinding.model_validate(
        {**context.context_part(), "key_version": response.key_version, "wrapped_hash": wrapped_hash}
    )
    dek = session.key.open(ciphertext, dek_info(ours.digest, context.context_hash, ours.purpose))
    return binding, dek, response.mechanism
