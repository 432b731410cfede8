"""How long to wait before another attempt: by how often it was tried, and by how full the history is."""

from __future__ import annotations

from datetime import timedelta

# Temporal ends a workflow for good at 51,200 events or 50 MiB of history; an attempt costs some 50 and 100 KiB.
_MOST_EVENTS, _MOST_BYTES = 40_000, 40 * 2**20
_FREE = 0.25
"""The part of the history that may be used without a thought for how long it must last."""
_MOST_DOUBLINGS = 32


def backoff(waits: int, first: timedelta, longest: timedelta) -> timedelta:
    """How long to wait for something that may come back: twice as long every time, up to a limit.

    Args:
        waits: how often was waited before.
        first: the first time.
        longest: the limit.
    """
    return min(longest, first * (1 << min(waits, _MOST_DOUBLINGS)))


def history_budget(attempts: int, events: int, size: int, left: timedelta) -> timedelta:
    """The least wait with which the history lasts until the deadline, at what an attempt has cost so far.

    Args:
        attempts: how many have used it.
        events: how many are in it.
        size: bytes.
        left: the time until the deadline.

    Returns:
        Nothing while a quarter of it is not used.
    """
    used = max(events / _MOST_EVENTS, size / _MOST_BYTES)
    if used < _FREE:
        return timedelta(0)
    attempts_left = max(1.0, attempts * (1 - used) / used)
    return left / attempts_left
