"""The baseline of an unseal: a bare Temporal workflow with as many activities that do nothing.

`python -m tests.bench.bare ROLE` is one worker: the same roles in as many processes on as many task queues as
the product has, with the SDK's defaults. The shape of the workflow is checked against the product's own
history in the same run (`tests.bench.unseals`).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

READY = "bare worker is ready:"
LEDGER, STRONGROOM, PRIVATE, KEYSTORE = "bare", "bare-strongroom", "bare-private", "bare-keystore-"
ROLES: dict[str, tuple[str, ...]] = {
    "orchestrator": (LEDGER,),
    "strongroom": (STRONGROOM, PRIVATE),
    **{f"keystore-{number}": (f"{KEYSTORE}{number}",) for number in range(1, 6)},
}
ACTIVITIES = (
    "begin_ceremony",
    "record_plan",
    "record_events",
    "open_session",
    "hold_session",
    "unwrap_data_key",
    "release",
    "close_ceremony",
)


@workflow.defn(name="BareUnseal")
class BareUnseal:
    """The activities of an unseal, one after the other and side by side as there."""

    def __init__(self) -> None:
        self._approved = False

    @workflow.update
    def approve(self) -> None:
        """The last approval."""
        self._approved = True

    @workflow.query
    def waits(self) -> bool:
        """Whether only the approval is missing."""
        return self._waiting

    _waiting = False

    @workflow.run
    async def run(self, threshold: int) -> None:
        """`seal` with a threshold of 1, else `sss`."""
        await _nothing("begin_ceremony", LEDGER)
        if threshold > 1:
            await _nothing("record_plan", LEDGER)
            self._waiting = True
            await workflow.wait_condition(lambda: self._approved)
            await _nothing("record_events", LEDGER)
        await _nothing("open_session", STRONGROOM)
        hold = asyncio.create_task(_nothing("hold_session", PRIVATE))
        await asyncio.gather(*(_nothing("unwrap_data_key", f"{KEYSTORE}{n}") for n in range(1, threshold + 1)))
        await _nothing("release", PRIVATE)
        await hold
        await _nothing("close_ceremony", LEDGER)


async def _nothing(name: str, queue: str) -> None:
    await workflow.execute_activity(name, task_queue=queue, start_to_close_timeout=timedelta(seconds=30))


def _activity(name: str) -> Callable[..., Any]:
    @activity.defn(name=name)
    async def nothing() -> None:
        return

    return nothing


async def serve(role: str) -> None:
    """Run one role until killed."""
    client = await Client.connect(os.environ["TEMPORAL_ADDRESS"])
    activities = [_activity(name) for name in ACTIVITIES]
    async with asyncio.TaskGroup() as group:
        for queue in ROLES[role]:
            workflows = [BareUnseal] if role == "orchestrator" else []
            worker = Worker(client, task_queue=queue, workflows=workflows, activities=activities)
            group.create_task(worker.run())
        sys.stdout.write(f"{READY} {role}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
