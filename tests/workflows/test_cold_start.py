"""A fresh orchestrator: what was sent while none ran is verified by a process that has verified nothing yet."""

from __future__ import annotations

import pytest

from tests.driving.reading import clean, ended, eventually
from tests.workflows.gated import GatedHouse
from workflows.contracts.messages.results import InitResult

pytestmark = pytest.mark.slow


async def test_an_rsa_approval_that_came_while_no_orchestrator_ran_is_verified_by_the_next(apart: GatedHouse) -> None:
    handle = await apart.start_init(apart.fresh_name())
    plan = await apart.plan(handle)
    await apart.idle(handle)
    apart.worker("orchestrator").stop()
    bob = apart.decision("bob", plan)
    assert "ssh-rsa" in (apart.stack.folder / "keys" / "bob.pub").read_text()
    await handle.signal("approve", bob)
    apart.start_again("orchestrator")

    async def counted() -> bool:
        return (await apart.status(handle)).approved_by == ("bob",)

    await eventually(counted)
    assert (await apart.status(handle)).refused_messages == 0
    await apart.approve(handle, ["alice", "carol"])
    assert InitResult.model_validate(await ended(handle)).approved_by == ("alice", "bob", "carol")
    await clean(handle, killed=True)


@pytest.mark.slow
async def test_a_whole_quorum_that_came_while_no_orchestrator_ran_is_enough(apart: GatedHouse) -> None:
    handle = await apart.start_init(apart.fresh_name())
    plan = await apart.plan(handle)
    await apart.idle(handle)
    apart.kill("orchestrator")
    for name in ("bob", "dave", "erin"):
        await handle.signal("approve", apart.decision(name, plan))
    apart.start_again("orchestrator")
    assert InitResult.model_validate(await ended(handle)).approved_by == ("bob", "dave", "erin")
    await clean(handle, killed=True)
