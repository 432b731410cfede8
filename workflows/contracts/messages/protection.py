"""What is stored of a protection, and a data key on its way into a session."""

from __future__ import annotations

from workflows.contracts.trust.canonical import Base64, Message, Name, Signed
from workflows.contracts.trust.fields import Index


class StoredShard(Message):
    """A row of the ledger: what is stored of one shard."""

    index: Index
    keystore: Name
    key_id: str
    key_version: str
    wrapped_dek: Base64
    nonce: Base64
    ciphertext: Base64


class StoredProtection(Message):
    """A manifest and the rows of its shards, as the ledger gives them: unverified."""

    manifest: Signed
    shards: tuple[StoredShard, ...]


class DekAnswer(Message):
    """A DEK encrypted to a session, the keystore worker's signature, and the wrapped DEK."""

    response: Signed
    ciphertext: Base64
    wrapped_dek: Base64
