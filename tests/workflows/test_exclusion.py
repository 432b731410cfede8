"""Exclusion: one ceremony changes a MasterKey at a time; everything else runs side by side."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.exceptions import WorkflowAlreadyStartedError

from tests.driving.house import House
from tests.driving.reading import Handle, clean, ended, failure
from workers.client import ceremonies as ceremony_client
from workflows.contracts import names
from workflows.contracts.messages.results import InitResult, UnsealResult
from workflows.contracts.trust.errors import MasterKeyError
from workflows.contracts.trust.service_errors import CeremonyEnded, NameTaken


async def test_of_many_inits_of_one_name_at_once_one_wins_and_the_others_are_told(house: House) -> None:
    name = house.fresh_name()
    answers = await asyncio.gather(*(house.start_init(name) for _ in range(8)), return_exceptions=True)
    won = [answer for answer in answers if not isinstance(answer, BaseException)]
    lost = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(won) == 1
    assert all(isinstance(error, CeremonyEnded) and name in error.message for error in lost)
    await house.approve(won[0], ["alice", "bob", "carol"])
    made = InitResult.model_validate(await ended(won[0]))
    assert [p.status for p in house.ledger.protections(name)] == ["active"]
    assert made.kcv == house.ledger.protections(name)[0].kcv


async def test_a_name_that_exists_is_never_taken_again(house: House) -> None:
    name = house.fresh_name()
    made = await house.init(name)
    second = await house.start_init(name)
    error = await failure(second)
    assert isinstance(error, NameTaken)
    assert name in error.message
    await clean(second)
    assert [p.kcv for p in house.ledger.protections(name)] == [made.kcv]


async def test_a_workflow_of_another_type_under_the_same_id_is_excluded_too(house: House) -> None:
    handle = await house.start_init(house.fresh_name())
    with pytest.raises(WorkflowAlreadyStartedError):
        await house.client.start_workflow("ReportWorkflow", id=handle.id, task_queue=names.ORCHESTRATOR_QUEUE)
    await handle.terminate()


async def test_the_same_ceremony_started_again_after_its_end_fails_and_blocks_nothing(house: House) -> None:
    name = house.fresh_name()
    request = house.init_request(name)
    first = await ceremony_client.start(house.client, "InitWorkflow", request)
    for who in ("alice", "bob", "carol"):
        await first.signal("approve", house.decision(who, await house.plan(first), "reject"))
    assert isinstance(await failure(first), CeremonyEnded)
    again = await ceremony_client.start(house.client, "InitWorkflow", request)
    # The development server may forget a waiting request, and answers it after 20 s.
    error = await failure(again)
    assert isinstance(error, MasterKeyError)
    await clean(again)
    assert house.ledger.ceremony(request.ceremony).outcome == "refused"
    await house.init(name)


async def test_inits_of_different_names_run_side_by_side(house: House) -> None:
    many = [house.fresh_name() for _ in range(4)]
    handles: list[Handle] = list(await asyncio.gather(*(house.start_init(name) for name in many)))
    # All of them wait at the same time.
    for handle in handles:
        await house.reach(handle, "quorum")
    await asyncio.gather(*(house.approve(handle, ["alice", "bob", "carol"]) for handle in handles))
    made = [InitResult.model_validate(await ended(handle)) for handle in handles]
    assert len({result.kcv for result in made}) == len(many)


async def test_any_number_of_unseals_run_at_once(house: House) -> None:
    name = house.fresh_name()
    made = await house.init(name)
    asked = [await house.ask(name, made) for _ in range(4)]
    await asyncio.gather(*(house.reach(one.handle, "quorum") for one in asked))
    await asyncio.gather(*(house.approve(one.handle, ["alice", "bob", "carol"]) for one in asked))
    results = [UnsealResult.model_validate(await ended(one.handle)) for one in asked]
    keys = {house.receive(one, result, made) for one, result in zip(asked, results, strict=True)}
    assert len(keys) == 1


async def test_an_init_that_was_ended_from_outside_leaves_nothing_to_the_next(house: House) -> None:
    name = house.fresh_name()
    handle = await house.start_init(name)
    ended = (await house.status(handle)).ceremony
    await house.reach(handle, "quorum")
    await handle.terminate("by an operator")
    made = await house.init(name)
    record = house.ledger.ceremony(ended)
    assert (record.outcome, record.detail) == ("failed", "ended from outside before it was done")
    assert house.ledger.ceremony(made.ceremony).outcome == "done"


async def test_a_cancelled_ceremony_is_recorded_as_refused(house: House) -> None:
    handle = await house.start_init(house.fresh_name())
    ceremony = (await house.plan(handle)).ceremony
    await handle.cancel()
    assert isinstance(await failure(handle), CeremonyEnded)
    await clean(handle)
    record = house.ledger.ceremony(ceremony)
    assert (record.outcome, record.detail) == ("refused", "cancelled by an operator")
    events = [event.type for event in house.ledger.events(ceremony=ceremony)]
    assert "ceremony-cancelled" in events
