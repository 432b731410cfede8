"""What is signed while a MasterKey is open: a session's key, data keys on their way to it, a delivery. After `plan`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import StringConstraints

from workflows.contracts.trust.canonical import (
    Base64,
    Digest,
    Document,
    Fingerprint,
    Name,
    Role,
    Time,
    canonical_json,
)
from workflows.contracts.trust.fields import CeremonyId, Check, Index, KeyId, Mechanism, Nonce, Number, Suite, Work


class SessionAnnouncement(Document):
    """The public half of a session's HPKE key, signed by the strongroom's identity."""

    TYPE: ClassVar[str] = "masterkey-session"
    SIGNER: ClassVar[Role | None] = "strongroom"

    type: Literal["masterkey-session"] = "masterkey-session"
    version: Literal[1] = 1
    session: Nonce
    purpose: Work
    suite: Suite
    hpke_public_key: Base64
    strongroom: Fingerprint
    master_key: Name
    ceremony: CeremonyId
    attempt: Number
    plan: Digest
    source: Digest | None
    roster: Digest
    issued: Time
    expires: Time


class DekResponse(Document):
    """A keystore worker's signature over a DEK that it encrypted to a session."""

    TYPE: ClassVar[str] = "masterkey-dek"
    SIGNER: ClassVar[Role | None] = "keystore"

    type: Literal["masterkey-dek"] = "masterkey-dek"
    version: Literal[1] = 1
    purpose: Work
    master_key: Name
    protection: str
    index: Index
    keystore: Name
    key_id: KeyId
    key_version: Annotated[str, StringConstraints(max_length=256)]
    mechanism: Mechanism = "aes-gcm"
    context: Digest
    wrapped_hash: Digest
    session: Digest
    authority: Digest
    ciphertext_hash: Digest
    time: Time


class Delivery(Document):
    """The strongroom's signature over a MasterKey encrypted to a recipient."""

    TYPE: ClassVar[str] = "masterkey-delivery"
    SIGNER: ClassVar[Role | None] = "strongroom"

    type: Literal["masterkey-delivery"] = "masterkey-delivery"
    version: Literal[1] = 1
    master_key: Name
    ceremony: CeremonyId
    request: Digest
    manifest: Digest
    kcv: Check
    recipient_key: Digest
    strongroom: Fingerprint
    ciphertext_hash: Digest
    time: Time


def dek_info(session: str, context: str, purpose: Work) -> bytes:
    """HPKE `info` of a DEK on its way to a session: digest of the session, hash of the context, purpose."""
    return canonical_json({"context": context, "purpose": purpose, "session": session, "type": "masterkey-dek"})


def delivery_info(request: str, manifest: str, kcv: str) -> bytes:
    """HPKE `info` of a delivery: digest of the request, digest of the manifest, KCV."""
    return canonical_json({"kcv": kcv, "manifest": manifest, "request": request, "type": "masterkey-delivery"})
