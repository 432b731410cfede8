"""What starts a workflow, and what its updates and queries carry."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from workflows.contracts.messages.keystore import CheckDataKey, UnwrapDataKey
from workflows.contracts.messages.protection import DekAnswer
from workflows.contracts.trust.canonical import Message, Name, Signed
from workflows.contracts.trust.fields import CeremonyId, Mode, Nonce, Purpose


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


class DrillRequest(Message):
    """Start of `DrillWorkflow`; a schedule gives no ceremony, so each run makes its own.

    Attributes:
        offline_seconds: how long to wait for the custodians of offline keystores to prove theirs too.
    """

    master_key: Name
    ceremony: CeremonyId | None = None
    offline_seconds: Annotated[int, Field(ge=0, le=2_592_000)] = 0
