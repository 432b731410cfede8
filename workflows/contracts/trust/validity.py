"""How long anything signed is in force, by the verifier's own clock."""

from __future__ import annotations

from datetime import datetime, timedelta

from workflows.contracts.trust.errors import ApprovalInvalid

CLOCK_SKEW = timedelta(seconds=60)
"""How far the clocks of two hosts may differ."""
SEAL_REQUEST_LIFETIME = timedelta(minutes=5)
"""The longest life of a recipient's request in `seal` mode, where no human looks at it."""
MAXIMUM_CEREMONY = timedelta(days=30)
"""The longest life of a plan, and so of an approval."""
SESSION_LIFETIME = timedelta(minutes=5)
"""The longest life of a session's HPKE key."""
CLOCKS = "compare the clocks of the two hosts"
"""What to do about something from the future."""


def check_time(what: str, issued: datetime, expires: datetime, now: datetime, longest: timedelta) -> None:
    """Check that something signed is in force.

    Raises:
        ApprovalInvalid: it is expired, from the future, or in force for longer than allowed.
    """
    if expires <= issued or expires - issued > longest:
        raise ApprovalInvalid(f"{what} is in force for longer than {longest} or not at all", next_step="sign anew")
    if now > expires:
        raise ApprovalInvalid(f"{what} expired at {expires:%Y-%m-%d %H:%M:%S} UTC", next_step="sign anew")
    if issued > now + CLOCK_SKEW:
        raise ApprovalInvalid(f"{what} is dated in the future", next_step=CLOCKS)
