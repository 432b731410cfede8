"""Heartbeats while an activity waits: without them neither a cancellation nor a dead worker is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from temporalio import activity


@asynccontextmanager
async def heartbeating() -> AsyncIterator[None]:
    """Send a heartbeat every third of the activity's heartbeat time-out, for as long as the block runs."""
    timeout = activity.info().heartbeat_timeout
    task = asyncio.create_task(_beat(timeout.total_seconds() / 3)) if timeout else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()


async def _beat(seconds: float) -> None:
    # The start of an activity counts as its first heartbeat, so most calls are over before they send one.
    while True:
        await asyncio.sleep(seconds)
        activity.heartbeat()
