"""Lifts: a keystore worker that missed one refuses by itself, until the lift is repeated."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.driving.reading import clean, ended, failure
from tests.workflows.gated import GatedHouse
from workflows.contracts.messages.results import OrderResult, SealResult, UnsealResult
from workflows.contracts.trust.errors import PlanInvalid
from workflows.contracts.trust.service_errors import Stopped

THREE = ("alice", "bob", "carol")
WORKER = "keystore-bao-1"


async def lift(gated: GatedHouse, name: str) -> OrderResult:
    handle = await gated.start_order(name, "lift")
    await gated.approve(handle, THREE)
    result = OrderResult.model_validate(await ended(handle))
    await clean(handle)
    return result


async def test_a_keystore_whose_state_is_older_than_a_lift_refuses_until_the_lift_is_repeated(
    gated: GatedHouse, tmp_path: Path
) -> None:
    name = gated.fresh_name()
    made = await gated.init(name, "seal", count=1)
    order = gated.stop_by("erin", name)
    told = SealResult.model_validate(await ended(await gated.start_seal(name, order)))
    assert all(one.acknowledged for one in told.keystores)
    state = gated.stack.folder / "state" / "bao-1"
    shutil.copytree(state, tmp_path / "backup")
    first = await lift(gated, name)
    assert first.stops == (order.digest,)
    # Its host is restored from a backup that is older than the lift; the ledger knows of no stop any more.
    gated.kill(WORKER)
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "backup", state)
    gated.start_again(WORKER)
    assert gated.ledger.stops_in_force(name) == []
    asked = await gated.ask(name, made)
    assert isinstance(await failure(asked.handle), Stopped)
    # A lift asks every keystore what it remembers, and names that.
    second = await lift(gated, name)
    assert second.stops == (order.digest,)
    assert all(one.acknowledged for one in second.keystores)
    asked = await gated.ask(name, made)
    result = UnsealResult.model_validate(await ended(asked.handle))
    assert len(gated.receive(asked, result, made)) == 32


async def test_there_is_nothing_to_lift_where_nobody_knows_of_a_stop(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    await gated.init(name, "seal", count=1)
    error = await failure(await gated.start_order(name, "lift"))
    assert isinstance(error, PlanInvalid)
    assert "no stop" in error.message
