"""Retries and time-outs: what keystores and strongrooms that fail, hang or freeze cost, and what they do not."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from deploy.emulators.fault_proxy import Answer, Hang, Reset, Rule
from tests.driving.gates import wait_for_gates
from tests.driving.house import Asked, House
from tests.driving.reading import clean, ended, eventually, failure, scheduled
from tests.workflows.gated import GatedHouse
from workflows.contracts import names
from workflows.contracts.messages.results import InitResult, UnsealResult
from workflows.contracts.trust.service_errors import KeystoreAccessDenied, QuorumUnreachable

QUORUM = ("alice", "bob", "carol")


@pytest.fixture(autouse=True)
def _mended(request: pytest.FixtureRequest) -> Iterator[None]:
    houses = [request.getfixturevalue(name) for name in ("gated", "apart") if name in request.fixturenames]
    yield
    for house in houses:
        for proxy in house.proxies:
            proxy.rule = Rule()


async def finished(house: House, asked: Asked, made: InitResult) -> UnsealResult:
    """The result of an unseal, opened."""
    result = UnsealResult.model_validate(await ended(asked.handle, 60))
    assert len(house.receive(asked, result, made)) == 32
    return result


async def timed(house: House, name: str, made: InitResult) -> tuple[float, UnsealResult, Asked]:
    """How long an unseal takes once its quorum stands."""
    asked = await house.ask(name, made)
    await house.reach(asked.handle, "quorum", "releasing", "waiting", "done")
    began = time.monotonic()
    if (await house.status(asked.handle)).phase == "quorum":
        await house.approve(asked.handle, QUORUM)
    result = await finished(house, asked, made)
    return time.monotonic() - began, result, asked


async def test_a_keystore_that_answers_with_errors_costs_one_more_call(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    made = await gated.init(name)
    gated.proxies[0].rule = Answer(503, body=b"{}")
    _, result, asked = await timed(gated, name, made)
    assert (result.served_by, result.failed) == (("bao-2", "bao-3"), ("bao-1",))
    history = await clean(asked.handle)
    assert scheduled(history)[names.UNWRAP_DATA_KEY] == 3, "two, and one for the one that failed"
    assert scheduled(history)[names.OPEN_SESSION] == 1


@pytest.mark.slow
async def test_a_keystore_whose_connections_are_reset_costs_one_more_call(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    made = await gated.init(name)
    gated.proxies[1].rule = Reset()
    _, result, asked = await timed(gated, name, made)
    assert result.served_by == ("bao-1", "bao-3")
    assert scheduled(await clean(asked.handle))[names.UNWRAP_DATA_KEY] == 3


async def test_a_hanging_keystore_costs_about_a_second_not_its_time_out(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    made = await gated.init(name)
    usual, _, _ = await timed(gated, name, made)
    gated.proxies[0].rule = Hang()
    slow, result, asked = await timed(gated, name, made)
    assert result.served_by == ("bao-2", "bao-3")
    assert slow - usual < 5, "the hedge asks the next after a second; the call's own time-out is 10 to 15"
    assert scheduled(await clean(asked.handle))[names.UNWRAP_DATA_KEY] == 3


@pytest.mark.slow
async def test_a_frozen_keystore_worker_costs_about_a_second(apart: GatedHouse) -> None:
    name = apart.fresh_name()
    made = await apart.init(name)
    apart.worker("keystore-bao-1").signal_group(signal.SIGSTOP)
    try:
        slow, result, asked = await timed(apart, name, made)
    finally:
        apart.worker("keystore-bao-1").signal_group(signal.SIGCONT)
    assert result.served_by == ("bao-2", "bao-3")
    assert slow < 8
    assert scheduled(await clean(asked.handle))[names.UNWRAP_DATA_KEY] == 3


async def test_an_init_waits_for_a_keystore_that_comes_back(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    handle = await gated.start_init(name)
    await gated.reach(handle, "quorum")
    gated.proxies[2].rule = Answer(503, body=b"{}")
    await gated.approve(handle, QUORUM)

    async def refused() -> bool:
        pending = (await handle.describe()).raw_description.pending_activities
        return any(one.attempt > 1 for one in pending)

    await eventually(refused)
    gated.proxies[2].rule = Rule()
    made = InitResult.model_validate(await ended(handle))
    assert made.attempt == 1, "the call was repeated, not the ceremony"
    assert scheduled(await clean(handle))[names.GENERATE_DATA_KEY] == 3


async def test_an_init_over_a_keystore_that_refuses_fails_and_leaves_nothing(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    handle = await gated.start_init(name)
    await gated.reach(handle, "quorum")
    ceremony = (await gated.status(handle)).ceremony
    gated.proxies[2].rule = Answer(403, body=b'{"errors": ["permission denied"]}')
    await gated.approve(handle, QUORUM)
    error = await failure(handle)
    assert isinstance(error, KeystoreAccessDenied)
    assert error.subject == "bao-3"
    await clean(handle)
    assert gated.ledger.protections(name) == []
    assert gated.ledger.ceremony(ceremony).outcome == "failed"
    events = [event.type for event in gated.ledger.events(ceremony=ceremony)]
    assert events.count("attempt-failed") == 1


@pytest.mark.slow
async def test_a_seal_unseal_without_any_keystore_waits_and_says_so(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    made = await gated.init(name, "seal", count=2)
    for proxy in gated.proxies[:2]:
        proxy.rule = Answer(503, body=b"{}")
    asked = await gated.ask(name, made)
    status = await gated.reach(asked.handle, "waiting")
    assert {k.keystore: k.error for k in status.keystores} == dict.fromkeys(("bao-1", "bao-2"), "KeystoreUnavailable")
    gated.proxies[1].rule = Rule()
    result = await finished(gated, asked, made)
    assert (result.served_by, result.failed) == (("bao-2",), ("bao-1",))
    await clean(asked.handle)


async def test_a_seal_unseal_that_no_keystore_will_ever_serve_ends_at_once(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    made = await gated.init(name, "seal", count=2)
    for proxy in gated.proxies[:2]:
        proxy.rule = Answer(403, body=b'{"errors": ["permission denied"]}')
    asked = await gated.ask(name, made)
    error = await failure(asked.handle)
    assert isinstance(error, QuorumUnreachable)
    assert "bao-1: KeystoreAccessDenied" in error.message
    assert "bao-2: KeystoreAccessDenied" in error.message


@pytest.mark.parametrize("mode", ["sss", pytest.param("seal", marks=pytest.mark.slow)])
async def test_a_strongroom_that_is_killed_before_its_session_is_used_is_replaced_in_seconds(
    apart: GatedHouse, mode: str
) -> None:
    name = apart.fresh_name()
    made = await apart.init(name, mode)
    ceremony = names.new_ceremony_id(name, "unseal")
    gate = apart.gate(ceremony, names.UNWRAP_DATA_KEY)
    asked = await apart.ask(name, made, ceremony=ceremony)
    if mode == "sss":
        await apart.approve(asked.handle, QUORUM)
    await wait_for_gates([gate])
    apart.kill("strongroom")
    apart.start_again("strongroom")
    began = time.monotonic()
    gate.open()
    await finished(apart, asked, made)
    assert time.monotonic() - began < 20
    history = await clean(asked.handle)
    assert scheduled(history)[names.OPEN_SESSION] <= 3
    events = [event.type for event in apart.ledger.events(ceremony=ceremony)]
    assert "session-lost" in events


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_strongroom_that_is_killed_while_its_session_works_is_replaced(apart: GatedHouse, when: str) -> None:
    name = apart.fresh_name()
    made = await apart.init(name)
    ceremony = names.new_ceremony_id(name, "unseal")
    gate = apart.gate(ceremony, names.RELEASE, when)
    asked = await apart.ask(name, made, ceremony=ceremony)
    await apart.approve(asked.handle, QUORUM)
    await wait_for_gates([gate])
    apart.kill("strongroom")
    gate.open()
    apart.start_again("strongroom")
    began = time.monotonic()
    await finished(apart, asked, made)
    assert time.monotonic() - began < 20, "its heartbeat tells, not the call's time-out of 30 seconds"
    await clean(asked.handle)
    released = [e.type for e in apart.ledger.events(ceremony=ceremony) if e.type == "masterkey-delivered"]
    assert len(released) == 1


@pytest.mark.slow
async def test_a_frozen_strongroom_is_noticed_long_before_its_call_times_out(apart: GatedHouse) -> None:
    name = apart.fresh_name()
    made = await apart.init(name)
    ceremony = names.new_ceremony_id(name, "unseal")
    gate = apart.gate(ceremony, names.UNWRAP_DATA_KEY)
    asked = await apart.ask(name, made, ceremony=ceremony)
    await apart.approve(asked.handle, QUORUM)
    await wait_for_gates([gate])
    apart.worker("strongroom").signal_group(signal.SIGSTOP)
    gate.open()
    try:

        async def noticed() -> bool:
            return (await apart.status(asked.handle)).phase == "waiting"

        began = time.monotonic()
        await eventually(noticed)
        assert time.monotonic() - began < 10, "the hold's heartbeat tells, not the call's 30 seconds"
    finally:
        apart.worker("strongroom").signal_group(signal.SIGCONT)
    await finished(apart, asked, made)
    await clean(asked.handle)


async def at_once(house: House, number: int, mode: str) -> tuple[float, list[float]]:
    """Run so many unseals at once; how long all took, and keystore calls of each."""
    name = house.fresh_name()
    made = await house.init(name, mode)
    began = time.monotonic()
    asked = await asyncio.gather(*(house.ask(name, made) for _ in range(number)))
    if mode == "sss":
        await asyncio.gather(*(house.approve(one.handle, QUORUM) for one in asked))
    results = await asyncio.gather(*(ended(one.handle) for one in asked))
    took = time.monotonic() - began
    calls = []
    for one, answer in zip(asked, results, strict=True):
        assert len(house.receive(one, UnsealResult.model_validate(answer), made)) == 32
        calls.append(scheduled(await clean(one.handle, killed=True))[names.UNWRAP_DATA_KEY])
    print(f"{number} {mode} unseals at once: {took:.1f} s, {sum(calls) / number:.2f} keystore calls each")
    return took, [float(call) for call in calls]


@pytest.mark.slow
async def test_sixty_unseals_at_once_all_succeed(house: House) -> None:
    _, calls = await at_once(house, 60, "seal")
    assert sum(calls) / 60 < 2.5, "one is needed; the hedge may ask others on a busy machine"


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_three_hundred_unseals_at_once_all_succeed(house: House) -> None:
    _, calls = await at_once(house, 300, "seal")
    assert sum(calls) / 300 <= 3


@pytest.mark.slow
@pytest.mark.timeout(170)
async def test_more_sessions_than_a_worker_has_slots_do_not_block_each_other(apart: GatedHouse) -> None:
    # A session's `hold` lasts as long as it does: were slots to run out, nobody could use a session any more.
    name = apart.fresh_name()
    made = await apart.init(name, "seal", count=1)
    apart.worker("keystore-bao-1").signal_group(signal.SIGSTOP)
    strongroom = psutil.Process(apart.worker("strongroom").process.pid)
    number = 80
    try:
        asked = await asyncio.gather(*(apart.ask(name, made) for _ in range(number)))

        async def all_open() -> bool:
            return len(strongroom.children(recursive=True)) >= number

        await eventually(all_open, 24)
    finally:
        apart.worker("keystore-bao-1").signal_group(signal.SIGCONT)
    for one in asked:
        await finished(apart, one, made)
