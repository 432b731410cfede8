"""A fresh orchestrator: what was sent while none ran is verified by a process that has verified nothing yet."""

from __future__ import annotations

import pytest

from tests.workflows.gated import GatedHouse
from tests.workflows.people import clean, ended, eventually
from workflows.contracts.messages.results import InitResult

pytestmark = pytest.mark.slow


async def test_an_rsa_approval_that_came_while_no_orchestrator_ran_is_verified_by_the_next(gated: GatedHouse) -> None:
    handle = await gated.start_init(gated.fresh_name())
    plan = await gated.plan(handle)
    await gated.idle(handle)
    gated.worker("orchestrator").stop()
    bob = gated.decision("bob", plan)
    assert "ssh-rsa" in (gated.stack.folder / "keys" / "bob.pub").read_text()
    await handle.signal("approve", bob)
    gated.start_again("orchestrator")

    async def counted() -> bool:
        return (await gated.status(handle)).approved_by == ("bob",)

    await eventually(counted)
    assert (await gated.status(handle)).refused_messages == 0
    await gated.approve(handle, ["alice", "carol"])
    assert InitResult.model_validate(await ended(handle)).approved_by == ("alice", "bob", "carol")
    await clean(handle, killed=True)


@pytest.mark.slow
async def test_a_whole_quorum_that_came_while_no_orchestrator_ran_is_enough(gated: GatedHouse) -> None:
    handle = await gated.start_init(gated.fresh_name())
    plan = await gated.plan(handle)
    await gated.idle(handle)
    gated.kill("orchestrator")
    for name in ("bob", "dave", "erin"):
        await handle.signal("approve", gated.decision(name, plan))
    gated.start_again("orchestrator")
    assert InitResult.model_validate(await ended(handle)).approved_by == ("bob", "dave", "erin")
    await clean(handle, killed=True)
