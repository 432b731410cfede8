"""Auditing a ceremony: its workflow history against the code, and against the event log.

Two records are kept apart: Temporal's history and the ledger's hash-chained events. Each can be altered by whoever
controls its database; what they say of a ceremony must agree, and every signature in the log must verify. Nobody signs
a history: whoever controls Temporal *and* the ledger can make up a ceremony that agrees with itself, but not the
custodians' signatures in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHistory

from activities.ledger.bodies import (
    OWN,
    Body,
    Closed,
    Committed,
    Destroyed,
    Lifted,
    PlanMade,
    Retired,
    Staged,
    read_body,
)
from activities.ledger.records import EventRecord
from workers.replay import audit as replay
from workflows.contracts import names
from workflows.contracts.authority import parse_plan
from workflows.contracts.canonical import Message, canonical_json
from workflows.contracts.errors import NotKnown
from workflows.contracts.messages import CloseCeremony, Commit, Event, ExecuteOrder, RecordEvents, Stage
from workflows.contracts.messages import PlanMade as PlanToRecord

M = TypeVar("M", bound=Message)

_OUTSIDE = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED: "terminated",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT: "timed out",
}


@dataclass(frozen=True)
class Run:
    """A workflow history, and what an audit of it found.

    Attributes:
        ceremony: the id that the workflow was started with, or made for itself.
        differences: what the code would have done otherwise; empty if it does exactly the same.
    """

    history: WorkflowHistory
    ceremony: str
    workflow: str
    run_id: str
    events: int
    differences: tuple[str, ...]

    @property
    def workflow_id(self) -> str:
        """Its id."""
        return self.history.workflow_id


async def audit_run(history: WorkflowHistory) -> Run:
    """Replay one history.

    Raises:
        NotKnown: it is not the history of a ceremony of ours.
    """
    first = history.events[0] if history.events else None
    if first is None or not first.HasField("workflow_execution_started_event_attributes"):
        raise NotKnown("the history does not begin with a workflow's start", next_step="fetch it whole, from event 1")
    started = first.workflow_execution_started_event_attributes
    differences = await replay(history)
    if ended := _OUTSIDE.get(history.events[-1].event_type):
        differences = [f"the workflow was {ended}, from outside: what it would have done then is not known"]
    return Run(
        history=history,
        ceremony=_ceremony(history),
        workflow=started.workflow_type.name,
        run_id=started.original_execution_run_id,
        events=len(history.events),
        differences=tuple(differences),
    )


def read_history(path: Path) -> WorkflowHistory:
    """A history in Temporal's JSON form, as `audit replay --out` and `temporal workflow show -o json` write it.

    Raises:
        NotKnown: the file cannot be read, or is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
        events = json.loads(text)["events"]
        workflow_id = str(events[0]["workflowExecutionStartedEventAttributes"]["workflowId"])
        return WorkflowHistory.from_json(workflow_id, text)
    except OSError as error:
        raise NotKnown(f"cannot read the history {path}: {error.strerror}", next_step="name another file") from None
    except Exception as error:  # noqa: BLE001 - whatever protobuf's JSON parser finds wrong with a stranger's file
        raise NotKnown(
            f"{path} is no workflow history with its workflow's id ({type(error).__name__})",
            next_step="write one: masterkey audit replay CEREMONY --out FOLDER",
        ) from None


# --- what the workflow had written down, and what is written ------------------------------------------------


@dataclass
class _Asked:
    """What a ceremony's workflows asked the ledger to write; what is `done` was answered."""

    events: dict[str, Event] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    plans: dict[str, bool] = field(default_factory=dict)
    staged: dict[int, str] = field(default_factory=dict)
    commits: dict[int, bool] = field(default_factory=dict)
    orders: set[str] = field(default_factory=set)
    closed: list[tuple[CloseCeremony, bool]] = field(default_factory=list)


def compare_with_log(runs: Sequence[Run], log: Iterable[EventRecord]) -> list[str]:
    """Compare what the workflows of one ceremony had written down with what the event log says of it.

    Args:
        runs: of one ceremony; all that there are.
        log: the ceremony's events.

    Returns:
        What differs; nothing if the two agree.
    """
    asked, events = _Asked(), list(log)
    for run in runs:
        for kind, payload, done in _ledger_calls(run.history):
            _remember(asked, kind, payload, done)
    return [*_missing(asked, events), *_unasked(asked, events, runs[0].ceremony if runs else "")]


def _remember(asked: _Asked, kind: str, payload: Payload, done: bool) -> None:
    if kind in (names.RECORD_EVENTS, names.CLOSE_CEREMONY):
        closing = _message(CloseCeremony, payload) if kind == names.CLOSE_CEREMONY else None
        for event in closing.events if closing else _message(RecordEvents, payload).events:
            asked.events[event.key] = event
            if done:
                asked.done.add(event.key)
        if closing:
            asked.closed.append((closing, done))
    elif kind == names.RECORD_PLAN:
        plan = parse_plan(_message(PlanToRecord, payload).plan).digest
        asked.plans[plan] = asked.plans.get(plan, False) or done
    elif kind == names.STAGE_PROTECTION:
        stage = _message(Stage, payload)
        asked.staged[stage.attempt] = stage.protection.manifest.digest
    elif kind == names.COMMIT_PROTECTION:
        attempt = _message(Commit, payload).attempt
        asked.commits[attempt] = asked.commits.get(attempt, False) or done
    elif kind == names.EXECUTE_ORDER:
        asked.orders.add(_message(ExecuteOrder, payload).action)


def _missing(asked: _Asked, events: Sequence[EventRecord]) -> list[str]:
    """What the workflow knows to be written, and the log does not have."""
    keys = {event.key for event in events}
    bodies = [body for event in events if (body := read_body(event)) is not None]
    plans = {parse_plan(body.plan).digest for body in bodies if isinstance(body, PlanMade)}
    committed = {body.attempt for body in bodies if isinstance(body, Committed)}
    missing = [f"event {key!r} was recorded, and is not in the event log" for key in sorted(asked.done - keys)]
    missing += [
        f"plan {plan} is not in the event log" for plan, done in asked.plans.items() if done and plan not in plans
    ]
    missing += [
        f"the commit of attempt {attempt} is not in the event log"
        for attempt, done in asked.commits.items()
        if done and attempt not in committed
    ]
    if any(done for _, done in asked.closed) and not any(isinstance(body, Closed) for body in bodies):
        missing.append("the ceremony's end is not in the event log")
    return missing


def _unasked(asked: _Asked, events: Sequence[EventRecord], ceremony: str) -> list[str]:
    """What the log has, and no workflow of the ceremony asked for."""
    wrong = []
    for event in events:
        if event.ceremony != ceremony:
            continue
        where = f"event {event.seq} ({event.type})"
        if not event.key.startswith(OWN):
            found = asked.events.get(event.key)
            if found is None:
                wrong.append(f"{where} is in the event log, and the workflow did not record it")
            elif (found.type, canonical_json(found.body).decode()) != (event.type, event.body):
                wrong.append(f"{where} says something else than the workflow recorded")
            continue
        if complaint := _complaint(asked, read_body(event)):
            wrong.append(f"{where}: {complaint}")
    return wrong


def _complaint(asked: _Asked, body: Body | None) -> str:
    """Why the workflow cannot have asked for one of the ledger's own events; empty if it can."""
    match body:
        case PlanMade() if parse_plan(body.plan).digest not in asked.plans:
            return "the workflow made no such plan"
        case Committed() if body.attempt not in asked.commits:
            return f"the workflow did not commit attempt {body.attempt}"
        case Staged() if asked.staged.get(body.attempt) != body.digest:
            return f"the workflow staged another protection, or none, as attempt {body.attempt}"
        case Destroyed() if body.scheduled is None and "destroy" not in asked.orders:
            return "the workflow ordered no destruction"
        case Retired() if not isinstance(body, Destroyed) and "retire" not in asked.orders:
            return "the workflow ordered no retirement"
        case Lifted() if "lift" not in asked.orders:
            return "the workflow lifted nothing"
        case Closed() if not _closed_so(asked, body):
            return f"the workflow did not end it so ({body.outcome}: {body.detail})"
    return ""


def _closed_so(asked: _Asked, body: Closed) -> bool:
    return any((one.outcome, one.detail) == (body.outcome, body.detail) for one, _ in asked.closed)


def _ledger_calls(history: WorkflowHistory) -> Iterator[tuple[str, Payload, bool]]:
    """Each activity with an input: its type, its input, and whether it was completed."""
    done = {
        event.activity_task_completed_event_attributes.scheduled_event_id
        for event in history.events
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
    }
    for event in history.events:
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            found = event.activity_task_scheduled_event_attributes
            if found.input.payloads:
                yield found.activity_type.name, found.input.payloads[0], event.event_id in done


def _ceremony(history: WorkflowHistory) -> str:
    """The ceremony of a workflow: named at its start, or in its first record, if it makes its own."""
    started = history.events[0].workflow_execution_started_event_attributes.input.payloads
    for payload in [*started[:1], *(payload for _, payload, _ in _ledger_calls(history))]:
        try:
            found = json.loads(payload.data)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("ceremony"), str):
            return str(found["ceremony"])
    return ""


def _message(kind: type[M], payload: Payload) -> M:
    try:
        return kind.model_validate_json(payload.data)
    except ValidationError:
        raise NotKnown(f"the history holds a {kind.__name__} that this program cannot read") from None


__all__ = ["Run", "audit_run", "compare_with_log", "read_history"]
