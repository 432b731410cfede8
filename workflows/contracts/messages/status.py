"""What a running ceremony says of itself."""

from __future__ import annotations

from typing import Literal

from workflows.contracts.trust.canonical import Message, Time

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
    build: str = ""


class SubmitOutcome(Message):
    """The answer to a submitted approval or rejection."""

    custodian: str
    decision: str
    state: Literal["accepted", "duplicate"]
    needed: str
