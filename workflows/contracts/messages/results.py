"""What a workflow ends with."""

from __future__ import annotations

from typing import Literal

from workflows.contracts.messages.status import KeystoreHealth
from workflows.contracts.messages.strongroom import Delivered
from workflows.contracts.trust.canonical import Message, Name, Signed, Time
from workflows.contracts.trust.fields import CeremonyId, Index, Mode, Purpose


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
