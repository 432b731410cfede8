"""Waiting for what workflows come to, and reading their histories."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from temporalio.api.enums.v1 import EventType, WorkflowTaskFailedCause
from temporalio.client import WorkflowFailureError, WorkflowHandle, WorkflowHistory

from workers.client import ceremonies as ceremony_client
from workflows.contracts.trust.errors import MasterKeyError

T = TypeVar("T")

Handle = WorkflowHandle[Any, Any]


async def eventually(found: Callable[[], Awaitable[T | None]], limit: float = 30.0, pause: float = 0.03) -> T:
    """Ask until the answer is not None or false; fails after so many seconds."""
    deadline = time.monotonic() + limit
    while True:
        answer = await found()
        if answer:
            return answer
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(pause)


async def ended(handle: Handle, limit: float = 120.0) -> Any:
    """The result of a workflow.

    The server has been seen to forget a waiting request when the workflow closes at that moment, and answers
    20 seconds later: so it is asked again.
    """
    deadline = time.monotonic() + limit
    while True:
        try:
            return await asyncio.wait_for(handle.result(), 3)
        except TimeoutError:
            if time.monotonic() > deadline:
                raise AssertionError(f"the workflow did not end in time; {await _standing(handle)}") from None


async def _standing(handle: Handle) -> str:
    """Where a workflow stands, for whoever reads of it in a log."""
    pending = (await handle.describe()).raw_description
    last = [EventType.Name(event.event_type) for event in (await handle.fetch_history()).events[-4:]]
    activities = [f"{one.activity_type.name} (attempt {one.attempt})" for one in pending.pending_activities]
    task = pending.pending_workflow_task if pending.HasField("pending_workflow_task") else None
    return f"{handle.id} ends with {last}; activities pending: {activities}; workflow task pending: {task}"


async def failure(handle: Handle) -> MasterKeyError:
    """The error with which a ceremony ends."""
    try:
        await ended(handle)
    except WorkflowFailureError as error:
        return ceremony_client.workflow_error(error)
    raise AssertionError("the ceremony did not fail")


def types(history: WorkflowHistory) -> Counter[str]:
    """How often each type of event stands in a history, by its short name."""
    return Counter(EventType.Name(event.event_type).removeprefix("EVENT_TYPE_") for event in history.events)


def scheduled(history: WorkflowHistory) -> Counter[str]:
    """How often each activity was scheduled."""
    return Counter(
        event.activity_task_scheduled_event_attributes.activity_type.name
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED
    )


async def clean(handle: Handle, *, killed: bool = False) -> WorkflowHistory:
    """The history of a ceremony in which no workflow task failed, or ran out of time unless an orchestrator died."""
    history = await handle.fetch_history()
    found = types(history)
    failed = [
        event.workflow_task_failed_event_attributes
        for event in history.events
        if event.HasField("workflow_task_failed_event_attributes")
    ]
    # No faults of ours: something arrived while the last task ended, or so much while one lasted that the server
    # took it back; it asks again.
    benign = (
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND,
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND,
    )
    said = [
        f"{WorkflowTaskFailedCause.Name(one.cause)}: {one.failure.message} {one.failure.stack_trace}"
        for one in failed
        if one.cause not in benign
    ]
    assert said == [], said
    assert killed or found["WORKFLOW_TASK_TIMED_OUT"] == 0, "a workflow task ran out of time"
    return history
