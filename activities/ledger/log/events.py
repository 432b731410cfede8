"""The ledger's own events: each has its name, its key, and the fields of its body. No other place knows them.

Writers, the import of bundles, the state that is folded from a log and the audit all go by these classes. Their keys
begin with `ledger:`, and no workflow can write such a key. Names, keys and bodies are what the hash chain and every
bundle hold: a field that is added later has a default, with which what was written before still means the same.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import ValidationError

from activities.ledger.log.records import CeremonyAction, EventRecord, Text
from workflows.contracts.messages.ledger import Outcome
from workflows.contracts.trust.canonical import Digest, Name, Part, Signed, Time, canonical_json, digest, later
from workflows.contracts.trust.fields import Check, Mode, Purpose
from workflows.contracts.trust.service_errors import BundleInvalid

OWN = "ledger:"
"""How the keys of the ledger's own events begin."""


class LedgerEvent(Part):
    """Base of all: what one says is its body.

    Attributes:
        TYPE: its name in the log.
        ABOUT: the attribute that tells it from others of its type in the same ceremony, if there can be more than one.
    """

    TYPE: ClassVar[str]
    ABOUT: ClassVar[str] = ""

    @classmethod
    def of(cls, source: object, **more: Any) -> Self:
        """The event about a record, a row or a manifest: fields of these names, but for those that are given."""
        return cls(**{name: getattr(source, name) for name in cls.model_fields if name not in more}, **more)

    @property
    def key(self) -> str:
        """What makes it the only one of its kind in its ceremony, so that to write it again is harmless."""
        return self.key_of(str(getattr(self, self.ABOUT)) if self.ABOUT else "")

    @classmethod
    def key_of(cls, about: str = "") -> str:
        """The key of an event of this type about something."""
        return f"{OWN}{cls.TYPE}:{about}" if about else f"{OWN}{cls.TYPE}"


class RosterSeen(LedgerEvent):
    """The first ceremony that began under a roster version found it."""

    TYPE: ClassVar[str] = "roster-seen"
    ABOUT: ClassVar[str] = "digest"

    number: int
    digest: Digest


class CeremonyOpened(LedgerEvent):
    """A ceremony began.

    Attributes:
        request: the recipient's, as it came, if it is an unseal.
        build: of the orchestrator that began it, if it has one.
    """

    TYPE: ClassVar[str] = "ceremony-opened"

    class Said(Part):
        """What the ceremony is."""

        workflow_id: Text
        action: CeremonyAction
        opened_at: Time

    request: Signed | None
    opened: Said
    build: Text | None = later()


class PlanProposed(LedgerEvent):
    """A plan is put to its custodians."""

    TYPE: ClassVar[str] = "plan-made"
    ABOUT: ClassVar[str] = "digest"

    plan: Text
    deadline: Time | None

    @property
    def digest(self) -> str:
        """SHA-256 of the plan."""
        return digest(self.plan.encode())


class CeremonyClosed(LedgerEvent):
    """A ceremony ended."""

    TYPE: ClassVar[str] = "ceremony-closed"

    outcome: Outcome
    detail: Text


class ProtectionStaged(LedgerEvent):
    """A protection is stored, and serves nobody yet."""

    TYPE: ClassVar[str] = "protection-staged"
    ABOUT: ClassVar[str] = "attempt"

    protection: Text
    attempt: int
    digest: Digest
    purpose: Purpose
    mode: Mode
    threshold: int
    count: int
    epoch: int
    kcv: Check
    predecessor: Digest | None


class ProtectionCommitted(ProtectionStaged):
    """A protection is in force.

    Attributes:
        retired: digest of the one that it replaces.
        discarded: digests of what else its ceremony had staged.
        destroy_after: when the ciphertexts of the retired one are due for destruction, if that was approved.
    """

    TYPE: ClassVar[str] = "protection-committed"

    retired: Digest | None
    discarded: tuple[Digest, ...]
    destroy_after: Time | None = None


class StagedDiscarded(LedgerEvent):
    """What a ceremony had staged, and did not commit, was deleted."""

    TYPE: ClassVar[str] = "staged-discarded"
    ABOUT: ClassVar[str] = "digest"

    discarded: tuple[Digest, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the body: what was staged can be discarded in parts."""
        return digest(canonical_json(self.model_dump()))


class ProtectionRetired(LedgerEvent):
    """A protection was retired by order, without a successor."""

    TYPE: ClassVar[str] = "protection-retired"
    ABOUT: ClassVar[str] = "digest"

    digest: Digest
    purpose: Purpose
    epoch: int


class KeyVersion(Part):
    """A version of a key that wrapped a shard's data key."""

    keystore: Name
    key_id: Text
    key_version: Text


class ProtectionDestroyed(ProtectionRetired):
    """The ciphertexts of a retired protection were deleted.

    Attributes:
        keys: what would have to be destroyed too, before a copy that somebody made opens no more.
        scheduled: when it was due; None if it was ordered.
    """

    TYPE: ClassVar[str] = "protection-destroyed"

    threshold: int
    keys: tuple[KeyVersion, ...]
    scheduled: Time | None


class StopOrdered(Signed, LedgerEvent):
    """A custodian ordered to stop: the signed document itself."""

    TYPE: ClassVar[str] = "stop-ordered"
    ABOUT: ClassVar[str] = "digest"


class StopsLifted(LedgerEvent):
    """The quorum lifted these stops; others stay in force."""

    TYPE: ClassVar[str] = "stops-lifted"

    stops: tuple[Digest, ...]


class HoldingBegan(LedgerEvent):
    """A recipient holds the MasterKey since an unseal; a workflow waits for a stop on their behalf."""

    TYPE: ClassVar[str] = "holding-began"
    ABOUT: ClassVar[str] = "workflow_id"

    workflow_id: Text


class HoldingEnded(HoldingBegan):
    """A recipient holds the MasterKey no more; with the acknowledgement of a stop, as it came, if one ended it."""

    TYPE: ClassVar[str] = "holding-ended"

    ended: Signed | None


class BundleImported(LedgerEvent):
    """Events were added from a bundle.

    Attributes:
        bundle: SHA-256 of the file.
        events: how many events were added.
        approvals: the quorum's, if the ledger was empty.
    """

    TYPE: ClassVar[str] = "bundle-imported"
    ABOUT: ClassVar[str] = "bundle"

    bundle: Digest
    events: int
    approvals: tuple[Signed, ...]


_KINDS: dict[str, type[LedgerEvent]] = {
    kind.TYPE: kind
    for kind in (
        RosterSeen,
        CeremonyOpened,
        PlanProposed,
        CeremonyClosed,
        ProtectionStaged,
        ProtectionCommitted,
        StagedDiscarded,
        ProtectionRetired,
        ProtectionDestroyed,
        StopOrdered,
        StopsLifted,
        HoldingBegan,
        HoldingEnded,
        BundleImported,
    )
}


def read_event(event: EventRecord) -> LedgerEvent | None:
    """What one of the ledger's own events says; None for an event of a workflow.

    Raises:
        BundleInvalid: it is no such event.
    """
    if not event.key.startswith(OWN):
        return None
    kind = _KINDS.get(event.type)
    if kind is None:
        raise wrong(event, f"this program knows no event {event.type!r}")
    try:
        return kind.model_validate_json(event.body)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
        raise wrong(event, f"what it says is malformed ({where})") from None


def wrong(event: EventRecord, why: str) -> BundleInvalid:
    """The refusal of an event."""
    return BundleInvalid(f"event {event.seq} ({event.type}): {why}", subject=f"event {event.seq}")
