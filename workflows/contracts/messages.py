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
    """Tell a keystore worker which manifest is in force, so that it refuses what is older.

    Attributes:
        proofs: of every keystore of that protection, that it can give back its data key (`CheckResponse`).
    """

    keystore: Name
    manifest: Signed
    proofs: tuple[Signed, ...] = ()


class NoteOrder(Message):
    """Tell a keystore worker what a governance quorum has ordered: a lift, a retirement, or a destruction.

    Attributes:
        manifest: what the order is about; none for a lift.
    """

    keystore: Name
    authority: Authority
    manifest: Signed | None = None


class StopServing(Message):
    """Tell a keystore worker that a custodian has ordered to stop."""

    keystore: Name
    stop: Signed


class ReportState(Message):
    """Ask a keystore worker what it remembers."""

    keystore: Name
    nonce: Nonce


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


class Reshard(Message):
    """Ask a session to open a protection and to make another of the same MasterKey.

    Attributes:
        protection: what is opened.
        opened: its data keys, of at least M shards.
        deks: fresh data keys for the new shards, in order; none for those of offline keystores.
    """

    session: Nonce
    authority: Authority
    protection: StoredProtection
    opened: tuple[DekAnswer, ...]
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
    stop: Signed | None = None
    opened_at: Time


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


class ReshardRequest(Message):
    """Start of `ReshardWorkflow`: the new topology of a MasterKey that exists.

    Attributes:
        purpose: of the new protection; the active one of that purpose, if there is one, is retired.
        source: purpose of the protection that is opened: the same one unless given, or the only one that there is.
        retention_hours: how long the ciphertexts of the retired one are kept; none: until destruction is ordered.
    """

    ceremony: CeremonyId
    master_key: Name
    mode: Mode
    threshold: int
    shards: tuple[ShardRequest, ...]
    purpose: Purpose = "primary"
    source: Purpose | None = None
    retention_hours: Annotated[int, Field(ge=0, le=87_600)] | None = None
    strongroom: str = ""
    quorum_timeout_seconds: Annotated[int, Field(ge=1, le=2_592_000)] = 72 * 3600


class RecoverRequest(Message):
    """Start of `DisasterRecoveryWorkflow`; what is not given is proposed by the workflow.

    Attributes:
        purpose: of the protection that is to be made whole.
        source: purpose of the protection to open; the one that can best be opened unless given.
        replacements: keystores that may take the place of lost ones, the preferred first; every healthy one of the
            roster that is not in use unless given.
        shards: the whole new topology, instead of a proposal with the fewest changes.
        mode: with `shards`: of the new protection; as before unless given.
        threshold: of the new protection; as before unless given.
    """

    ceremony: CeremonyId
    master_key: Name
    purpose: Purpose = "primary"
    source: Purpose | None = None
    replacements: tuple[ShardRequest, ...] = ()
    shards: tuple[ShardRequest, ...] = ()
    mode: Mode | None = None
    threshold: int | None = None
    strongroom: str = ""
    quorum_timeout_seconds: Annotated[int, Field(ge=1, le=2_592_000)] = 7 * 24 * 3600


class ChangedPlan(Message):
    """The update `replan` of a recovery: other wishes, for which a new plan is made and approved anew."""

    source: Purpose | None = None
    replacements: tuple[ShardRequest, ...] = ()
    shards: tuple[ShardRequest, ...] = ()
    mode: Mode | None = None
    threshold: int | None = None


class OrderRequest(Message):
    """Start of `OrderWorkflow`: what a governance quorum orders, and that opens nothing.

    Attributes:
        action: lift all stops in force, retire an active protection, or destroy a retired one.
        manifest: digest of the manifest to retire or destroy; none for a lift.
    """

    ceremony: CeremonyId
    master_key: Name
    action: Literal["lift", "retire", "destroy"]
    manifest: str | None = None
    strongroom: str = ""
    quorum_timeout_seconds: Annotated[int, Field(ge=1, le=2_592_000)] = 72 * 3600


class SealRequest(Message):
    """Start of `SealWorkflow`: a custodian's signed stop."""

    ceremony: CeremonyId
    master_key: Name
    stop: Signed
    patience_seconds: Annotated[int, Field(ge=1, le=3600)] = 30


class HoldRequest(Message):
    """Start of `HoldWorkflow`: a recipient that holds a MasterKey wants to hear of a stop.

    Attributes:
        turn: how often it has had to begin again.
    """

    ceremony: CeremonyId
    master_key: Name
    turn: Annotated[int, Field(ge=1)] = 1


class CollectRequest(Message):
    """Start of `CollectWorkflow`: collect what nobody needs any more.

    Attributes:
        grace_seconds: how long after a ceremony's end its staged leftovers are left alone.
    """

    grace_seconds: Annotated[int, Field(ge=0, le=2_592_000)] = 3600


class SurveyRequest(Message):
    """Start of `SurveyWorkflow`: ask keystore workers what they remember, over a nonce of the caller's."""

    keystores: tuple[Name, ...]
    nonce: Nonce


class Contribution(Message):
    """The update `contribute`: what the custodian of an offline keystore has done at their own machine.

    Attributes:
        present: they are there, and answer within seconds once a session is open.
        check: proof that the data key can be given back (`CheckResponse`).
        dek: the data key, encrypted to the session that was asked for it.
    """

    keystore: Name
    present: bool = False
    check: Signed | None = None
    dek: DekAnswer | None = None


class Wanted(Message):
    """The query `wanted`: what a ceremony waits for from the custodians of offline keystores.

    Attributes:
        keystores: whoever could contribute something, now or once a session is open.
        checks: proofs that are asked for.
        unwraps: data keys that are asked for: their session lives for minutes.
    """

    keystores: tuple[str, ...] = ()
    checks: tuple[CheckDataKey, ...] = ()
    unwraps: tuple[UnwrapDataKey, ...] = ()


HealthState = Literal[
    "healthy",
    "throttled",
    "denied",
    "disabled",
    "pending-deletion",
    "gone",
    "unreachable",
    "corrupt",
    "offline",
    "refused",
]


class KeystoreHealth(Message):
    """What an assessment found of one keystore.

    Attributes:
        since: when this was first seen so, in this ceremony.
        proven: when it last proved its data key, if it ever did.
    """

    keystore: str
    state: HealthState
    detail: str = ""
    since: Time | None = None
    proven: Time | None = None


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
    wanted: tuple[str, ...] = ()
    health: tuple[KeystoreHealth, ...] = ()
    changes: tuple[str, ...] = ()


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
    not_told: tuple[str, ...] = ()
    bundles: tuple[str, ...] = ()


class OldKey(Message):
    """A version of a KMS key that still opens what was retired: whoever has a copy needs nothing else.

    Attributes:
        in_use: it also wraps a data key of what is in force: rotate the key and reshard before it is destroyed.
    """

    keystore: str
    key_id: str
    key_version: str
    in_use: bool = False


class ReshardResult(Message):
    """Result of `ReshardWorkflow` and of `DisasterRecoveryWorkflow`.

    Attributes:
        opened_by: keystores that gave back data keys of the old protection.
        retired: digest of the manifest that was retired, if one was.
        old_keys: what still opens it.
        old_keys_needed: how many of those suffice.
        not_told: keystore workers that do not know yet that it is retired: they would still serve it.
        bundles: where the bundle was written.
        health: of all keystores, as assessed by a recovery.
    """

    ceremony: str
    master_key: str
    kcv: str
    manifest: Signed
    approved_by: tuple[str, ...]
    attempt: int
    opened_by: tuple[str, ...] = ()
    retired: str | None = None
    old_keys: tuple[OldKey, ...] = ()
    old_keys_needed: int = 0
    not_told: tuple[str, ...] = ()
    bundles: tuple[str, ...] = ()
    health: tuple[KeystoreHealth, ...] = ()
    changes: tuple[str, ...] = ()


class KeystoreTold(Message):
    """Whether a keystore worker has heard of a stop or an order, and the keys to disable by hand if it has not."""

    keystore: str
    acknowledged: bool
    error: str = ""
    detail: str = ""
    keys: tuple[str, ...] = ()


class HolderTold(Message):
    """Whether an unseal or a recipient's program has ended because of a stop."""

    workflow: str
    state: Literal["ended", "silent", "refused"]
    detail: str = ""


class OrderResult(Message):
    """Result of `OrderWorkflow`."""

    ceremony: str
    master_key: str
    action: str
    approved_by: tuple[str, ...]
    keystores: tuple[KeystoreTold, ...] = ()
    stops: tuple[str, ...] = ()
    manifest: str | None = None
    old_keys: tuple[OldKey, ...] = ()
    bundles: tuple[str, ...] = ()


class SealResult(Message):
    """Result of `SealWorkflow`."""

    ceremony: str
    master_key: str
    stop: str
    ordered_by: str
    keystores: tuple[KeystoreTold, ...]
    holders: tuple[HolderTold, ...]


class HoldResult(Message):
    """Result of `HoldWorkflow`: the stop, if one was ordered."""

    stop: Signed | None = None


class SurveyResult(Message):
    """Result of `SurveyWorkflow`: signed `StateStatement`s, and who did not answer."""

    statements: tuple[Signed, ...] = ()
    silent: tuple[str, ...] = ()


class UnsealResult(Message):
    """Result of `UnsealWorkflow`."""

    ceremony: str
    master_key: str
    delivered: Delivered
    approved_by: tuple[str, ...]
    served_by: tuple[str, ...]
    failed: tuple[str, ...]


class DrillRequest(Message):
    """Start of `DrillWorkflow`; a schedule gives no ceremony, so each run makes its own.

    Attributes:
        offline_seconds: how long to wait for the custodians of offline keystores to prove theirs too.
    """

    master_key: Name
    ceremony: CeremonyId | None = None
    offline_seconds: Annotated[int, Field(ge=0, le=2_592_000)] = 0


class ShardHealth(Message):
    """What a drill found of one shard.

    Attributes:
        opens: the keystore proved that it can give back the DEK, and the stored bytes are those of the manifest.
        error: name of the error if not.
        detail: the error in one line, with what to do next.
        offline: the keystore is offline, and its custodian was not asked now: it opens as far as is known.
        proven: when it last proved its data key.
    """

    index: Index
    keystore: Name
    key_id: str
    opens: bool
    error: str = ""
    detail: str = ""
    offline: bool = False
    proven: Time | None = None


class ProtectionHealth(Message):
    """What a drill found of one protection.

    Attributes:
        spare: how many more keystores may fail before it is unrecoverable; negative when it is.
        not_told: keystore workers that could not be told again that this is what is in force.
    """

    manifest: str
    purpose: Purpose
    mode: Mode
    threshold: int
    shards: tuple[ShardHealth, ...]
    spare: int
    not_told: tuple[str, ...] = ()


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
    destroy_after: str | None = None


class Report(Message):
    """A report of the ledger: unverified; the caller checks the manifests."""

    protections: tuple[ProtectionSummary, ...] = ()
    ceremonies: tuple[CeremonySummary, ...] = ()
    drills: tuple[DrillResult, ...] = ()
    stops: tuple[Signed, ...] = ()
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
