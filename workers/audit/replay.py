"""Replaying a workflow history: today's code must issue every command in it again.

The SDK's Replayer alone accepts histories with other activity inputs, results and timers than the code would
make, and histories that are cut short. Here the code runs over the history in production's sandbox, every
command that it issues is kept, and each is compared with the event it became: activities (type, queue,
input, time-outs, retries), timers, search attributes, answers to updates, signals to other ceremonies, and the
end, which must be there.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_commands import ScheduleActivity, WorkflowCommand
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner

from activities.oneshot.installed import python
from workers.connection import DATA_CONVERTER
from workflows import catalogue
from workflows.contracts.names import ORCHESTRATOR_QUEUE

Commands = list[WorkflowCommand]

_LIMIT_SECONDS, _SECONDS_PER_EVENT = 120.0, 0.02

_CLOSING = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED: "complete_workflow_execution",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED: "fail_workflow_execution",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED: "cancel_workflow_execution",
}


class _Recorded(WorkflowInstance):
    """A workflow instance whose commands are kept."""

    def __init__(self, inner: WorkflowInstance, commands: Commands) -> None:
        self._inner = inner
        self._commands = commands

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        completion = self._inner.activate(act)
        self._commands += list(completion.successful.commands)
        return completion

    def get_serialization_context(self, command_info: Any) -> Any:
        return self._inner.get_serialization_context(command_info)

    def get_external_store_context(self, command_info: Any) -> Any:
        return self._inner.get_external_store_context(command_info)

    def get_info(self) -> Any:
        return self._inner.get_info()


class _Recorder(WorkflowRunner):
    """Production's sandbox, and a copy of every command that leaves it."""

    def __init__(self) -> None:
        self._sandbox = catalogue.sandbox()
        self.commands: Commands = []

    def prepare_workflow(self, defn: Any) -> None:
        self._sandbox.prepare_workflow(defn)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        self.commands.clear()
        return _Recorded(self._sandbox.create_instance(det), self.commands)

    def set_worker_level_failure_exception_types(self, types: Sequence[type[BaseException]]) -> None:
        self._sandbox.set_worker_level_failure_exception_types(types)


async def audit(history: WorkflowHistory, *, whole: bool = True) -> list[str]:
    """Compare a history with what the code does; the answer lists what differs, and is empty if nothing does.

    Args:
        history: of any workflow of ours. One that was made up can make the SDK wait for ever: see `in_a_process`.
        whole: it ends with the workflow's own end; else somebody ended it, or it goes on.
    """
    if ends(history) != whole:
        return [f"the history {'does not end' if whole else 'ends'} with the workflow's own end"]
    commands, why = await reissued(history)
    return [why] if why else compare(commands, history.events, whole=whole)


async def reissued(history: WorkflowHistory) -> tuple[Commands, str]:
    """Every command that the code issues over a history, in order; and why it does not replay, if it does not."""
    recorder = _Recorder()
    replayer = Replayer(workflows=catalogue.WORKFLOWS, workflow_runner=recorder, data_converter=DATA_CONVERTER)
    replayed = await replayer.replay_workflow(history, raise_on_replay_failure=False)
    failed = replayed.replay_failure is not None
    return recorder.commands, f"the code does not replay: {str(replayed.replay_failure)[:300]}" if failed else ""


def ends(history: WorkflowHistory) -> bool:
    """Whether a history ends with the workflow's own end."""
    return bool(history.events) and history.events[-1].event_type in _CLOSING


async def in_a_process(history: WorkflowHistory, *, whole: bool = True) -> list[str]:
    """As `audit`, in a process of its own, which is ended if it takes too long.

    The SDK's core writes to standard output, and waits for ever on some histories that no server would have written.
    """
    limit = _LIMIT_SECONDS + _SECONDS_PER_EVENT * len(history.events)
    told = json.dumps({"workflow_id": history.workflow_id, "whole": whole, "history": history.to_json()})
    process = await asyncio.create_subprocess_exec(
        *python("workers.audit.replay"), stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    try:
        out, said = await asyncio.wait_for(process.communicate(told.encode()), limit)
    except TimeoutError:
        return [f"the code does not replay: it has not come to an end in {limit:.0f} s"]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        found: list[str] = json.loads(out)
    except ValueError:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        return [f"the code does not replay: its process ended with {process.returncode} ({last[:200]})"]
    return found


def main() -> None:
    """Audit the history on standard input; the answer, a list, is all that is written to standard output."""
    answer = os.dup(1)
    os.dup2(2, 1)
    told = json.loads(sys.stdin.read())
    history = WorkflowHistory.from_json(told["workflow_id"], told["history"])
    found = json.dumps(asyncio.run(audit(history, whole=told["whole"])))
    with open(answer, "w", encoding="utf-8") as pipe:
        pipe.write(found)
    # Not sys.exit: the SDK's core may not let the interpreter go.
    os._exit(0)


def compare(commands: Commands, events: Sequence[HistoryEvent], *, whole: bool) -> list[str]:
    """What of a history differs from the commands that the code issues over it."""
    return [
        *_activities(commands, events, whole),
        *_timers(commands, events, whole),
        *_search_attributes(commands, events, whole),
        *_updates(commands, events, whole),
        *_signals(commands, events, whole),
        *(_end(commands, events[-1]) if whole else []),
    ]


def _activities(commands: Commands, events: Sequence[HistoryEvent], whole: bool) -> list[str]:
    issued = {c.schedule_activity.activity_id: c.schedule_activity for c in _of(commands, "schedule_activity")}
    cancelled = {str(c.request_cancel_activity.seq) for c in _of(commands, "request_cancel_activity")}
    by_seq = {str(one.seq): one.activity_id for one in issued.values()}
    cancelled_ids = {by_seq.get(seq, "") for seq in cancelled}
    wrong, seen, ids = [], set(), dict[int, str]()
    for event in events:
        if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            found = event.activity_task_scheduled_event_attributes
            ids[event.event_id] = found.activity_id
            seen.add(found.activity_id)
            command = issued.get(found.activity_id)
            if command is None:
                wrong.append(f"event {event.event_id}: the code schedules no activity {found.activity_id}")
            else:
                wrong += _activity(command, event)
        elif event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED:
            number = event.activity_task_cancel_requested_event_attributes.scheduled_event_id
            if ids.get(number) not in cancelled_ids:
                wrong.append(f"event {event.event_id}: the code does not cancel that activity")
    # What is scheduled and given up in one breath never reaches the server.
    missing = set(issued) - seen - cancelled_ids if whole else set()
    return wrong + [f"activity {issued[one].activity_type} ({one}) is not in the history" for one in sorted(missing)]


def _activity(command: ScheduleActivity, event: HistoryEvent) -> list[str]:
    found, retry = event.activity_task_scheduled_event_attributes, command.retry_policy
    # What the code leaves open, the server fills in.
    longest = _seconds(command.schedule_to_start_timeout) or _seconds(command.schedule_to_close_timeout)
    last_pause = _seconds(retry.maximum_interval) or 100 * _seconds(retry.initial_interval)
    pairs = {
        "type": (command.activity_type, found.activity_type.name),
        "queue": (_queue(command), found.task_queue.name),
        "input": (_data(command.arguments), _data(found.input.payloads)),
        "header": (_fields(command.headers), _fields(found.header.fields)),
        "schedule-to-close": (_seconds(command.schedule_to_close_timeout), _seconds(found.schedule_to_close_timeout)),
        "schedule-to-start": (longest, _seconds(found.schedule_to_start_timeout)),
        "start-to-close": (_seconds(command.start_to_close_timeout), _seconds(found.start_to_close_timeout)),
        "heartbeat": (_seconds(command.heartbeat_timeout), _seconds(found.heartbeat_timeout)),
        "first retry": (_seconds(retry.initial_interval), _seconds(found.retry_policy.initial_interval)),
        "backoff": (retry.backoff_coefficient, found.retry_policy.backoff_coefficient),
        "longest pause": (last_pause, _seconds(found.retry_policy.maximum_interval)),
        "attempts": (retry.maximum_attempts, found.retry_policy.maximum_attempts),
        "final errors": (list(retry.non_retryable_error_types), list(found.retry_policy.non_retryable_error_types)),
    }
    return _differences(f"event {event.event_id}, activity {command.activity_type}", pairs)


def _fields(header: Mapping[str, Payload]) -> dict[str, bytes]:
    return {name: payload.data for name, payload in header.items()}


def _queue(command: ScheduleActivity) -> str:
    # Where the code names no queue, the activity goes to the workflow's own; a Replayer makes one up.
    return ORCHESTRATOR_QUEUE if command.task_queue.startswith("replay-") else command.task_queue


def _timers(commands: Commands, events: Sequence[HistoryEvent], whole: bool) -> list[str]:
    issued = {str(c.start_timer.seq): c.start_timer for c in _of(commands, "start_timer")}
    cancelled = {str(c.cancel_timer.seq) for c in _of(commands, "cancel_timer")}
    wrong, seen = [], set()
    for event in events:
        if event.event_type == EventType.EVENT_TYPE_TIMER_STARTED:
            found = event.timer_started_event_attributes
            seen.add(found.timer_id)
            if found.timer_id not in issued:
                wrong.append(f"event {event.event_id}: the code starts no timer {found.timer_id}")
            else:
                length = issued[found.timer_id].start_to_fire_timeout
                pairs = {"length": (_seconds(length), _seconds(found.start_to_fire_timeout))}
                wrong += _differences(f"event {event.event_id}, timer {found.timer_id}", pairs)
        elif (
            event.event_type == EventType.EVENT_TYPE_TIMER_CANCELED
            and event.timer_canceled_event_attributes.timer_id not in cancelled
        ):
            wrong.append(f"event {event.event_id}: the code does not cancel that timer")
    missing = set(issued) - seen - cancelled if whole else set()
    return wrong + [f"timer {one} is not in the history" for one in sorted(missing)]


def _search_attributes(commands: Commands, events: Sequence[HistoryEvent], whole: bool) -> list[str]:
    issued = [
        {
            name: payload.data
            for name, payload in c.upsert_workflow_search_attributes.search_attributes.indexed_fields.items()
        }
        for c in _of(commands, "upsert_workflow_search_attributes")
    ]
    found = [
        {
            name: payload.data
            for name, payload in (
                e.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields.items()
            )
        }
        for e in events
        if e.event_type == EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES
    ]
    return _differences("search attributes", {"all": (_so_far(issued, found, whole), found)})


def _updates(commands: Commands, events: Sequence[HistoryEvent], whole: bool) -> list[str]:
    answers = [c.update_response for c in _of(commands, "update_response")]
    issued = [_data([answer.completed]) for answer in answers if answer.HasField("completed")]
    found = [
        _data(e.workflow_execution_update_completed_event_attributes.outcome.success.payloads)
        for e in events
        if e.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED
    ]
    return _differences("answers to updates", {"all": (_so_far(issued, found, whole), found)})


def _signals(commands: Commands, events: Sequence[HistoryEvent], whole: bool) -> list[str]:
    answered = [c.signal_external_workflow_execution for c in _of(commands, "signal_external_workflow_execution")]
    issued = [(one.workflow_execution.workflow_id, one.signal_name, _data(one.args)) for one in answered]
    sent = [
        e.signal_external_workflow_execution_initiated_event_attributes
        for e in events
        if e.event_type == EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED
    ]
    found = [(one.workflow_execution.workflow_id, one.signal_name, _data(one.input.payloads)) for one in sent]
    return _differences("signals to other ceremonies", {"all": (_so_far(issued, found, whole), found)})


def _so_far(issued: list[Any], found: list[Any], whole: bool) -> list[Any]:
    """What a history that does not end by itself can have of what the code issued."""
    return issued if whole else issued[: len(found)]


def _end(commands: Commands, last: HistoryEvent) -> list[str]:
    kind = _CLOSING[last.event_type]
    issued = [c for c in commands if c.WhichOneof("variant") in _CLOSING.values()]
    if [c.WhichOneof("variant") for c in issued] != [kind]:
        return [f"the history ends with {kind}, the code does not"]
    if kind == "complete_workflow_execution":
        result = last.workflow_execution_completed_event_attributes.result.payloads
        pairs = {"result": (_data([issued[0].complete_workflow_execution.result]), _data(result))}
        return _differences("the end", pairs)
    if kind == "fail_workflow_execution":
        failure = last.workflow_execution_failed_event_attributes.failure
        return _differences("the end", {"failure": (_said(issued[0].fail_workflow_execution.failure), _said(failure))})
    return []


def _of(commands: Commands, variant: str) -> Commands:
    return [command for command in commands if command.WhichOneof("variant") == variant]


def _data(payloads: Sequence[Payload]) -> list[tuple[bytes, bytes]]:
    return [(payload.metadata["encoding"], payload.data) for payload in payloads]


def _seconds(length: Duration) -> float:
    return float(length.ToTimedelta().total_seconds())


def _said(failure: Failure) -> tuple[Any, ...]:
    info = failure.application_failure_info
    return (failure.message, info.type, info.non_retryable, _data(info.details.payloads))


def _differences(where: str, pairs: dict[str, tuple[Any, Any]]) -> list[str]:
    return [
        f"{where}: {what} is {str(found)[:120]}, the code says {str(issued)[:120]}"
        for what, (issued, found) in pairs.items()
        if issued != found
    ]


if __name__ == "__main__":
    main()
