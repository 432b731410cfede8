"""Inputs and answers of the orchestrator's activities over the ledger."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.trust.canonical import Message, Name, Signed, Time, later
from workflows.contracts.trust.fields import Action, CeremonyId, Index

Outcome = Literal["done", "refused", "failed", "expired"]
ENDS: tuple[Outcome, ...] = get_args(Outcome)
"""How a ceremony ends: its last phase, and its outcome in the ledger."""


class BeginCeremony(Message):
    """Open a ceremony in the ledger, and get what its plan is made from.

    Attributes:
        build: of the orchestrator that began it.
    """

    ceremony: CeremonyId
    workflow_id: str
    action: Action
    master_key: Name
    manifest: str | None = None
    all_active: bool = False
    request: Signed | None = None
    stop: Signed | None = None
    opened_at: Time
    build: str | None = later()


class LastProof(Message):
    """When a keystore last proved that it can give back the data key of a shard, and its words."""

    manifest: str
    index: Index
    at: Time
    proof: Signed | None = None


class Begun(Message):
    """What a plan is made from.

    Attributes:
        roster: canonical text of the newest roster version; verified by the orchestrator.
        roster_digest: its digest.
        protection: the protection that is to be opened, if one.
        active: all protections in force, if they were asked for.
        next_epoch: the epoch for a new protection.
        stops: orders to stop that are in force, as they were signed.
        releases: workflow ids of unseals that run, and of recipients that hold the MasterKey; told only to `seal`.
        proofs: when each shard of `active` was last proven.
    """

    roster: str
    roster_digest: str
    protection: StoredProtection | None = None
    active: tuple[StoredProtection, ...] = ()
    next_epoch: int = 1
    stops: tuple[Signed, ...] = ()
    releases: tuple[str, ...] = ()
    proofs: tuple[LastProof, ...] = ()


class PlanMade(Message):
    """Record a ceremony's plan."""

    ceremony: CeremonyId
    master_key: Name
    phase: str
    plan: str


class Event(Message):
    """An event of a ceremony, recorded once for each key."""

    key: str
    type: str
    body: dict[str, str | int | bool | list[str] | None]


class RecordEvents(Message):
    """Append events of a ceremony to the ledger."""

    ceremony: CeremonyId
    master_key: Name
    phase: str
    events: tuple[Event, ...]


class Stage(Message):
    """Store a new protection that does not serve yet."""

    ceremony: CeremonyId
    attempt: int
    protection: StoredProtection


class Commit(Message):
    """Make a staged protection the active one; the one that it replaces is retired.

    Attributes:
        retention_hours: when the ciphertexts of the retired one are destroyed; none: when that is ordered.
    """

    ceremony: CeremonyId
    attempt: int
    retention_hours: Annotated[int, Field(ge=0, le=87_600)] | None = None


class ExecuteOrder(Message):
    """Do in the ledger what the quorum has ordered: retire or destroy a protection, or lift stops."""

    ceremony: CeremonyId
    master_key: Name
    action: Literal["lift", "retire", "destroy"]
    manifest: str | None = None
    stops: tuple[str, ...] = ()


class RecordHolding(Message):
    """Record that a recipient holds a MasterKey, or no more, so that a stop reaches them.

    Attributes:
        ceremony: the unseal by which they got it.
        workflow_id: of the `HoldWorkflow` that waits for a stop on their behalf.
        ended: the recipient's signed acknowledgement (`Ended`), if a stop ended it.
    """

    ceremony: CeremonyId
    master_key: Name
    workflow_id: str
    state: Literal["began", "ended"]
    ended: Signed | None = None


class HoldingRecorded(Message):
    """The stops in force: whoever begins to hold a MasterKey that is stopped, ends at once."""

    stops: tuple[Signed, ...] = ()


class ExportBundle(Message):
    """Write the bundle to its configured places."""

    ceremony: CeremonyId
    master_key: Name


class BundleExported(Message):
    """Where the bundle was written; no place is configured if there is none.

    Attributes:
        digest: of the bundle's head: the last event that is in it.
    """

    places: tuple[str, ...] = ()
    digest: str = ""


class Collect(Message):
    """Ask the ledger to collect what nobody needs any more."""

    older_than: Time


class Collected(Message):
    """What was collected.

    Attributes:
        discarded: ceremonies that had left something staged.
        destroyed: digests of retired manifests whose time had come.
    """

    discarded: tuple[str, ...] = ()
    destroyed: tuple[str, ...] = ()


class CloseCeremony(Message):
    """Close a ceremony: its outcome, and a discard of whatever it staged and did not commit."""

    ceremony: CeremonyId
    master_key: Name
    outcome: Outcome
    detail: str
    events: tuple[Event, ...] = ()
