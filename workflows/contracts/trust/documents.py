"""The signed documents, and the parts that they share: section 4.1 of the design as types.

Every document is RFC 8785 canonical JSON; its `type` is the SSHSIG namespace of its signature. Hashes are
SHA-256. A document is parsed only from its canonical bytes.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from workflows.contracts.trust.canonical import (
    Base64,
    Digest,
    Document,
    Fingerprint,
    Hex,
    Name,
    Part,
    Time,
    canonical_json,
    digest,
    later,
)

SUITE = "HPKE-v1/MLKEM768-X25519/HKDF-SHA256/AES-256-GCM"
"""RFC 9180 with the hybrid KEM of draft-ietf-hpke-pq; the one suite in use."""

Suite = Literal["HPKE-v1/MLKEM768-X25519/HKDF-SHA256/AES-256-GCM"]
Action = Literal["init", "unseal", "drill", "seal", "lift", "reshard", "recover", "retire", "destroy"]
Mode = Literal["sss", "seal"]
Purpose = Literal["primary", "emergency"]
Work = Literal["protect", "release", "reshard"]
"""What a session does: draw a MasterKey and protect it, release one, or open one protection and make another."""
Mechanism = Literal["aes-gcm", "rsa-oaep", "age-x25519"]
CLASSICAL = ("rsa-oaep", "age-x25519")
"""Mechanisms that a quantum computer could break; `status` counts the shards that are wrapped so."""
CeremonyId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}\.[a-z]+\.[0-9a-f]{12}$")]
KeyId = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,1024}$")]
"""Printable ASCII without spaces: custodians read it in the statement that they sign, so it can hide nothing."""
Index = Annotated[int, Field(ge=1, le=255)]
Number = Annotated[int, Field(ge=1, le=2_147_483_647)]
Check = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Line = Annotated[str, StringConstraints(pattern=r"^[ -~]{0,200}$")]
"""Printable ASCII, one line: custodians and operators read it on terminals."""
Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]


class TargetShard(Part):
    """Where one shard will be stored, and who may release it.

    Attributes:
        index: 1 to N.
        keystore: configured name.
        key_id: the resolved id of the KMS or HSM key.
        custodians: names from the roster; empty in `seal` mode.
    """

    index: Index
    keystore: Name
    key_id: KeyId
    custodians: tuple[Name, ...]


class Target(Part):
    """The protection that a ceremony will make.

    Attributes:
        predecessor: digest of the active manifest of the same purpose that it replaces, if there is one.
        retention_hours: how long the ciphertexts of the one that it replaces are kept before they are destroyed;
            none: until their destruction is ordered.
    """

    purpose: Purpose
    mode: Mode
    epoch: Number
    threshold: Annotated[int, Field(ge=1, le=255)]
    count: Annotated[int, Field(ge=1, le=255)]
    shards: tuple[TargetShard, ...]
    predecessor: Digest | None = later()
    retention_hours: Annotated[int, Field(ge=0, le=87_600)] | None = later()


class Source(Part):
    """The protection that a ceremony opens."""

    manifest: Digest
    epoch: Number
    mode: Mode
    threshold: Annotated[int, Field(ge=1, le=255)]
    count: Annotated[int, Field(ge=1, le=255)]


class PlanRecipient(Part):
    """Who receives the MasterKey, and the hash of the HPKE public key it is encrypted to."""

    name: Name
    fingerprint: Fingerprint
    hpke_key: Digest


class Plan(Document):
    """The immutable description of what a ceremony will do. Signed as a part of each approval.

    Attributes:
        source: the protection that is opened, retired or destroyed; none at init and when a stop is lifted.
        target: the protection that is made, if one is.
        recipient: who receives the MasterKey, if somebody does.
        stops: digests of the stops that are lifted, if that is the action.
    """

    TYPE: ClassVar[str] = "masterkey-plan"

    type: Literal["masterkey-plan"] = "masterkey-plan"
    version: Literal[1] = 1
    action: Action
    master_key: Name
    ceremony: CeremonyId
    governance_quorum: Annotated[int, Field(ge=1, le=255)]
    source: Source | None
    target: Target | None
    recipient: PlanRecipient | None
    strongroom: Fingerprint
    roster: Digest
    created: Time
    expires: Time
    stops: tuple[Digest, ...] | None = later()


class Approval(Document):
    """A custodian's signed decision about a plan, which it carries whole."""

    TYPE: ClassVar[str] = "masterkey-approval"

    type: Literal["masterkey-approval"] = "masterkey-approval"
    version: Literal[1] = 1
    decision: Literal["approve", "reject"]
    plan: Plan
    plan_digest: Digest
    custodian: Fingerprint
    issued: Time
    expires: Time

    @model_validator(mode="after")
    def _digest_of_the_plan(self) -> Self:
        if self.plan_digest != self.plan.digest:
            raise ValueError("the digest is not that of the plan in it")
        return self


class RecipientRequest(Document):
    """A recipient's signed wish to receive a MasterKey, with the HPKE key for this one time."""

    TYPE: ClassVar[str] = "masterkey-request"

    type: Literal["masterkey-request"] = "masterkey-request"
    version: Literal[1] = 1
    master_key: Name
    ceremony: CeremonyId
    manifest: Digest
    epoch: Number
    recipient: Fingerprint
    suite: Suite
    hpke_public_key: Base64
    strongroom: Fingerprint
    nonce: Nonce
    issued: Time
    expires: Time

    @property
    def hpke_key(self) -> str:
        """Hash of the HPKE public key, as a plan names it."""
        return digest(self.hpke_public_key.encode())


class SessionAnnouncement(Document):
    """The public half of a session's HPKE key, signed by the strongroom's identity."""

    TYPE: ClassVar[str] = "masterkey-session"

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


class KeystoreContext(Part):
    """What a keystore binds a wrapped DEK to: known before the DEK is wrapped.

    The keystore's own encryption context is `fields()`, all as text.
    """

    version: Literal[1] = 1
    purpose: Purpose
    master_key: Name
    protection: Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]{1,128}$")]
    epoch: Number
    ceremony: CeremonyId
    mode: Mode
    threshold: Annotated[int, Field(ge=1, le=255)]
    count: Annotated[int, Field(ge=1, le=255)]
    index: Index
    x: Index
    keystore: Name
    key_id: KeyId

    def fields(self) -> dict[str, str]:
        """The fields as text to text, the form that every keystore can bind to."""
        return {f"masterkey-{name.replace('_', '-')}": str(value) for name, value in self.context_part().items()}

    def context_part(self) -> dict[str, object]:
        """The fields of the context alone, also when this is a whole binding."""
        return self.model_dump(mode="json", include=set(KeystoreContext.model_fields))

    @property
    def context_hash(self) -> str:
        """SHA-256 of the canonical context."""
        return digest(canonical_json(self.context_part()))


class ShardBinding(KeystoreContext):
    """The associated data of a shard: the context, the key version, and the hash of the wrapped DEK."""

    key_version: Annotated[str, StringConstraints(max_length=256)]
    wrapped_hash: Digest

    def associated_data(self) -> bytes:
        """The canonical JSON bytes that the shard's AES-256-GCM authenticates."""
        return canonical_json(self.model_dump(mode="json"))


class DekResponse(Document):
    """A keystore worker's signature over a DEK that it encrypted to a session."""

    TYPE: ClassVar[str] = "masterkey-dek"

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


class CheckResponse(Document):
    """A keystore worker's signed answer that it can still give back a DEK."""

    TYPE: ClassVar[str] = "masterkey-check"

    type: Literal["masterkey-check"] = "masterkey-check"
    version: Literal[1] = 1
    manifest: Digest
    master_key: Name
    index: Index
    keystore: Name
    key_id: KeyId
    key_version: str
    nonce: Nonce
    matches: bool
    time: Time


class KeyDescription(Document):
    """A keystore worker's signed answer which key it uses."""

    TYPE: ClassVar[str] = "masterkey-key"

    type: Literal["masterkey-key"] = "masterkey-key"
    version: Literal[1] = 1
    keystore: Name
    kind: str
    key_id: KeyId
    key_version: str
    modes: tuple[Mode, ...]
    time: Time


class ManifestShard(Part):
    """What a manifest says of one shard.

    Attributes:
        binding: its associated data.
        custodians: names of those who may release it; empty in `seal` mode.
        ciphertext_hash: SHA-256 of nonce and ciphertext.
        salt: of the commitment, 16 bytes.
        commitment: 32 bytes, derived from the shard; tells which shard is corrupt.
        check_value: 16 bytes, derived from the DEK; what `check_data_key` compares with.
        mechanism: how the keystore said that it wraps the DEK.
    """

    binding: ShardBinding
    custodians: tuple[Name, ...]
    ciphertext_hash: Digest
    salt: Check
    commitment: Hex
    check_value: Check
    mechanism: Mechanism = "aes-gcm"


class Manifest(Document):
    """The strongroom's signed description of a protection: all of it but the ciphertexts."""

    TYPE: ClassVar[str] = "masterkey-manifest"

    type: Literal["masterkey-manifest"] = "masterkey-manifest"
    version: Literal[1] = 1
    master_key: Name
    kcv: Check
    protection: str
    purpose: Purpose
    epoch: Number
    predecessor: Digest | None
    mode: Mode
    threshold: Annotated[int, Field(ge=1, le=255)]
    count: Annotated[int, Field(ge=1, le=255)]
    governance_quorum: Annotated[int, Field(ge=1, le=255)]
    ceremony: CeremonyId
    attempt: Number
    plan: Digest
    authority: tuple[Digest, ...]
    roster: Digest
    strongroom: Fingerprint
    created: Time
    shards: tuple[ManifestShard, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if [s.binding.index for s in self.shards] != list(range(1, self.count + 1)):
            raise ValueError("the shards are not numbered 1 to N")
        if not 1 <= self.threshold <= self.count or (self.mode == "sss") != (self.threshold >= 2):
            raise ValueError("the threshold does not fit the mode")
        ours = {"master_key", "protection", "purpose", "epoch", "mode", "threshold", "count", "ceremony"}
        for shard in self.shards:
            if any(getattr(shard.binding, field) != getattr(self, field) for field in ours):
                raise ValueError("a shard is bound to another protection")
        for distinct in ([s.binding.keystore for s in self.shards], [s.binding.key_id for s in self.shards]):
            if len(set(distinct)) != self.count:
                raise ValueError("two shards lie in the same keystore or under the same key")
        if len({s.binding.x for s in self.shards}) != self.count:
            raise ValueError("two shards have the same x coordinate")
        return self


class Delivery(Document):
    """The strongroom's signature over a MasterKey encrypted to a recipient."""

    TYPE: ClassVar[str] = "masterkey-delivery"

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


class Stop(Document):
    """A custodian's order that a MasterKey is served to nobody, until the governance quorum lifts it."""

    TYPE: ClassVar[str] = "masterkey-stop"

    type: Literal["masterkey-stop"] = "masterkey-stop"
    version: Literal[1] = 1
    master_key: Name
    ceremony: CeremonyId
    reason: Line
    custodian: Fingerprint
    issued: Time


class KeystoreState(Part):
    """What a keystore worker remembers of one MasterKey.

    Attributes:
        kcv: key check value at the first commit that it heard of; "" if it has heard of a stop only.
        epochs: lowest epoch that it still serves, for each purpose.
        stops: digests of the stops in force here.
    """

    master_key: Name
    kcv: str
    epochs: dict[Purpose, Number]
    stops: tuple[Digest, ...]


class StateStatement(Document):
    """A keystore worker's signed answer what it remembers: sent after a stop, a lift or a retirement, and on request.

    Attributes:
        about: digest of what it was told, or a nonce's digest if it was only asked.
    """

    TYPE: ClassVar[str] = "masterkey-state"

    type: Literal["masterkey-state"] = "masterkey-state"
    version: Literal[1] = 1
    keystore: Name
    about: Digest
    roster_number: int
    master_keys: tuple[KeystoreState, ...]
    time: Time


class Ended(Document):
    """A recipient's acknowledgement of a stop: the program that held the MasterKey has ended."""

    TYPE: ClassVar[str] = "masterkey-ended"

    type: Literal["masterkey-ended"] = "masterkey-ended"
    version: Literal[1] = 1
    master_key: Name
    ceremony: CeremonyId
    stop: Digest
    recipient: Fingerprint
    time: Time


def dek_info(session: str, context: str, purpose: Work) -> bytes:
    """HPKE `info` of a DEK on its way to a session: digest of the session, hash of the context, purpose."""
    return canonical_json({"context": context, "purpose": purpose, "session": session, "type": "masterkey-dek"})


def delivery_info(request: str, manifest: str, kcv: str) -> bytes:
    """HPKE `info` of a delivery: digest of the request, digest of the manifest, KCV."""
    return canonical_json({"kcv": kcv, "manifest": manifest, "request": request, "type": "masterkey-delivery"})
