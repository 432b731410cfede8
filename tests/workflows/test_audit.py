"""Auditing ceremonies: history, code and event log agree; whatever is altered in either record shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from activities.ledger.records import EventRecord
from tests.workflows.people import Handle, House, ended, failure
from workers.audit import Run, audit_run, compare_with_log, read_history
from workflows.contracts import names
from workflows.contracts.errors import NotKnown
from workflows.contracts.messages import OrderResult, ReshardResult, SealResult, UnsealResult

THREE = ("alice", "bob", "carol")


async def audited(house: House, handle: Handle) -> tuple[Run, list[EventRecord]]:
    """A ceremony's audit, and its part of the event log."""
    run = await audit_run(await handle.fetch_history())
    return run, house.ledger.events(ceremony=run.ceremony)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def init(house: House) -> tuple[Run, list[EventRecord]]:
    """An init, audited."""
    handle = await house.start_init(house.fresh_name())
    await house.approve(handle, THREE)
    await ended(handle)
    return await audited(house, handle)


async def test_every_kind_of_ceremony_agrees_with_the_code_and_with_its_event_log(house: House) -> None:
    name, handles = house.fresh_name(), []
    refused = await house.start_init(name)
    plan = await house.plan(refused)
    for who in THREE:
        await refused.signal("approve", house.decision(who, plan, "reject"))
    await failure(refused)
    made = await house.init(name)
    asked = await house.ask(name, made)
    await house.approve(asked.handle, THREE)
    UnsealResult.model_validate(await ended(asked.handle))
    seal = await house.start_seal(name, house.stop_by("alice", name))
    SealResult.model_validate(await ended(seal))
    lift = await house.start_order(name, "lift")
    await house.approve(lift, THREE)
    OrderResult.model_validate(await ended(lift))
    reshard = await house.start_reshard(name, house.keystores[:3])
    await house.approve(reshard, THREE)
    done = ReshardResult.model_validate(await ended(reshard))
    destroy = await house.start_order(name, "destroy", done.retired)
    await house.approve(destroy, THREE)
    OrderResult.model_validate(await ended(destroy))
    cancelled = await house.start_reshard(name, house.keystores[:3])
    await house.plan(cancelled)
    await cancelled.cancel()
    await failure(cancelled)
    handles = [refused, asked.handle, seal, lift, reshard, destroy, cancelled]
    for handle in handles:
        run, log = await audited(house, handle)
        assert run.differences == (), run.ceremony
        assert compare_with_log([run], log) == [], run.ceremony


async def test_a_ceremony_that_was_terminated_is_said_to_be(house: House) -> None:
    handle = await house.start_init(house.fresh_name())
    await house.plan(handle)
    await handle.terminate()
    run, log = await audited(house, handle)
    assert "terminated, from outside" in run.differences[0]
    assert compare_with_log([run], log) == []


def test_every_event_that_is_missing_in_the_log_is_named(init: tuple[Run, list[EventRecord]]) -> None:
    run, log = init
    assert compare_with_log([run], log) == []
    for event in log:
        # What the workflow did not ask for by itself (that it began; that a commit follows a stage) has other proofs.
        if event.type not in ("ceremony-opened", "protection-staged"):
            assert compare_with_log([run], [one for one in log if one is not event]) != [], event.type


def changed(event: EventRecord, **changes: Any) -> EventRecord:
    return event.model_copy(update={"body": json.dumps({**json.loads(event.body), **changes})})


def test_every_event_that_was_altered_or_added_is_named(init: tuple[Run, list[EventRecord]]) -> None:
    run, log = init
    by_type = {event.type: event for event in log}
    other = "sha256:" + "5" * 64
    retired = {"digest": other, "purpose": "primary", "epoch": 1}
    altered = [
        changed(by_type["approval-recorded"], custodian="mallory"),
        changed(by_type["data-key-proven"], keystore="elsewhere"),
        changed(by_type["protection-staged"], digest=other),
        changed(by_type["protection-committed"], attempt=2),
        changed(by_type["ceremony-closed"], outcome="refused"),
        by_type["approval-recorded"].model_copy(update={"type": "rejection-recorded"}),
    ]
    for event in altered:
        with_it = [event if one.seq == event.seq else one for one in log]
        assert f"event {event.seq}" in " ".join(compare_with_log([run], with_it)), event.type
    added = {
        "approval-recorded": ("approve.mallory", json.loads(by_type["approval-recorded"].body)),
        "protection-retired": (f"ledger:protection-retired:{other}", retired),
        "stops-lifted": ("ledger:stops-lifted", {"stops": [other]}),
    }
    for type_, (key, body) in added.items():
        event = log[-1].model_copy(update={"seq": 9999, "key": key, "type": type_, "body": json.dumps(body)})
        assert "event 9999" in " ".join(compare_with_log([run], [*log, event])), type_


async def test_a_plan_of_another_ceremony_is_named(house: House, init: tuple[Run, list[EventRecord]]) -> None:
    run, log = init
    handle = await house.start_init(house.fresh_name())
    other = (await house.plan(handle)).canonical().decode()
    await handle.cancel()
    [made] = [event for event in log if event.type == "plan-made"]
    with_it = [changed(event, plan=other) if event is made else event for event in log]
    said = compare_with_log([run], with_it)
    assert len(said) == 2
    assert "made no such plan" in said[1]


async def test_a_history_that_was_altered_differs(init: tuple[Run, list[EventRecord]], tmp_path: Path) -> None:
    run = init[0]
    text = run.history.to_json()
    file = tmp_path / "history.json"
    file.write_text(text, encoding="utf-8")
    same = await audit_run(read_history(file))
    assert (same.differences, same.ceremony, same.workflow_id) == ((), run.ceremony, run.workflow_id)
    document = json.loads(text)
    scheduled = [event for event in document["events"] if "activityTaskScheduledEventAttributes" in event]
    last = scheduled[-1]["activityTaskScheduledEventAttributes"]
    assert last["activityType"]["name"] in (names.CLOSE_CEREMONY, names.EXPORT_BUNDLE)
    last["activityType"]["name"] = names.RECORD_PLAN
    file.write_text(json.dumps(document), encoding="utf-8")
    assert (await audit_run(read_history(file))).differences != ()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"events": []}', '{"events": [{"eventId": "1"}]}', "\x00"])
def test_what_is_no_history_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "history.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(NotKnown, match="is no workflow history"):
        read_history(file)
    with pytest.raises(NotKnown, match="cannot read"):
        read_history(tmp_path / "nowhere.json")
