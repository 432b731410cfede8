"""What goes into the ledger and comes out of it: frozen records, with no database behind them.

Signed documents are opaque here: their canonical text, their armoured signature, and their digest. What
they say is verified by those who act on them, against the roster. Bytes travel as base64 text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from workflows.contracts.messages.ledger import Outcome
from workflows.contracts.trust.canonical import Base64, Digest, Message, Name, Signed, Time, canonical_json, digest
from workflows.contracts.trust.fields import Action
from workflows.contracts.trust.service_errors import LedgerCorrupt

GENESIS = "sha256:" + "0" * 64
"""What the first event names as the digest of the one before it."""

CeremonyAction = Action | Literal["import"]
Status = Literal["staged", "active", "retired", "destroyed"]

Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=1_000_000)]
"""Text that both databases can hold: PostgreSQL has no NUL."""

Id = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{0,127}$")]
OptionalId = Annotated[str, StringConstraints(pattern=r"^([a-z0-9][a-z0-9.-]{0,127})?$")]
EventKey = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,200}$")]
EventType = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
Count = Annotated[int, Field(ge=1, le=255)]
Number = Annotated[int, Field(ge=1, le=2_147_483_647)]

R = TypeVar("R", bound=Message)


def read_row(kind: type[R], row: object) -> R:
    """The record of a row of the database.

    Raises:
        LedgerCorrupt: the row holds something that no record ever held.
    """
    try:
        return kind.model_validate(row, from_attributes=True)
    except ValidationError as error:
        where = sorted({str(detail["loc"][0]) for detail in error.errors(include_input=False)})
        raise LedgerCorrupt(f"the ledger holds a {kind.__name__} that was never written: {', '.join(where)}") from None


class ShardRecord(Message):
    """What is stored of one shard: ciphertext, and the wrapped DEK that opens it.

    Attributes:
        index: 1 to N.
        keystore: configured name.
        key_id: resolved id of the key that wrapped the DEK.
        key_version: its version, or "" where the service has none.
        wrapped_dek: base64.
        nonce: base64.
        ciphertext: base64.
    """

    index: Count
    keystore: Name
    key_id: Text
    key_version: Text
    wrapped_dek: Base64
    nonce: Base64
    ciphertext: Base64


class ProtectionRecord(Message):
    """A manifest, what the ledger sorts it by, and the shards that it describes.

    Attributes:
        protection: id, unique in the ledger.
        epoch: grows with every protection of this MasterKey that is committed.
        predecessor: digest of the active manifest of the same purpose that this one replaces, or None.
        attempt: number within the ceremony; never used again for another manifest.
        manifest: canonical JSON text.
        signature: armoured SSH signature over it.
        digest: SHA-256 of the manifest's text.
        shards: in the order of their indexes; none once it is destroyed.
        destroy_after: when the ciphertexts of a retired one are to be destroyed, if that was said.
    """

    protection: Id
    master_key: Name
    purpose: Literal["primary", "emergency"]
    mode: Literal["sss", "seal"]
    threshold: Count
    count: Count
    epoch: Number
    kcv: Text
    predecessor: Digest | None
    ceremony: Id
    attempt: Number
    manifest: Text
    signature: Text
    digest: Digest
    shards: tuple[ShardRecord, ...]
    status: Status = "staged"
    destroy_after: Time | None = None

    @property
    def signed(self) -> Signed:
        """The manifest with its signature."""
        return Signed(document=self.manifest, signature=self.signature)

    def verify(self) -> None:
        """Check what can be checked without opening the manifest.

        Raises:
            LedgerCorrupt: the digest is not the manifest's, or the shards are not numbered 1 to N, or a destroyed
                one still has some.
        """
        if digest(self.manifest.encode()) != self.digest:
            raise LedgerCorrupt(
                f"the digest of protection {self.protection} is not that of its manifest",
                subject=self.protection,
            )
        if self.status == "destroyed":
            if self.shards:
                raise LedgerCorrupt(
                    f"protection {self.protection} is destroyed and still has shards", subject=self.protection
                )
        elif [shard.index for shard in self.shards] != list(range(1, self.count + 1)):
            raise LedgerCorrupt(
                f"protection {self.protection} does not have its shards 1 to {self.count}",
                subject=self.protection,
            )


class MasterKeyRecord(Message):
    """A MasterKey that has been committed at least once.

    Attributes:
        ceremony: the init ceremony that made it.
        epoch: the highest that was ever committed; the next protection needs a higher one.
    """

    master_key: Name
    kcv: Text
    ceremony: Id
    created_at: Time
    epoch: int


class CeremonyRecord(Message):
    """One run of a workflow, as the ledger knows it.

    Attributes:
        phase: the workflow's own word for how far it is.
        plan: canonical JSON text, once there is one; only a recovery changes it afterwards.
        plan_digest: SHA-256 of the plan's text.
        outcome: "" while the ceremony is open.
        detail: one line for people, about the outcome.
    """

    ceremony: Id
    workflow_id: Text
    master_key: Name
    action: CeremonyAction
    phase: Text
    opened_at: Time
    plan: Text | None = None
    plan_digest: Digest | None = None
    deadline: Time | None = None
    closed_at: Time | None = None
    outcome: Outcome | Literal[""] = ""
    detail: Text = ""

    def verify(self) -> None:
        """Check the plan against its digest.

        Raises:
            LedgerCorrupt: they do not belong together.
        """
        if self.plan_digest != (None if self.plan is None else digest(self.plan.encode())):
            raise LedgerCorrupt(
                f"the digest of ceremony {self.ceremony} is not that of its plan", subject=self.ceremony
            )


class StopRecord(Message):
    """A custodian's order that a MasterKey is served to nobody.

    Attributes:
        digest: SHA-256 of the document's text.
        lifted_by: the ceremony in which the governance quorum lifted it; None while it is in force.
    """

    digest: Digest
    master_key: Name
    document: Text
    signature: Text
    ordered_at: Time
    lifted_at: Time | None = None
    lifted_by: Id | None = None

    @property
    def signed(self) -> Signed:
        """The order with its signature."""
        return Signed(document=self.document, signature=self.signature)


class EventRecord(Message):
    """One link of the hash chain.

    Attributes:
        seq: 1, 2, 3 and so on, without gaps.
        ceremony: "" if it belongs to none.
        key: unique within the ceremony: what makes a repeated append harmless.
        master_key: "" if it is about none.
        body: canonical JSON text.
        previous: digest of the event before; `GENESIS` for the first.
        digest: see `event_digest`.
    """

    seq: int
    ceremony: OptionalId
    key: EventKey
    master_key: Name | Literal[""]
    type: EventType
    body: Text
    at: Time
    previous: Digest
    digest: Digest


_COVERED = ("seq", "ceremony", "key", "master_key", "type", "at", "previous")


def event_digest(fields: Mapping[str, Any]) -> str:
    """SHA-256 over the RFC 8785 form of an event; `body` is in it as its own SHA-256.

    So a chain can be checked by somebody who may not read the bodies.

    Args:
        fields: of the event as they are stored; its own digest is not looked at.
    """
    covered = {name: fields[name] for name in _COVERED}
    return digest(canonical_json({**covered, "body": digest(fields["body"].encode())}))
