"""What a strongroom signs of a protection: the manifest, and what each shard is bound to. After `plan`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from workflows.contracts.trust.canonical import (
    Digest,
    Document,
    Fingerprint,
    Hex,
    Name,
    Part,
    Role,
    Time,
    canonical_json,
    digest,
    later,
)
from workflows.contracts.trust.fields import CeremonyId, Check, Index, KeyId, Mechanism, Mode, Number, Purpose


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
    """The strongroom's signed description of a protection: all of it but the ciphertexts.

    Attributes:
        software: the code that the strongroom had installed, as `masterkey --version` names it, for auditors to obtain.
    """

    TYPE: ClassVar[str] = "masterkey-manifest"
    SIGNER: ClassVar[Role | None] = "strongroom"

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
    software: Annotated[str, StringConstraints(max_length=64)] | None = later()
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
