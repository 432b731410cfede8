"""Messages to recoveries, stops and holders: whatever is sent, before they run and while they do, nothing breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from temporalio.client import WorkflowUpdateFailedError

from tests.driving.gates import wait_for_gates
from tests.driving.reading import Handle, clean, ended, eventually, failure
from tests.workflows.gated import GatedHouse
from tests.workflows.test_messages import GARBAGE
from workers.client import ceremonies as ceremony_client
from workflows.contracts import names
from workflows.contracts.messages.requests import ChangedPlan, HoldRequest, ShardRequest
from workflows.contracts.messages.results import HoldResult, ReshardResult, SealResult, UnsealResult
from workflows.contracts.trust.canonical import Signed, seconds
from workflows.contracts.trust.service_errors import CeremonyEnded, NotKnown, Stopped
from workflows.contracts.trust.stop import Ended

QUORUM = ("alice", "bob", "carol")
EARLY = GARBAGE[:3]
"""For updates before the first workflow task: the server takes ten at a time."""


@asynccontextmanager
async def asleep(gated: GatedHouse) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """No workflow task is done meanwhile; what was sent comes in before `run` begins.

    Updates that are put into the list must all be refused.
    """
    sent: list[asyncio.Task[Any]] = []
    with gated.without("orchestrator"):
        yield sent
        await asyncio.sleep(0.5)
    for update in sent:
        with pytest.raises(WorkflowUpdateFailedError):
            await update


async def garbage(handle: Handle, signals: Sequence[str], updates: Sequence[str] = ()) -> int:
    """Send all that could break a handler; gives back how many signals there were of each kind."""
    for arguments in GARBAGE:
        for name in signals:
            await handle.signal(name, args=arguments)
        for name in updates:
            with pytest.raises(WorkflowUpdateFailedError):
                await handle.execute_update(name, args=arguments)
    return len(GARBAGE)


@contextmanager
def lost(gated: GatedHouse, keystore: str) -> Iterator[None]:
    gated.lose(keystore)
    try:
        yield
    finally:
        gated.make_anew(keystore)


@pytest.mark.slow
async def test_a_recovery_survives_every_poison_message_and_then_completes(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    made = await gated.init(name)
    with lost(gated, "bao-1"):
        async with asleep(gated) as sent:
            handle = await gated.start_recover(name)
            for kind in ("replan", "contribute", "submit"):
                sent += [asyncio.create_task(handle.execute_update(kind, args=arguments)) for arguments in EARLY]
            await garbage(handle, ("approve", "replan", "contribute", "stop"))
        plan = await gated.plan(handle)
        await garbage(handle, ("approve", "stop"), ("replan", "contribute", "submit"))
        status = await gated.status(handle)
        assert (status.phase, status.approved_by) == ("quorum", ())
        assert status.plan == plan.canonical().decode()
        gate = gated.gate(name, names.COMMIT_PROTECTION)
        await gated.approve(handle, QUORUM)
        await wait_for_gates([gate])
        wish = ChangedPlan(shards=(ShardRequest(keystore="bao-2"),), mode="seal")
        with pytest.raises(CeremonyEnded, match="the plan is being put in force"):
            await ceremony_client.update(handle, "replan", wish, str)
        await garbage(handle, ("approve", "stop"), ("replan", "contribute"))
        gate.open()
        assert ReshardResult.model_validate(await ended(handle)).kcv == made.kcv
    with pytest.raises(CeremonyEnded, match="is over"):
        await ceremony_client.update(handle, "replan", wish, str)
    await clean(handle)
    withdrawn = [e for e in gated.ledger.events(ceremony=status.ceremony) if e.type == "plan-withdrawn"]
    assert withdrawn == []


async def test_a_plan_that_was_asked_for_before_the_recovery_runs_is_the_one_that_is_decided(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    await gated.init(name)
    wish = ChangedPlan(shards=tuple(ShardRequest(keystore=one) for one in ("bao-2", "bao-3")))
    with lost(gated, "bao-1"):
        with gated.without("orchestrator"):
            handle = await gated.start_recover(name)
            sent = asyncio.create_task(handle.execute_update("replan", wish))
            await asyncio.sleep(0.5)
        await sent

        async def decided() -> bool:
            status = await gated.status(handle)
            return status.phase == "quorum" and "any 2 of 2 shards" in " ".join(status.changes)

        await eventually(decided)
        await gated.approve(handle, QUORUM)
        assert ReshardResult.model_validate(await ended(handle)).approved_by == QUORUM
    assert [one.keystore for one in gated.active(name).shards] == ["bao-2", "bao-3"]
    await clean(handle)


async def test_a_forged_stop_is_counted_and_ends_no_unseal(gated: GatedHouse) -> None:
    name, other = gated.fresh_name(), gated.fresh_name()
    made, now = await gated.init(name), seconds(datetime.now(UTC))
    true = gated.stop_by("erin", name)
    forged = [
        gated.stop_by("recipient", name),
        gated.stop_by("strongroom", name),
        gated.stop_by("erin", other),
        gated.stop_by("erin", name, custodian=gated.fingerprint("alice")),
        gated.stop_by("erin", name, issued=now + timedelta(hours=1)),
        gated.stop_by("erin", name, issued=now - timedelta(days=31)),
        gated.stop_by("erin", name, issued=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        Signed(document=true.document, signature=gated.stop_by("erin", other).signature),
        Signed(document=true.document.replace("laptop", "lap-top"), signature=true.signature),
        gated.decision("erin", await gated.plan(await gated.start_init(other))),
    ]
    async with asleep(gated):
        asked = await gated.ask(name, made)
        count = await garbage(asked.handle, ["stop"])
        for one in forged:
            await asked.handle.signal("stop", one)
    await gated.reach(asked.handle, "quorum")
    count += await garbage(asked.handle, ["stop"])
    for one in forged:
        await asked.handle.signal("stop", one)
    status = await gated.status(asked.handle)
    assert status.phase == "quorum"
    # Some of the garbage cannot even be decoded, and never reaches the handler.
    assert 2 * len(forged) + 30 < status.refused_messages <= 2 * len(forged) + count
    await gated.approve(asked.handle, QUORUM)
    gated.receive(asked, UnsealResult.model_validate(await ended(asked.handle)), made)
    await clean(asked.handle)


async def test_two_custodians_stop_an_unseal_at_the_same_moment_and_both_are_recorded(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    made = await gated.init(name)
    stops = [gated.stop_by(who, name) for who in ("alice", "bob")]
    async with asleep(gated):
        asked = await gated.ask(name, made)
        for one in (*stops, stops[0]):
            await asked.handle.signal("stop", one)
    error = await failure(asked.handle)
    assert isinstance(error, Stopped)
    assert "alice ordered to stop" in error.message
    await clean(asked.handle)
    record = gated.ledger.ceremony(asked.request.ceremony)
    assert (record.outcome, "alice ordered" in record.detail) == ("refused", True)
    heeded = [e for e in gated.ledger.events(ceremony=asked.request.ceremony) if e.type == "stop-heeded"]
    assert len(heeded) == 2


@pytest.mark.slow
async def test_a_stop_survives_every_poison_acknowledgement_and_believes_only_what_the_recipient_signed(
    gated: GatedHouse,
) -> None:
    name = gated.fresh_name()
    made = await gated.init(name, "seal", count=1)
    holders = []
    for _ in range(3):
        asked = await gated.ask(name, made)
        await ended(asked.handle)
        request = HoldRequest(ceremony=asked.request.ceremony, master_key=name)
        holders.append(await ceremony_client.hold(gated.client, request))
        await gated.idle(holders[-1])
    stop = gated.stop_by("erin", name)

    def ended_by(who: str, holder: Handle, **changes: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "master_key": name,
            "ceremony": names.held_since(holder.id),
            "stop": stop.digest,
            "recipient": gated.identity("recipient").fingerprint,
            "time": seconds(datetime.now(UTC)),
        }
        return {"workflow": holder.id, "ended": gated.sign(who, Ended(**{**fields, **changes})).model_dump()}

    true, forged = ended_by("recipient", holders[0]), ended_by("alice", holders[1])
    wrong: list[Any] = [
        {"workflow": 1},
        {"workflow": None, "ended": {}},
        {"workflow": "x" * 10_000},
        {"workflow": holders[1].id, "ended": [[]]},
        {"workflow": holders[1].id, "ended": {"document": "{}", "signature": ""}},
        {"workflow": holders[1].id, "ended": true["ended"]},
        ended_by("recipient", holders[1], stop=gated.stop_by("bob", name).digest),
        forged,
    ]
    async with asleep(gated):
        handle = await gated.start_seal(name, stop, patience_seconds=8)
        gate = gated.gate((await _ceremony(handle)), names.STOP_SERVING)
        await garbage(handle, ("acknowledge", "approve", "stop"))
        for one in wrong:
            await handle.signal("acknowledge", one)
    await wait_for_gates([gate])
    await garbage(handle, ("acknowledge", "approve", "stop"))
    for one in (*wrong, true):
        await handle.signal("acknowledge", one)
    gate.open()
    result = SealResult.model_validate(await ended(handle))
    told = {one.workflow: one.state for one in result.holders}
    assert told == dict(zip([one.id for one in holders], ("ended", "refused", "silent"), strict=True))
    assert all(one.acknowledged for one in result.keystores)
    await clean(handle)
    for holder in holders:
        assert HoldResult.model_validate(await ended(holder)).stop == stop
        await clean(holder)
    await gated.order(name, "lift")


async def _ceremony(handle: Handle) -> str:
    return handle.id.removeprefix("masterkey/")


async def test_a_holder_survives_every_poison_message_and_ends_when_it_is_released(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    made = await gated.init(name, "seal", count=1)
    asked = await gated.ask(name, made)
    await ended(asked.handle)
    malformed = [arguments for arguments in GARBAGE if not _is_signed(arguments)]
    async with asleep(gated):
        handle = await ceremony_client.hold(gated.client, HoldRequest(ceremony=asked.request.ceremony, master_key=name))
        for arguments in malformed:
            await handle.signal("stop", args=arguments)
    await gated.idle(handle)
    for arguments in malformed:
        await handle.signal("stop", args=arguments)
        await handle.signal("unheard-of", args=arguments)
    await gated.idle(handle)
    assert gated.ledger.releases(name) == [handle.id]
    await handle.signal("released", args=("more", {"than": "expected"}, 3))
    assert HoldResult.model_validate(await ended(handle)).stop is None
    assert gated.ledger.releases(name) == []
    await clean(handle)


async def test_whoever_holds_what_was_never_released_is_told_so_and_hangs_nothing(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    request = HoldRequest(ceremony=names.new_ceremony_id(name, "unseal"), master_key=name)
    handle = await ceremony_client.hold(gated.client, request)
    assert isinstance(await failure(handle), NotKnown)
    await clean(handle)


def _is_signed(arguments: tuple[Any, ...]) -> bool:
    try:
        Signed.model_validate(arguments[0] if arguments else None)
    except ValidationError:
        return False
    return True
