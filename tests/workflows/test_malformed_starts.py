"""Starts that no orchestrator can read fail at once: none holds a MasterKey's change, or waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import RawValue, VersioningBehavior
from temporalio.exceptions import ApplicationError

from tests.conftest import Installation
from workers.client import running
from workers.local.process import ServiceFailed
from workers.runner import behaviour_of
from workflows.catalogue import GATED, WORKFLOWS
from workflows.contracts.names import ORCHESTRATOR_QUEUE
from workflows.contracts.trust.service_errors import BY_NAME

UNREADABLE = RawValue(Payload(metadata={"encoding": b"of-nobody"}, data=b"\x00\xff"))
NOT_JSON = RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b"{\xff"))
GARBAGE: dict[str, list[Any]] = {
    "nothing": [],
    "null": [None],
    "a number": [7],
    "text": ["eu10"],
    "bytes": [b"\xff\x00"],
    "a list": [[1, 2]],
    "wrong fields": [{"ceremony": 1, "master_key": {}, "keystores": 0, "kind": [], "grace_seconds": "x"}],
    "two arguments": [{}, {}],
    "an encoding of nobody": [UNREADABLE],
    "no JSON": [NOT_JSON],
    "deep": [{"shards": [[[[{}]]]], "stop": {"document": None}, "keystores": {}, "kind": {}, "grace_seconds": []}],
}


@pytest.mark.parametrize("shape", GARBAGE)
async def test_every_workflow_refuses_every_shape_of_garbage_at_once(
    client: Client, installation: Installation, shape: str
) -> None:
    name = installation.fresh_name()

    async def refused(workflow: str) -> None:
        started = await client.start_workflow(
            workflow, args=GARBAGE[shape], id=f"masterkey/{name}/change/{workflow}", task_queue=ORCHESTRATOR_QUEUE
        )
        with pytest.raises(WorkflowFailureError) as failure:
            await asyncio.wait_for(started.result(), 60)
        cause = failure.value.cause
        assert isinstance(cause, ApplicationError)
        assert cause.type in BY_NAME
        assert workflow in cause.message
        # A closed run is asked too, by whoever looks what it was.
        with pytest.raises(Exception, match="started with something else"):
            await started.query("status")

    await asyncio.gather(*(refused(workflow.__name__) for workflow in WORKFLOWS))


@pytest.mark.parametrize("kind", ["InitWorkflow", "NoSuchWorkflow", ""])
async def test_a_malformed_start_under_the_id_of_a_change_does_not_keep_the_change_from_being_made(
    client: Client, installation: Installation, kind: str
) -> None:
    name = installation.fresh_name()
    change = f"masterkey/{name}/change"
    if kind:
        started = await client.start_workflow(kind, {}, id=change, task_queue=ORCHESTRATOR_QUEUE)
        with pytest.raises(WorkflowFailureError) as failure:
            await asyncio.wait_for(started.result(), 60)
        assert isinstance(failure.value.cause, ApplicationError)
        assert failure.value.cause.type in BY_NAME
    else:
        # Nobody serves this queue: what holds the id is said, and how to end it.
        await client.start_workflow("Anything", id=change, task_queue="of-nobody")
        keystores = ["--keystore", "bao-1", "--keystore", "bao-2"]
        with pytest.raises(ServiceFailed) as refusal:
            installation.stack.masterkey("init", name, "--mode", "seal", *keystores, "--no-wait")
        assert "held by a run of Anything that is no ceremony" in str(refusal.value)
        assert f"masterkey ceremony end {change}" in str(refusal.value)
        listed = installation.stack.masterkey("ceremony", "list")
        assert [one["workflow_id"] for one in listed["foreign"]] == [change]
        ended = installation.stack.masterkey("ceremony", "end", change)
        assert "terminated" in ended["what"]
        with pytest.raises(ServiceFailed, match=r"nothing of the name|is over"):
            installation.stack.masterkey("ceremony", "end", change)
    installation.init(name, mode="seal", count=2)


async def test_a_waiting_ceremony_is_ended_by_its_own_worker_and_its_record_is_closed(
    client: Client, installation: Installation
) -> None:
    name = installation.fresh_name()
    words = ["--mode", "seal", "--keystore", "bao-1", "--keystore", "bao-2", "--no-wait"]
    ceremony = installation.stack.masterkey("init", name, *words)["ceremony"]
    assert "has ended" in await running.end(client, ceremony, "a test")
    assert installation.ledger.ceremony(ceremony).outcome == "refused"
    installation.init(name, mode="seal", count=2)


def test_what_must_run_on_the_newest_code_is_gated_and_all_else_is_pinned() -> None:
    gated = {workflow.__name__ for workflow in GATED}
    # The stop, the lift, the drill and the collection; a holder, which may run for months; and what only looks.
    assert gated >= {"SealWorkflow", "OrderWorkflow", "DrillWorkflow", "CollectWorkflow", "HoldWorkflow"}
    for workflow in WORKFLOWS:
        pinned = behaviour_of(workflow.__name__) is VersioningBehavior.PINNED
        assert pinned != (workflow.__name__ in gated)
