"""The emergency stop: a custodian's order, and a holder's acknowledgement of it."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from workflows.contracts.trust.canonical import Digest, Document, Fingerprint, Name, Role, Signed, Time
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.fields import CeremonyId, Line
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.validity import CLOCK_SKEW, CLOCKS, MAXIMUM_CEREMONY


class Stop(Document):
    """A custodian's order that a MasterKey is served to nobody, until the governance quorum lifts it."""

    TYPE: ClassVar[str] = "masterkey-stop"
    SIGNER: ClassVar[Role | None] = "custodian"

    type: Literal["masterkey-stop"] = "masterkey-stop"
    version: Literal[1] = 1
    master_key: Name
    ceremony: CeremonyId
    reason: Line
    custodian: Fingerprint
    issued: Time


class Ended(Document):
    """A recipient's acknowledgement of a stop: the program that held the MasterKey has ended."""

    TYPE: ClassVar[str] = "masterkey-ended"
    SIGNER: ClassVar[Role | None] = "recipient"

    type: Literal["masterkey-ended"] = "masterkey-ended"
    version: Literal[1] = 1
    master_key: Name
    ceremony: CeremonyId
    stop: Digest
    recipient: Fingerprint
    time: Time


def check_stop(roster: Roster, signed: Signed, now: datetime | None) -> tuple[Stop, str]:
    """Verify an order to stop: any one custodian of the roster may give it.

    Args:
        roster: who is a custodian.
        signed: the order.
        now: the time; none to look at one that was taken in before.

    Returns:
        The order, and the custodian's name.

    Raises:
        ApprovalInvalid: signature, signer or time is wrong.
    """
    stop, name = roster.open(Stop, signed)
    if now is None:
        return stop, name
    # Without sums of its date: near the year 9999 they would raise, and hang a workflow that is told of it.
    if stop.issued > now + CLOCK_SKEW:
        raise ApprovalInvalid(f"the stop of {name} is dated in the future", next_step=CLOCKS, subject=name)
    if now - stop.issued > MAXIMUM_CEREMONY:
        raise ApprovalInvalid(f"the stop of {name} is too old", next_step="sign anew", subject=name)
    return stop, name
