"""Replay: today's workflows do, over every recorded history, exactly what was done then; anything altered shows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.common.v1 import Payloads
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer

from tests.workflows.record_histories import FOLDER, load, to_replay
from workers.audit.replay import Commands, audit, compare, ends, reissued
from workflows import catalogue
from workflows.contracts import names

HISTORIES = to_replay()
QUICK = ("init-refused", "unseal-seal", "report", "seal")
"""With every kind of event among them, and short."""
QUICK_ANSWERS = tuple(name for name in QUICK if name != "recover-hopeless")
"""A recovery asks a lost keystore two things at once, and the second no has no consequence."""
SAYS_ONLY_THAT_IT_IS_DONE = {
    names.RECORD_PLAN,
    names.RECORD_EVENTS,
    names.STAGE_PROTECTION,
    names.COMMIT_PROTECTION,
    names.CLOSE_CEREMONY,
    names.EXECUTE_ORDER,
    names.HOLD_SESSION,
}

Alteration = Callable[[HistoryEvent], bool]


def named(name: str) -> WorkflowHistory:
    return load(FOLDER / f"{name}.json")


_ISSUED: dict[Path, Commands] = {}


async def issued_over(path: Path) -> Commands:
    """What today's code issues over a recorded history, which it replays; once for all tests."""
    if path not in _ISSUED:
        commands, why = await reissued(load(path))
        assert why == ""
        _ISSUED[path] = commands
    return _ISSUED[path]


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_every_recorded_history_replays_and_every_command_is_issued_again_to_the_byte(path: Path) -> None:
    assert ends(load(path))
    assert compare(await issued_over(path), load(path).events, whole=True) == []


def test_every_workflow_and_every_kind_of_end_was_recorded() -> None:
    whole = [load(path) for path in HISTORIES]
    started = {one.events[0].workflow_execution_started_event_attributes.workflow_type.name for one in whole}
    assert started == {workflow.__name__ for workflow in catalogue.WORKFLOWS}
    ends = {EventType.Name(one.events[-1].event_type).rpartition("_")[2] for one in whole}
    assert ends == {"COMPLETED", "FAILED", "CANCELED"}


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_recorded_histories_name_no_machine_and_are_of_a_reasonable_size(path: Path) -> None:
    text = path.read_bytes()
    assert len(text) < 400_000
    # Payloads are base64 in the JSON form: they are searched as bytes.
    for where in (text, b"".join(event.SerializeToString() for event in load(path).events)):
        assert not re.search(rb"[^a-z0-9]/(home|root|tmp|work|usr|var|opt)/", where)
        assert not re.search(rb"PRIVATE KEY|\d+@(?!worker)[a-z]", where)


# --- alterations ------------------------------------------------------------------------------------------


def _change(payloads: Payloads) -> bool:
    """Change one digit of the last payload, where that leaves it valid JSON; false if it holds none."""
    for payload in reversed(payloads.payloads):
        digits = list(re.finditer(rb"(?<![\\u])[0-9]", payload.data))
        if digits:
            match = digits[len(digits) // 2]
            other = b"8" if match.group() != b"8" else b"9"
            payload.data = payload.data[: match.start()] + other + payload.data[match.end() :]
            return True
    return False


def _longer(length: Duration) -> bool:
    if not length.seconds:
        return False
    length.seconds += 1
    return True


def _input(event: HistoryEvent) -> bool:
    return _change(event.activity_task_scheduled_event_attributes.input)


def _queue(event: HistoryEvent) -> bool:
    event.activity_task_scheduled_event_attributes.task_queue.name += "-elsewhere"
    return True


def _kind(event: HistoryEvent) -> bool:
    event.activity_task_scheduled_event_attributes.activity_type.name += "_or_not"
    return True


def _time_out(event: HistoryEvent) -> bool:
    return _longer(event.activity_task_scheduled_event_attributes.start_to_close_timeout)


def _attempts(event: HistoryEvent) -> bool:
    event.activity_task_scheduled_event_attributes.retry_policy.maximum_attempts += 1
    return True


def _timer(event: HistoryEvent) -> bool:
    return _longer(event.timer_started_event_attributes.start_to_fire_timeout)


def _search_attribute(event: HistoryEvent) -> bool:
    found = event.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields
    for payload in found.values():
        payload.data = b'"changed"'
    return True


def _signal_sent(event: HistoryEvent) -> bool:
    return _change(event.signal_external_workflow_execution_initiated_event_attributes.input)


def _signal_elsewhere(event: HistoryEvent) -> bool:
    event.signal_external_workflow_execution_initiated_event_attributes.workflow_execution.workflow_id += "-elsewhere"
    return True


def _update(event: HistoryEvent) -> bool:
    return _change(event.workflow_execution_update_completed_event_attributes.outcome.success)


def _result(event: HistoryEvent) -> bool:
    return _change(event.workflow_execution_completed_event_attributes.result)


def _failure(event: HistoryEvent) -> bool:
    event.workflow_execution_failed_event_attributes.failure.message += "?"
    return True


def _failure_type(event: HistoryEvent) -> bool:
    event.workflow_execution_failed_event_attributes.failure.application_failure_info.type = "SomethingElse"
    return True


def _failure_details(event: HistoryEvent) -> bool:
    failure = event.workflow_execution_failed_event_attributes.failure
    return _change(failure.application_failure_info.details)


ISSUED: dict[str, tuple[Alteration, ...]] = {
    "ACTIVITY_TASK_SCHEDULED": (_input, _queue, _kind, _time_out, _attempts),
    "TIMER_STARTED": (_timer,),
    "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES": (_search_attribute,),
    "WORKFLOW_EXECUTION_UPDATE_COMPLETED": (_update,),
    "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED": (_signal_sent, _signal_elsewhere),
    "WORKFLOW_EXECUTION_COMPLETED": (_result,),
    "WORKFLOW_EXECUTION_FAILED": (_failure, _failure_type, _failure_details),
}
"""What the code issues: whatever of it is altered must show."""


def _started(event: HistoryEvent) -> bool:
    return _change(event.workflow_execution_started_event_attributes.input)


def _signal(event: HistoryEvent) -> bool:
    return _change(event.workflow_execution_signaled_event_attributes.input)


def _answer(event: HistoryEvent) -> bool:
    return _change(event.activity_task_completed_event_attributes.result)


def _activity_failure(event: HistoryEvent) -> bool:
    event.activity_task_failed_event_attributes.failure.message += "?"
    return True


RECEIVED: dict[str, tuple[Alteration, ...]] = {
    "WORKFLOW_EXECUTION_STARTED": (_started,),
    "WORKFLOW_EXECUTION_SIGNALED": (_signal,),
    "ACTIVITY_TASK_COMPLETED": (_answer,),
    "ACTIVITY_TASK_FAILED": (_activity_failure,),
}
"""What the code receives: it shows in what the code then does, if it has any consequence."""


def anything(event: HistoryEvent, alter: Alteration) -> bool:
    return True


def altered(
    whole: WorkflowHistory,
    table: dict[str, tuple[Alteration, ...]],
    wanted: Callable[[HistoryEvent, Alteration], bool] = anything,
) -> Iterator[tuple[str, WorkflowHistory]]:
    """The history once for every single alteration that is wanted, and which that is."""
    for place, event in enumerate(whole.events):
        for alter in table.get(EventType.Name(event.event_type).removeprefix("EVENT_TYPE_"), ()):
            if not wanted(event, alter):
                continue
            changed = HistoryEvent()
            changed.CopyFrom(event)
            if alter(changed):
                events = [*whole.events[:place], changed, *whole.events[place + 1 :]]
                yield f"event {event.event_id}, {alter.__name__}", WorkflowHistory(whole.workflow_id, events)


async def unnoticed(name: str, table: dict[str, tuple[Alteration, ...]]) -> tuple[int, list[str]]:
    """How many alterations were tried, and which of them the audit did not notice."""
    tried, missed = 0, []
    for what, history in altered(named(name), table):
        tried += 1
        if not await audit(history):
            missed.append(what)
    return tried, missed


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_whatever_is_altered_of_what_the_code_did_is_noticed(path: Path) -> None:
    # What the code issues does not depend on what the history says that it issued: so one replay is enough for all.
    commands, tried, missed = await issued_over(path), 0, []
    for what, history in altered(load(path), ISSUED):
        tried += 1
        if not compare(commands, history.events, whole=True):
            missed.append(what)
    assert tried >= 5
    assert missed == []


@pytest.mark.slow
async def test_the_audit_notices_what_is_altered_as_the_comparison_does() -> None:
    # Each alteration once for each kind of event and activity, by the whole audit.
    seen, missed = set[tuple[str, ...]](), []
    for path in HISTORIES:

        def new(event: HistoryEvent, alter: Alteration) -> bool:
            activity = event.activity_task_scheduled_event_attributes.activity_type.name
            key = (EventType.Name(event.event_type), alter.__name__, activity if alter is _input else "")
            fresh = key not in seen
            seen.add(key)
            return fresh

        missed += [f"{path.stem}, {what}" for what, one in altered(load(path), ISSUED, new) if not await audit(one)]
    assert len(seen) > 25
    assert missed == []


@pytest.mark.parametrize(
    "name",
    [
        *QUICK_ANSWERS,
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("unseal-denied", "drill", "unseal-hedged")),
    ],
)
async def test_an_altered_answer_is_noticed_if_it_had_any_consequence(name: str) -> None:
    whole = named(name)
    kinds = {
        event.event_id: event.activity_task_scheduled_event_attributes.activity_type.name for event in whole.events
    }
    harmless = {
        f"event {event.event_id}, _answer"
        for event in whole.events
        if kinds.get(event.activity_task_completed_event_attributes.scheduled_event_id) in SAYS_ONLY_THAT_IT_IS_DONE
    }
    tried, missed = await unnoticed(name, RECEIVED)
    assert tried > 0
    assert set(missed) - harmless == set()


@pytest.mark.parametrize("name", QUICK)
async def test_a_history_that_was_cut_short_is_refused(name: str) -> None:
    whole = named(name)
    for length in range(len(whole.events)):
        cut = WorkflowHistory(whole.workflow_id, whole.events[:length])
        assert await audit(cut) == ["the history does not end with the workflow's own end"]


async def test_the_replayer_alone_notices_far_less() -> None:
    # The reason why there is an audit.
    whole = named("unseal-seal")

    async def accepted(history: WorkflowHistory) -> bool:
        replayer = Replayer(
            workflows=catalogue.WORKFLOWS, workflow_runner=catalogue.sandbox(), data_converter=pydantic_data_converter
        )
        return (await replayer.replay_workflow(history, raise_on_replay_failure=False)).replay_failure is None

    changed = altered(whole, {"ACTIVITY_TASK_SCHEDULED": (_input, _time_out, _attempts)})
    assert any([await accepted(history) for _, history in itertools.islice(changed, 3)])
