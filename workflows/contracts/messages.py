"""What travels through Temporal: inputs and answers of activities and workflows.

Messages may grow: new fields have defaults, unknown ones are ignored. Nothing in them is secret: keys are
wrapped by a keystore, or encrypted to a one-shot process, or encrypted under such a key.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from workflows.contracts.authority import Authority
from workflows.contracts.canonical import Base64, Message, Name, Signed, Time
from workflows.contracts.documents import (
    Action,
    CeremonyId,
    Index,
    Mode,
    Nonce,
    Purpose,
    Work,
)


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


# --- keystore worker -------------------------------------------------------------------------------------


class DescribeKey(Message):
    """Ask a keystore worker which key it uses."""

    keystore: Name


class GenerateDataKey(Message):
    """Ask a keystore worker for a fresh DEK, wrapped, and encrypted to a session."""

    keystore: Name
    index: Index
    authority: Authority
    session: Signed


class UnwrapDataKey(Message):
    """Ask a keystore worker to unwrap a DEK and encrypt it to a session."""

    keystore: Name
    index: Index
    authority: Authority
    session: Signed
    manifest: Signed
    wrapped_dek: Base64


class DekAnswer(Message):
    """A DEK encrypted to a session, the keystore worker's signature, and the wrapped DEK."""

    response: Signed
    ciphertext: Base64
    wrapped_dek: Base64


class CheckDataKey(Message):
    """Ask a keystore worker to prove that it can still give back a DEK; releases nothing."""

    keystore: Name
    index: Index
    manifest: Signed
    wrapped_dek: Base64
    nonce: Nonce


class NoteCommit(Message):
    """Tell a keystore worker which manifest is in force, so that it refuses what is older."""

    keystore: Name
    manifest: Signed


# --- strongroom ------------------------------------------------------------------------------------------


class OpenSession(Message):
    """Ask a strongroom for a session."""

    purpose: Work
    plan: str
    attempt: Annotated[int, Field(ge=1)]


class SessionOpened(Message):
    """A session's signed announcement, and the task queue of the one worker that holds it."""

    announcement: Signed
    queue: str
    session: Nonce


class HoldSession(Message):
    """Hold a session: returns when it has answered, fails when it dies, closes it when cancelled."""

    session: Nonce


class Protect(Message):
    """Ask a session to draw a MasterKey and protect it."""

    session: Nonce
    authority: Authority
    deks: tuple[DekAnswer, ...]


class Release(Message):
    """Ask a session to open a protection and encrypt the MasterKey to the recipient."""

    session: Nonce
    authority: Authority
    protection: StoredProtection
    deks: tuple[DekAnswer, ...]


class Delivered(Message):
    """A MasterKey encrypted to its recipient, and the strongroom's signature."""

    delivery: Signed
    ciphertext: Base64


# --- ledger ----------------------------------------------------------------------------------------------


class BeginCeremony(Message):
    """Open a ceremony in the ledger, and get what its plan is made from."""

    ceremony: CeremonyId
    workflow_id: str
    action: Action
    master_key: Name
    manifest: str | None = None
    all_active: bool = False
    request: Signed | None = None
    opened_at: Time


class Begun(Message):
    """What a plan is made from.

    Attributes:
        roster: canonical text of the newest roster version; verified by the orchestrator.
        roster_digest: its digest.
        protection: the protection that is to be opened, if one.
        active: all protections in force, if they were asked for.
        next_epoch: the epoch for a new protection.
    """

    roster: str
    roster_digest: str
    protection: StoredProtection | None = None
    active: tuple[StoredProtection, ...] = ()
    next_epoch: int = 1


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
    """Make a staged protection the active one."""

    ceremony: CeremonyId
    attempt: int


class CloseCeremony(Message):
    """Close a ceremony: its outcome, and a discard of whatever it staged and did not commit."""

    ceremony: CeremonyId
    master_key: Name
    outcome: Literal["done", "refused", "failed", "expired"]
    detail: str
    events: tuple[Event, ...] = ()


# --- workflows -------------------------------------------------------------------------------------------


class ShardRequest(Message):
    """Where a shard shall go: a keystore, and its custodians (none: those of the roster)."""

    keystore: Name
    custodians: tuple[Name, ...] = ()


class InitRequest(Message):
    """Start of `InitWorkflow`."""

    ceremony: CeremonyId
    master_key: Name
    mode: Mode
    threshold: int
    shards: tuple[ShardRequest, ...]
    purpose: Purpose = "primary"
    strongroom: str = ""
    quorum_timeout_seconds: Annotated[int, Field(ge=1, le=2_592_000)] = 72 * 3600


class UnsealRequest(Message):
    """Start of `UnsealWorkflow`: the recipient's signed request carries all that matters."""

    ceremony: CeremonyId
    master_key: Name
    request: Signed
    quorum_timeout_seconds: Annotated[int, Field(ge=1, le=2_592_000)] = 72 * 3600


class KeystoreProgress(Message):
    """How far a keystore is in this ceremony."""

    keystore: str
    state: Literal["waiting", "asked", "answered", "failed", "quarantined"]
    error: str = ""
    detail: str = ""


class CeremonyStatus(Message):
    """What a ceremony is doing: the answer to the query `status`."""

    ceremony: str
    action: str
    master_key: str
    phase: str
    plan: str | None = None
    deadline: Time | None = None
    approved_by: tuple[str, ...] = ()
    rejected_by: tuple[str, ...] = ()
    needed: str = ""
    missing: tuple[str, ...] = ()
    keystores: tuple[KeystoreProgress, ...] = ()
    attempt: int = 0
    refused_messages: int = 0
    detail: str = ""


class SubmitOutcome(Message):
    """The answer to a submitted approval or rejection."""

    custodian: str
    decision: str
    state: Literal["accepted", "duplicate"]
    needed: str


class InitResult(Message):
    """Result of `InitWorkflow`."""

    ceremony: str
    master_key: str
    kcv: str
    manifest: Signed
    approved_by: tuple[str, ...]
    attempt: int


class UnsealResult(Message):
    """Result of `UnsealWorkflow`."""

    ceremony: str
    master_key: str
    delivered: Delivered
    approved_by: tuple[str, ...]
    served_by: tuple[str, ...]
    failed: tuple[str, ...]


class DrillRequest(Message):
    """Start of `DrillWorkflow`; a schedule gives no ceremony, so each run makes its own."""

    master_key: Name
    ceremony: CeremonyId | None = None


class ShardHealth(Message):
    """What a drill found of one shard.

    Attributes:
        opens: the keystore proved that it can give back the DEK, and the stored bytes are those of the manifest.
        error: name of the error if not.
        detail: the error in one line, with what to do next.
    """

    index: Index
    keystore: Name
    key_id: str
    opens: bool
    error: str = ""
    detail: str = ""


class ProtectionHealth(Message):
    """What a drill found of one protection.

    Attributes:
        spare: how many more keystores may fail before it is unrecoverable; negative when it is.
    """

    manifest: str
    purpose: Purpose
    mode: Mode
    threshold: int
    shards: tuple[ShardHealth, ...]
    spare: int


class DrillResult(Message):
    """Result of `DrillWorkflow`.

    Attributes:
        healthy: every shard of every active protection opens.
        spare: how many more keystores may fail before the MasterKey is unrecoverable: that of the best protection.
    """

    ceremony: CeremonyId
    master_key: Name
    at: Time
    healthy: bool
    spare: int
    protections: tuple[ProtectionHealth, ...]


class ReportRequest(Message):
    """Ask the ledger for a report."""

    kind: Literal["status", "ceremonies", "protection"]
    master_key: str | None = None
    limit: int = 100


class CeremonySummary(Message):
    """A line of `ceremony list`."""

    ceremony: str
    workflow_id: str
    action: str
    master_key: str
    phase: str
    outcome: str
    detail: str
    opened_at: str
    closed_at: str | None


class ProtectionSummary(Message):
    """What `status` shows of a protection."""

    manifest: Signed
    status: str


class Report(Message):
    """A report of the ledger: unverified; the caller checks the manifests."""

    protections: tuple[ProtectionSummary, ...] = ()
    ceremonies: tuple[CeremonySummary, ...] = ()
    drills: tuple[DrillResult, ...] = ()
    events: int = 0
    head: str = ""


# --- inside a strongroom's worker: between it and its one-shot process --------------------------------------


class SessionTerms(Message):
    """What a session is told when it is opened."""

    identity: str
    roster_file: str
    roster_genesis: str
    roster_minimum: int
    purpose: Work
    plan: str
    attempt: int
    session: Nonce
