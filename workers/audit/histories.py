"""Workflow histories as an auditor gets them: from Temporal or from a file, and not to be trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowHistory

from activities.ledger.log.signed import read_object
from workflows.contracts.names import parts_of
from workflows.contracts.trust.service_errors import NotKnown

_OUTSIDE = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED: "terminated",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT: "timed out",
}


@dataclass(frozen=True)
class Call:
    """An activity in a history.

    Attributes:
        number: of the event that scheduled it.
        data: its input, unread.
        since: when it was scheduled.
        until: when it was answered; None if it never was.
    """

    number: int
    activity: str
    data: bytes
    since: datetime
    until: datetime | None

    @property
    def done(self) -> bool:
        """Whether it was answered with success."""
        return self.until is not None


def read_history(path: Path) -> WorkflowHistory:
    """A history in Temporal's JSON form, as `audit replay --out` and `temporal workflow show -o json` write it.

    Raises:
        NotKnown: the file cannot be read, or is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
        events = json.loads(text)["events"]
        workflow_id = str(events[0]["workflowExecutionStartedEventAttributes"]["workflowId"])
        history = WorkflowHistory.from_json(workflow_id, text)
    except OSError as error:
        raise NotKnown(f"cannot read the history {path}: {error.strerror}", next_step="name another file") from None
    except Exception as error:  # noqa: BLE001 - whatever protobuf's JSON parser finds wrong with a stranger's file
        raise NotKnown(
            f"{path} is no workflow history with its workflow's id ({type(error).__name__})",
            next_step="write one: masterkey audit replay CEREMONY --out FOLDER",
        ) from None
    check_shape(history)
    return history


def check_shape(history: WorkflowHistory) -> None:
    """Check that a history can be gone through: what this passes may still be made up.

    Raises:
        NotKnown: it does not begin with a workflow's start, or an event is out of order or of no known kind.
    """
    if not history.events or not history.events[0].HasField("workflow_execution_started_event_attributes"):
        raise NotKnown("the history does not begin with a workflow's start", next_step="fetch it whole, from event 1")
    for number, event in enumerate(history.events, start=1):
        kind = EventType.Name(event.event_type) if event.event_type in EventType.values() else ""
        attributes = event.WhichOneof("attributes") or ""
        if event.event_id != number or kind in ("", "EVENT_TYPE_UNSPECIFIED"):
            raise NotKnown(f"the history's event {number} is out of order or of no known kind: it was altered")
        if attributes != f"{kind.removeprefix('EVENT_TYPE_').lower()}_event_attributes":
            raise NotKnown(f"the history's event {number} is a {kind} and holds something else: it was altered")


def ended_outside(history: WorkflowHistory) -> str:
    """How somebody else than the workflow ended it; empty if nobody did."""
    return _OUTSIDE.get(history.events[-1].event_type, "")


def workflow_of(history: WorkflowHistory) -> str:
    """The type of its workflow."""
    return history.events[0].workflow_execution_started_event_attributes.workflow_type.name


def ceremony_of(history: WorkflowHistory) -> str:
    """Its ceremony: named at the start, or in the first record of one that makes its own; empty if it has none."""
    started = history.events[0].workflow_execution_started_event_attributes.input.payloads
    for data in [*(payload.data for payload in started[:1]), *(call.data for call in calls(history))]:
        named = read_object(data.decode(errors="replace")).get("ceremony")
        if isinstance(named, str) and parts_of(named):
            return named
    return ""


def calls(history: WorkflowHistory) -> Iterator[Call]:
    """Every activity with an input."""
    answered = {
        event.activity_task_completed_event_attributes.scheduled_event_id: event
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
    }
    for event in history.events:
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            found = event.activity_task_scheduled_event_attributes
            answer = answered.get(event.event_id)
            for payload in found.input.payloads[:1]:
                yield Call(
                    number=event.event_id,
                    activity=found.activity_type.name,
                    data=payload.data,
                    since=_time(event),
                    until=_time(answer) if answer else None,
                )


def _time(event: HistoryEvent) -> datetime:
    return event.event_time.ToDatetime(tzinfo=UTC)
