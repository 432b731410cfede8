"""What a data key is bound to: the context of its shard, derived by keystore worker and session alike."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from activities.crypto.envelope import DEK_BYTES
from workflows.contracts.trust.canonical import canonical_json
from workflows.contracts.trust.plan import Plan, Target
from workflows.contracts.trust.protection import KeystoreContext
from workflows.contracts.trust.session import SessionAnnouncement

Context = Mapping[str, str]
"""The fields that a wrapped DEK is bound to; all keys and values are text."""


def context_for(announcement: SessionAnnouncement, plan: Plan, target: Target, index: int) -> KeystoreContext:
    """The context that a new shard's DEK is wrapped with."""
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


def context_bytes(context: Context) -> bytes:
    """The canonical JSON of a context, for services that take associated data as bytes."""
    return canonical_json(dict(context))


def context_hash(context: Context) -> bytes:
    """SHA-256 of the canonical context, 32 bytes."""
    return hashlib.sha256(context_bytes(context)).digest()


def bind_context(dek: bytes, context: Context) -> bytes:
    """What is encrypted where nothing authenticates a context: DEK and SHA-256 of the context, 64 bytes.

    Raises:
        ValueError: the DEK is not 32 bytes long.
    """
    if len(dek) != DEK_BYTES:
        raise ValueError(f"a DEK is {DEK_BYTES} bytes")
    return dek + context_hash(context)


def unbind_context(plain: bytes, context: Context) -> bytes | None:
    """The DEK (32 bytes) in what `bind_context` made, or None if it was made with another context."""
    dek, bound = plain[:DEK_BYTES], plain[DEK_BYTES:]
    return dek if hmac.compare_digest(bound, context_hash(context)) else None
