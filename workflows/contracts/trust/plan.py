"""What people sign: the plan of a ceremony, their approval of it, and a recipient's request. After `fields`.

Every document is RFC 8785 canonical JSON; its `type` is the SSHSIG namespace of its signature. Hashes are
SHA-256. A document is parsed only from its canonical bytes.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from workflows.contracts.trust.canonical import (
    Base64,
    Digest,
    Document,
    Fingerprint,
    Name,
    Part,
    Role,
    Time,
    digest,
    later,
)
from workflows.contracts.trust.fields import Action, CeremonyId, Index, KeyId, Mode, Nonce, Number, Purpose, Suite


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
    SIGNER: ClassVar[Role | None] = "custodian"

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
    SIGNER: ClassVar[Role | None] = "recipient"

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


def parse_plan(text: str) -> Plan:
    """A plan from its canonical text; raises ApprovalInvalid."""
    return Plan.parse(text.encode())
