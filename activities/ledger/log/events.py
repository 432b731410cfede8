"""What the ledger's own events say: the bodies of those whose keys begin with `ledger:`.

No workflow can write such a key. Bodies are closed, but for the two that keep what a workflow gave.
"""

from __future__ import annotations

from pydantic import ValidationError

from activities.ledger.log.records import CeremonyAction, EventRecord, Text
from workflows.contracts.messages.ledger import Outcome
from workflows.contracts.trust.canonical import Digest, Message, Name, Part, Signed, Time
from workflows.contracts.trust.errors import BundleInvalid
from workflows.contracts.trust.fields import Check, Mode, Purpose

OWN = "ledger:"
"""How the keys of the ledger's own events begin."""


class Opened(Message):
    """Body of `ceremony-opened`; older ledgers did not say more than the request."""

    class Said(Part):
        """What the ceremony is."""

        workflow_id: Text
        action: CeremonyAction
        opened_at: Time

    opened: Said | None = None


class Planned(Part):
    """Body of `plan-made`."""

    plan: Text
    deadline: Time | None


class Closed(Part):
    """Body of `ceremony-closed`."""

    outcome: Outcome
    detail: Text


class Staged(Part):
    """Body of `protection-staged`."""

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


class Committed(Staged):
    """Body of `protection-committed`."""

    retired: Digest | None
    discarded: tuple[Digest, ...]
    destroy_after: Time | None = None


class Discarded(Part):
    """Body of `staged-discarded`."""

    discarded: tuple[Digest, ...]


class Retired(Part):
    """Body of `protection-retired`: by order."""

    digest: Digest
    purpose: Purpose
    epoch: int


class KeyVersion(Part):
    """A version of a key that wrapped a shard's data key."""

    keystore: Name
    key_id: Text
    key_version: Text


class Destroyed(Retired):
    """Body of `protection-destroyed`.

    Attributes:
        scheduled: when it was due; None if it was ordered.
    """

    threshold: int
    keys: tuple[KeyVersion, ...]
    scheduled: Time | None


class Lifted(Part):
    """Body of `stops-lifted`."""

    stops: tuple[Digest, ...]


class Held(Message):
    """Body of `holding-began` and `holding-ended`, which change no row."""

    workflow_id: Text


class Imported(Part):
    """Body of `bundle-imported`.

    Attributes:
        bundle: SHA-256 of the file.
        events: how many events were added.
        approvals: the quorum's, if the ledger was empty.
    """

    bundle: Digest
    events: int
    approvals: tuple[Signed, ...]


class RosterSeen(Part):
    """Body of `roster-seen`: the first ceremony that began under a roster version found it."""

    number: int
    digest: Digest


Body = (
    RosterSeen
    | Opened
    | Planned
    | Closed
    | Staged
    | Committed
    | Discarded
    | Retired
    | Destroyed
    | Signed
    | Lifted
    | Held
    | Imported
)
_BODIES: dict[str, type[Body]] = {
    "roster-seen": RosterSeen,
    "ceremony-opened": Opened,
    "plan-made": Planned,
    "ceremony-closed": Closed,
    "protection-staged": Staged,
    "protection-committed": Committed,
    "staged-discarded": Discarded,
    "protection-retired": Retired,
    "protection-destroyed": Destroyed,
    "stop-ordered": Signed,
    "stops-lifted": Lifted,
    "holding-began": Held,
    "holding-ended": Held,
    "bundle-imported": Imported,
}


def read_body(event: EventRecord) -> Body | None:
    """What one of the ledger's own events says; None for an event of a workflow.

    Raises:
        BundleInvalid: it is no such event.
    """
    if not event.key.startswith(OWN):
        return None
    kind = _BODIES.get(event.type)
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
