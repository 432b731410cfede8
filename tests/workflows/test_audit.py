"""Auditing ceremonies: history, code and event log agree; whatever is altered in either record shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHistory

from activities.ledger.log.records import EventRecord
from tests.driving.house import House
from tests.driving.reading import Handle, ended, failure
from tests.workflows.record_histories import FOLDER, load
from workers.audit import replay
from workers.audit.compare import Run, audit_run, compare_with_log
from workers.audit.histories import check_shape, read_history
from workers.client import ceremonies as ceremony_client
from workflows.contracts import names
from workflows.contracts.messages.requests import DrillRequest, HoldRequest
from workflows.contracts.messages.results import InitResult, ReshardResult
from workflows.contracts.trust.service_errors import NotKnown

pytestmark = pytest.mark.slow

THREE = ("alice", "bob", "carol")
Audited = dict[str, tuple[list[Run], list[EventRecord]]]
"""By kind of ceremony: its runs, and its part of the event log."""
LEFT_TO_VERIFY = {
    ("protection-committed", "discarded"),
    ("protection-retired", "purpose"),
    ("protection-retired", "epoch"),
    ("protection-destroyed", "purpose"),
    ("protection-destroyed", "epoch"),
    ("protection-destroyed", "threshold"),
    ("protection-destroyed", "keys"),
}
"""What the ledger adds by itself to what was asked for: the bundle's rules check it (`tests/bundle/test_verify.py`)."""


async def audited(house: House, *handles: Handle) -> tuple[list[Run], list[EventRecord]]:
    """An audit of a ceremony's workflows, and its part of the event log."""
    runs = []
    for handle in handles:
        # Others run under the same id by now.
        run = house.client.get_workflow_handle(handle.id, run_id=handle.result_run_id)
        runs.append(await audit_run(await run.fetch_history()))
    return runs, house.ledger.events(ceremony=runs[0].ceremony)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def lives(house: House) -> Audited:
    """Every kind of ceremony, for real."""
    name = house.fresh_name()
    refused = await house.start_init(name)
    plan = await house.plan(refused)
    for who in THREE:
        await refused.signal("approve", house.decision(who, plan, "reject"))
    await failure(refused)
    init = await house.start_init(name)
    await house.approve(init, THREE)
    made = InitResult.model_validate(await ended(init))
    asked = await house.ask(name, made)
    await house.approve(asked.handle, THREE)
    await ended(asked.handle)
    unseal = asked.handle.id.removeprefix("masterkey/")
    hold = await ceremony_client.hold(house.client, HoldRequest(ceremony=unseal, master_key=name))
    await house.idle(hold)
    seal = await house.start_seal(name, house.stop_by("alice", name))
    await ended(hold)
    await ended(seal)
    lift = await house.start_order(name, "lift")
    await house.approve(lift, THREE)
    await ended(lift)
    order = DrillRequest(master_key=name, ceremony=names.new_ceremony_id(name, "drill"))
    drill = await ceremony_client.start(house.client, "DrillWorkflow", order)
    await ended(drill)
    reshard = await house.start_reshard(name, house.keystores[:3], retention_hours=24)
    await house.approve(reshard, THREE)
    done = ReshardResult.model_validate(await ended(reshard))
    destroy = await house.start_order(name, "destroy", done.retired)
    await house.approve(destroy, THREE)
    await ended(destroy)
    cancelled = await house.start_reshard(name, house.keystores[:3])
    await house.plan(cancelled)
    await cancelled.cancel()
    await failure(cancelled)
    handles: dict[str, tuple[Handle, ...]] = {
        "refused init": (refused,),
        "init": (init,),
        "unseal": (asked.handle, hold),
        "seal": (seal,),
        "lift": (lift,),
        "drill": (drill,),
        "reshard": (reshard,),
        "destroy": (destroy,),
        "cancelled reshard": (cancelled,),
    }
    return {kind: await audited(house, *some) for kind, some in handles.items()}


def test_every_kind_of_ceremony_agrees_with_the_code_and_with_its_event_log(lives: Audited) -> None:
    for kind, (runs, log) in lives.items():
        assert [run.differences for run in runs] == [()] * len(runs), kind
        compared = compare_with_log(runs, log)
        assert (compared.differences, compared.notes) == ((), ()), kind
        assert {event.type for event in log} & {"ceremony-opened", "ceremony-closed"}, kind


def test_no_event_can_be_removed_from_the_log(lives: Audited) -> None:
    for kind, (runs, log) in lives.items():
        for event in log:
            without = [one for one in log if one is not event]
            assert compare_with_log(runs, without).differences != (), (kind, event.type)


def alterations(event: EventRecord) -> Iterator[tuple[str, EventRecord]]:
    """An event with one thing changed, for each thing that it says."""
    yield "type", event.model_copy(update={"type": "looks-like"})
    yield "master_key", event.model_copy(update={"master_key": "us20"})
    yield "at", event.model_copy(update={"at": event.at - timedelta(days=1)})
    yield "at", event.model_copy(update={"at": event.at + timedelta(days=1)})
    body: dict[str, Any] = json.loads(event.body)
    for name, value in body.items():
        other = "other" if value != "other" else "another"
        yield name, event.model_copy(update={"body": json.dumps({**body, name: other})})
        yield name, event.model_copy(update={"body": json.dumps({k: v for k, v in body.items() if k != name})})


def test_no_event_of_the_log_can_be_altered(lives: Audited) -> None:
    unnoticed = set()
    for runs, log in lives.values():
        for event in log:
            for what, altered in alterations(event):
                with_it = [altered if one is event else one for one in log]
                if not compare_with_log(runs, with_it).differences:
                    unnoticed.add((event.type, what))
    assert unnoticed <= LEFT_TO_VERIFY


def test_no_event_can_be_added_to_the_log(lives: Audited) -> None:
    every = {event.key: event for _, log in lives.values() for event in log}
    for kind, (runs, log) in lives.items():
        keys = {event.key for event in log}
        mine = [run.workflow for run in runs]
        for key, event in every.items():
            if key in keys or (key.startswith("ledger:holding") and "HoldWorkflow" not in mine):
                continue
            added = event.model_copy(update={"seq": 9999, "ceremony": runs[0].ceremony})
            found = compare_with_log(runs, [*log, added]).differences
            assert "event 9999" in " ".join(found), (kind, event.type)


def test_what_is_discarded_must_have_been_staged(lives: Audited) -> None:
    runs, log = lives["reshard"]
    body = json.dumps({"discarded": ["sha256:" + "5" * 64]})
    added = log[-1].model_copy(update={"key": "ledger:staged-discarded:x", "type": "staged-discarded", "body": body})
    assert compare_with_log(runs, [*log, added]).differences != ()


async def test_the_history_of_another_ceremony_is_no_proof(lives: Audited) -> None:
    run = lives["init"][0][0]
    other = await audit_run(run.history, ceremony="eu10.destroy.aaaaaaaaaaaa")
    assert "not of eu10.destroy.aaaaaaaaaaaa" in other.differences[0]


def test_a_hold_alone_is_compared_with_its_own_events_only(lives: Audited) -> None:
    runs, log = lives["unseal"]
    for some in ([runs[0]], [runs[1]]):
        found = compare_with_log(some, log)
        assert found.differences == ()
        assert "whose history was not given" in found.notes[0]


async def test_a_ceremony_that_was_terminated_and_closed_by_the_next_one_agrees_but_is_said_to_be(house: House) -> None:
    name = house.fresh_name()
    handle = await house.start_init(name)
    await house.plan(handle)
    await handle.terminate()
    runs, log = await audited(house, handle)
    assert "terminated, from outside" in runs[0].differences[0]
    assert len(runs[0].differences) == 1
    assert compare_with_log(runs, log).differences == ()
    await house.init(name)
    runs, log = await audited(house, handle)
    assert log[-1].type == "ceremony-closed"
    assert compare_with_log(runs, log).differences == ()
    # What came before it was terminated is gone through all the same.
    for event in runs[0].history.events:
        if event.HasField("activity_task_scheduled_event_attributes"):
            event.activity_task_scheduled_event_attributes.activity_type.name = names.UNWRAP_DATA_KEY
    assert len((await audit_run(runs[0].history)).differences) > 1


async def test_a_ceremony_that_was_started_twice_agrees(house: House) -> None:
    name = house.fresh_name()
    request = house.init_request(name)
    first = await ceremony_client.start(house.client, "InitWorkflow", request)
    await house.approve(first, THREE)
    await ended(first)
    second = await ceremony_client.start(house.client, "InitWorkflow", request)
    await failure(second)
    runs, log = await audited(house, first, second)
    assert [run.differences for run in runs] == [(), ()]
    assert compare_with_log(runs, log).differences == ()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_recorded_histories_pass_the_check_of_their_shape(path: Path) -> None:
    check_shape(load(path))


async def test_a_history_in_a_file_is_the_same_and_one_that_was_altered_differs(lives: Audited, tmp_path: Path) -> None:
    run = lives["init"][0][0]
    file = tmp_path / "history.json"
    file.write_text(run.history.to_json(), encoding="utf-8")
    same = await audit_run(read_history(file))
    assert (same.differences, same.ceremony) == ((), run.ceremony)
    assert same.history.workflow_id == run.history.workflow_id
    document = json.loads(run.history.to_json())
    scheduled = [event for event in document["events"] if "activityTaskScheduledEventAttributes" in event]
    scheduled[-1]["activityTaskScheduledEventAttributes"]["activityType"]["name"] = names.RECORD_PLAN
    file.write_text(json.dumps(document), encoding="utf-8")
    assert (await audit_run(read_history(file))).differences != ()


def _altered(history: WorkflowHistory) -> Iterator[WorkflowHistory]:
    """Histories that no server would have written, and on some of which the SDK waits for ever."""

    def copy() -> WorkflowHistory:
        return WorkflowHistory.from_json(history.workflow_id, history.to_json())

    for number in (1, len(history.events) - 1):
        for change in (
            {"event_type": EventType.EVENT_TYPE_UNSPECIFIED},
            {"event_type": 4711},
            {"event_id": 0},
            {"event_type": EventType.EVENT_TYPE_TIMER_FIRED},
        ):
            other = copy()
            for name, value in change.items():
                setattr(other.events[number], name, value)
            yield other
    other = copy()
    yield WorkflowHistory(other.workflow_id, [other.events[0], other.events[2], other.events[1], *other.events[3:]])
    yield WorkflowHistory(other.workflow_id, [])
    yield WorkflowHistory(other.workflow_id, other.events[1:])


async def test_a_history_that_no_server_would_have_written_is_refused_at_once(lives: Audited) -> None:
    for altered in _altered(lives["refused init"][0][0].history):
        with pytest.raises(NotKnown):
            await audit_run(altered)


async def test_a_replay_that_does_not_come_to_an_end_is_ended(lives: Audited, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_LIMIT_SECONDS", -1000.0)
    run = await audit_run(lives["init"][0][0].history)
    assert "has not come to an end" in run.differences[0]


async def test_a_hold_that_ended_since_somebody_looked_is_whole(lives: Audited) -> None:
    hold = lives["unseal"][0][1]
    run = await audit_run(hold.history, running=True)
    assert (run.running, run.differences) == (False, ())
    cut = WorkflowHistory(hold.history.workflow_id, hold.history.events[:-1])
    assert (await audit_run(cut)).differences != ()
    assert (await audit_run(cut, running=True)).differences == ()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"events": []}', '{"events": [{"eventId": "1"}]}', "\x00"])
def test_what_is_no_history_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "history.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(NotKnown, match="is no workflow history"):
        read_history(file)
    with pytest.raises(NotKnown, match="cannot read"):
        read_history(tmp_path / "nowhere.json")
