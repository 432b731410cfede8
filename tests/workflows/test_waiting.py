"""Waiting: deadlines of days, approvals that expire, clouds that are away, on the time-skipping test server."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory

from tests.driving.reading import Handle, clean, failure
from tests.workflows.doubles import Clock, Doubles, stop_here
from tests.world import KEYSTORES, NAMES, World
from workflows.contracts.messages.requests import ChangedPlan, ShardRequest
from workflows.contracts.messages.results import ReshardResult, UnsealResult
from workflows.contracts.trust.errors import MasterKeyError, PlanInvalid, SessionLost
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.service_errors import (
    CeremonyEnded,
    DeadlinePassed,
    KeyNotFound,
    KeystoreAccessDenied,
    KeystoreUnavailable,
    QuorumUnreachable,
)
from workflows.steps import backoff

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def doubles(tmp_path: Path) -> Doubles:
    return Doubles(World.make(tmp_path))


async def test_a_quorum_may_take_days(clock: Clock, doubles: Doubles) -> None:
    doubles.open = stop_here
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.init_request())
        plan = await clock.plan(handle)
        for name in NAMES[:3]:
            await clock.sleep(23 * HOUR)
            await handle.signal("approve", doubles.decision(name, plan, await clock.now(), 3 * DAY))
        error = await failure(handle)
    assert isinstance(error, PlanInvalid)
    assert "the quorum stood" in error.message
    await clean(handle)


async def test_the_default_deadline_is_72_hours(clock: Clock, doubles: Doubles) -> None:
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.init_request())
        plan = await clock.plan(handle)
        error = await failure(handle)
    assert isinstance(error, DeadlinePassed)
    assert plan.expires - plan.created == timedelta(hours=72)
    assert [closed.outcome for closed in doubles.closed] == ["expired"]
    events = (await clean(handle)).events
    took = events[-1].event_time.ToDatetime() - events[0].event_time.ToDatetime()
    assert abs(took - timedelta(hours=72)) < timedelta(minutes=1)


async def test_a_deadline_of_thirty_days_costs_a_handful_of_events(clock: Clock, doubles: Doubles) -> None:
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.init_request(quorum_timeout_seconds=30 * 24 * 3600))
        plan = await clock.plan(handle)
        for name in NAMES[:2]:
            await handle.signal("approve", doubles.decision(name, plan, await clock.now(), 9 * DAY))
        error = await failure(handle)
    assert isinstance(error, DeadlinePassed)
    history = await clean(handle)
    assert len(history.events) < 100


async def test_an_approval_that_expired_on_the_second_day_must_be_given_again(clock: Clock, doubles: Doubles) -> None:
    doubles.open = stop_here
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.init_request())
        plan = await clock.plan(handle)
        await handle.signal("approve", doubles.decision("alice", plan, await clock.now(), 25 * HOUR))
        await clock.sleep(24 * HOUR)
        await handle.signal("approve", doubles.decision("bob", plan, await clock.now(), DAY))
        assert (await clock.status(handle)).needed == "1 more of the governance quorum of 3"
        await clock.sleep(2 * HOUR)
        assert (await clock.status(handle)).needed == "2 more of the governance quorum of 3"
        await handle.signal("approve", doubles.decision("carol", plan, await clock.now(), DAY))
        status = await clock.status(handle)
        assert (status.phase, status.missing) == ("quorum", ("alice", "dave", "erin"))
        await handle.signal("approve", doubles.decision("alice", plan, await clock.now(), DAY))
        assert "the quorum stood" in (await failure(handle)).message
    await clean(handle)


async def test_three_refusals_on_the_third_day_end_it(clock: Clock, doubles: Doubles) -> None:
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.init_request())
        plan = await clock.plan(handle)
        await clock.sleep(50 * HOUR)
        for name in NAMES[2:]:
            await handle.signal("approve", doubles.decision(name, plan, await clock.now(), DAY, "reject"))
        error = await failure(handle)
    assert isinstance(error, CeremonyEnded)
    assert "carol, dave, erin" in error.message
    assert [closed.outcome for closed in doubles.closed] == ["refused"]


async def approved_unseal(clock: Clock, doubles: Doubles, lifetime: timedelta) -> Handle:
    """An sss unseal with all five approvals."""
    now = await clock.now()
    handle = await clock.start(
        doubles.unseal_request(now, lifetime, quorum_timeout_seconds=int(lifetime.total_seconds()))
    )
    plan = await clock.plan(handle)
    for name in NAMES:
        await handle.signal("approve", doubles.decision(name, plan, await clock.now(), lifetime))
    return handle


@pytest.mark.slow
async def test_an_unseal_waits_for_clouds_that_are_away_for_hours(clock: Clock, doubles: Doubles) -> None:
    back = (await clock.now()) + 3 * HOUR
    away = {"ks-1", "ks-2", "ks-3"}
    current = back - 3 * HOUR

    def unwrap(keystore: str) -> KeystoreUnavailable | None:
        gone = keystore in away
        return KeystoreUnavailable(f"{keystore} is away", subject=keystore) if gone else None

    doubles.unwrap = unwrap
    async with doubles.working(clock.environment):
        handle = await approved_unseal(clock, doubles, 3 * DAY)
        await clock.sleep(back - current)
        status = await clock.status(handle)
        assert status.phase in ("waiting", "releasing")
        assert {k.keystore for k in status.keystores if k.state == "failed"} == away
        away.clear()
        result = UnsealResult.model_validate(await handle.result())
    assert len(result.served_by) == 3
    await clean(handle)


@pytest.fixture
def twentieth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A history may be a twentieth as long as Temporal allows.

    Temporal ends a workflow for good at 51,200 events or 50 MiB. That the budget lasts for a month at its real size is
    arithmetic: `test_backoff.py`.
    """
    monkeypatch.setattr(backoff, "_MOST_EVENTS", 40_000 // 20)
    monkeypatch.setattr(backoff, "_MOST_BYTES", 40 * 2**20 // 20)


def stays_small(history: WorkflowHistory) -> bool:
    """Whether a history stayed below the limits that are a twentieth of Temporal's."""
    return len(history.events) < 45_000 // 20 and sum(event.ByteSize() for event in history.events) < 45 * 2**20 // 20


@pytest.mark.usefixtures("twentieth")
async def test_an_unseal_may_wait_as_long_as_its_deadline_without_outgrowing_its_history(
    clock: Clock, doubles: Doubles
) -> None:
    doubles.unwrap = lambda keystore: KeystoreUnavailable(f"{keystore} is away", subject=keystore)
    async with doubles.working(clock.environment):
        handle = await approved_unseal(clock, doubles, 3 * DAY)
        error = await failure(handle)
        history = await clean(handle)
    assert isinstance(error, (QuorumUnreachable, DeadlinePassed))
    assert stays_small(history)
    took = history.events[-1].event_time.ToDatetime() - history.events[0].event_time.ToDatetime()
    assert abs(took - 3 * DAY) < HOUR


@pytest.mark.slow
async def test_an_unseal_ends_at_its_deadline_and_says_which_clouds_were_away(clock: Clock, doubles: Doubles) -> None:
    doubles.unwrap = lambda keystore: KeystoreUnavailable(f"{keystore} is away", subject=keystore)
    async with doubles.working(clock.environment):
        handle = await approved_unseal(clock, doubles, HOUR)
        error = await failure(handle)
    assert isinstance(error, (QuorumUnreachable, DeadlinePassed))
    assert doubles.closed[-1].outcome in ("failed", "expired")
    assert "keystore-failed" in doubles.events
    await clean(handle)


@pytest.mark.slow
async def test_an_unseal_outlives_a_strongroom_that_is_away_for_hours(clock: Clock, doubles: Doubles) -> None:
    gone = [True]
    doubles.open = lambda: SessionLost("no strongroom") if gone else None
    async with doubles.working(clock.environment):
        handle = await approved_unseal(clock, doubles, DAY)
        await clock.sleep(2 * HOUR)
        assert (await clock.status(handle)).phase in ("waiting", "releasing")
        gone.clear()
        result = UnsealResult.model_validate(await handle.result())
    assert len(result.served_by) == 3
    assert doubles.events.count("session-lost") > 1
    assert len(doubles.calls) == 3, "a keystore is asked only once there is a session to answer to"
    await clean(handle)


@pytest.mark.slow
async def test_approvals_that_expire_while_clouds_are_away_are_asked_for_again(clock: Clock, doubles: Doubles) -> None:
    away = [True]
    doubles.unwrap = lambda keystore: KeystoreUnavailable("away", subject=keystore) if away else None
    async with doubles.working(clock.environment):
        now = await clock.now()
        handle = await clock.start(doubles.unseal_request(now, DAY, quorum_timeout_seconds=24 * 3600))
        plan = await clock.plan(handle)
        for name in NAMES[:3]:
            await handle.signal("approve", doubles.decision(name, plan, await clock.now(), HOUR))
        await clock.sleep(2 * HOUR)
        status = await clock.status(handle)
        assert (status.phase, status.missing) == ("waiting", NAMES)
        asked = len(doubles.calls)
        await clock.sleep(2 * HOUR)
        assert len(doubles.calls) == asked, "nothing is asked of a keystore without a quorum"
        away.clear()
        for name in NAMES[1:4]:
            await handle.signal("approve", doubles.decision(name, plan, await clock.now(), HOUR))
        result = UnsealResult.model_validate(await handle.result())
    assert result.served_by == ("ks-2", "ks-3", "ks-4")
    await clean(handle)


# --- recoveries ------------------------------------------------------------------------------------------------

FORTNIGHT = 14 * DAY


def lossy(doubles: Doubles, gone: str, away: set[str]) -> None:
    """The key of one keystore is gone for good; some are away until they are taken out of the set."""

    def ask(keystore: str) -> MasterKeyError | None:
        if keystore == gone:
            return KeyNotFound(f"{keystore} has no such key", subject=keystore)
        return KeystoreUnavailable(f"{keystore} is away", subject=keystore) if keystore in away else None

    doubles.ask = doubles.unwrap = ask


async def approved_recovery(clock: Clock, doubles: Doubles, who: Sequence[str], **more: Any) -> Handle:
    """A recovery with these approvals, given on different days."""
    handle = await clock.start(doubles.recover_request(**more))
    plan = await clock.plan(handle)
    for name in who:
        await clock.sleep(20 * HOUR)
        await handle.signal("approve", doubles.decision(name, plan, await clock.now(), FORTNIGHT))
    return handle


@pytest.mark.slow
async def test_a_recovery_waits_for_days_for_its_quorum_and_its_keystores_and_then_completes(
    clock: Clock, doubles: Doubles
) -> None:
    doubles.count = 4
    away = {"ks-2", "ks-3"}
    lossy(doubles, "ks-1", away)
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.recover_request())
        plan = await clock.plan(handle)
        status = await clock.status(handle)
        missing = "ks-1 is gone, ks-2 is unreachable, ks-3 is unreachable"
        assert status.detail == f"primary: 1 of 4 shards answer, 3 are needed, {missing}"
        assert {one.keystore: one.state for one in status.health} == {
            "ks-1": "gone",
            "ks-2": "unreachable",
            "ks-3": "unreachable",
            "ks-4": "healthy",
            "ks-5": "healthy",
        }
        assert plan.target is not None
        # What is away stays where it is, under the key that it had.
        assert [one.keystore for one in plan.target.shards] == ["ks-5", "ks-2", "ks-3", "ks-4"]
        for name in ("alice", "bob", "carol"):
            await handle.signal("approve", doubles.decision(name, plan, await clock.now(), FORTNIGHT))
            await clock.sleep(20 * HOUR)
        # Alice counts for the governance quorum, but her shard is gone: dave's is the third.
        assert (await clock.status(handle)).needed == "custodians of 1 more shards of 3"
        assert doubles.sessions == []
        await handle.signal("approve", doubles.decision("dave", plan, await clock.now(), FORTNIGHT))
        for _ in range(6):
            await clock.sleep(HOUR)
        status = await clock.reach(handle, "waiting")
        assert {one.keystore for one in status.keystores if one.error == "KeystoreUnavailable"} == away
        asked = len(doubles.calls)
        away.clear()
        result = ReshardResult.model_validate(await handle.result())
    assert asked > 50
    assert (result.opened_by, result.not_told) == (("ks-2", "ks-3", "ks-4"), ("ks-1",))
    assert [closed.outcome for closed in doubles.closed] == ["done"]
    assert len(doubles.committed) == 1
    await clean(handle)


@pytest.mark.slow
async def test_while_nothing_is_known_to_be_lost_a_recovery_looks_again_and_proposes_once_it_is(
    clock: Clock, doubles: Doubles
) -> None:
    doubles.count = 4
    away = set(KEYSTORES)
    lossy(doubles, "", away)
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.recover_request())
        for _ in range(2):
            await clock.sleep(12 * HOUR)
        status = await clock.reach(handle, "waiting")
        assert status.detail.startswith("primary: 0 of 4 shards answer, 3 are needed, ks-1 is unreachable, ks-2 is un")
        assert status.plan is None
        lossy(doubles, "ks-4", away)
        away.clear()
        await clock.sleep(HOUR)
        plan = await clock.plan(handle)
        assert plan.target is not None
        assert [one.keystore for one in plan.target.shards] == ["ks-1", "ks-2", "ks-3", "ks-5"]
        for name in ("alice", "bob", "carol"):
            await handle.signal("approve", doubles.decision(name, plan, await clock.now(), FORTNIGHT))
        await handle.result()
    # What did not change was not written down again.
    assert doubles.events.count("keystore-assessed") == 10
    assert len((await clean(handle)).events) < 3500


@pytest.mark.slow
async def test_keystores_that_stay_away_for_a_week_end_a_recovery_saying_which(clock: Clock, doubles: Doubles) -> None:
    doubles.count = 4
    lossy(doubles, "", set(KEYSTORES[1:]))
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.recover_request())
        error = await failure(handle)
    assert isinstance(error, QuorumUnreachable)
    missing = "ks-2 is unreachable, ks-3 is unreachable, ks-4 is unreachable"
    assert error.message == f"the deadline passed; primary: 1 of 4 shards answer, 3 are needed, {missing}"
    history = await clean(handle)
    took = history.events[-1].event_time.ToDatetime() - history.events[0].event_time.ToDatetime()
    assert abs(took - 7 * DAY) < timedelta(hours=1)
    assert len(history.events) < 20_000


async def test_a_recovery_that_nobody_decides_ends_saying_who_did_not(clock: Clock, doubles: Doubles) -> None:
    doubles.count = 4
    lossy(doubles, "ks-1", set())
    async with doubles.working(clock.environment):
        handle = await approved_recovery(clock, doubles, ("alice", "bob"))
        error = await failure(handle)
    assert isinstance(error, DeadlinePassed)
    assert "1 more of the governance quorum of 3 and custodians of 2 more shards of 3" in error.message
    assert "no decision in force of: carol, dave, erin" in error.message
    assert [closed.outcome for closed in doubles.closed] == ["expired"]
    history = await clean(handle)
    took = history.events[-1].event_time.ToDatetime() - history.events[0].event_time.ToDatetime()
    assert abs(took - 7 * DAY) < timedelta(minutes=1)
    assert len(history.events) < 150


@pytest.mark.slow
@pytest.mark.usefixtures("twentieth")
async def test_a_recovery_may_wait_for_seven_days_without_outgrowing_its_history_and_ends_saying_what_is_missing(
    clock: Clock, doubles: Doubles
) -> None:
    doubles.count = 4
    lossy(doubles, "ks-1", {"ks-2", "ks-3"})
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.recover_request())
        plan = await clock.plan(handle)
        for name in NAMES:
            await handle.signal("approve", doubles.decision(name, plan, await clock.now(), FORTNIGHT))
        error = await failure(handle)
        history = await clean(handle)
    assert isinstance(error, QuorumUnreachable)
    for name in ("ks-2", "ks-3"):
        assert f"{name}: KeystoreUnavailable ({name} is away; wait or restore the network path" in error.message
    assert "ks-4" not in error.message
    took = history.events[-1].event_time.ToDatetime() - history.events[0].event_time.ToDatetime()
    assert abs(took - 7 * DAY) < timedelta(hours=2)
    assert stays_small(history)
    assert doubles.committed == []


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_recovery_into_a_keystore_that_cannot_prove_its_part_does_not_outgrow_its_history_either(
    clock: Clock, doubles: Doubles
) -> None:
    # Opening and protecting work at once, so nothing but the pause between the attempts slows it down.
    doubles.count = 4
    lossy(doubles, "ks-1", set())
    before = doubles.ask

    def ask(keystore: str) -> MasterKeyError | None:
        return KeystoreAccessDenied("may not decrypt", subject=keystore) if keystore == "ks-5" else before(keystore)

    doubles.prove = ask
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.recover_request(quorum_timeout_seconds=3 * 24 * 3600))
        plan = await clock.plan(handle)
        for name in NAMES:
            await handle.signal("approve", doubles.decision(name, plan, await clock.now(), FORTNIGHT))
        for _ in range(6):
            await clock.sleep(HOUR / 6)
        sessions, status = len(doubles.sessions), await clock.status(handle)
        assert status.phase in ("waiting", "reconstructing", "proving")
        assert "may not decrypt" in status.detail
        assert "or choose another plan: `masterkey recover eu10 --ceremony" in status.detail
        assert 20 < sessions < 80
        doubles.prove = lambda keystore: None
        result = ReshardResult.model_validate(await handle.result())
    assert result.attempt == len(doubles.sessions)
    await clean(handle)


async def test_a_recovery_waits_for_the_custodian_of_an_offline_keystore_and_says_so(
    clock: Clock, tmp_path: Path
) -> None:
    doubles = Doubles(World.make(tmp_path, offline=["ks-4"]), count=4)
    lossy(doubles, "ks-1", set())
    async with doubles.working(clock.environment):
        handle = await approved_recovery(clock, doubles, ("bob", "carol", "dave"))
        status = await clock.reach(handle, "waiting")
        assert status.wanted == ("ks-4",)
        error = await failure(handle)
        assert doubles.sessions == [], "no session is opened as long as it could not be used"
    assert isinstance(error, QuorumUnreachable)
    assert "the deadline passed; ks-4: its custodian did not contribute" in error.message
    assert len((await clean(handle)).events) < 150


async def test_another_plan_ends_the_wait_at_once_and_needs_its_own_approvals(clock: Clock, doubles: Doubles) -> None:
    doubles.count = 4
    away = {"ks-2", "ks-3"}
    lossy(doubles, "ks-1", away)
    async with doubles.working(clock.environment):
        handle = await approved_recovery(clock, doubles, ("bob", "carol", "dave"))
        first = await clock.reach(handle, "waiting")
        wish = ChangedPlan(shards=tuple(ShardRequest(keystore=name) for name in ("ks-5", "ks-4")), threshold=2)
        await handle.execute_update("replan", wish, result_type=str)
        plan = await clock.plan(handle)
        status = await clock.status(handle)
        assert (status.approved_by, status.plan == first.plan) == ((), False)
        assert plan.target is not None
        assert [one.keystore for one in plan.target.shards] == ["ks-5", "ks-4"]
        for name in ("bob", "carol", "dave"):
            await handle.signal("approve", doubles.decision(name, plan, await clock.now(), FORTNIGHT))
        await clock.reach(handle, "waiting")
        away.clear()
        result = ReshardResult.model_validate(await handle.result())
    assert Manifest.parse(result.manifest.document.encode()).count == 2
    assert doubles.events.count("plan-withdrawn") == 1
    await clean(handle)


async def test_a_refusal_that_leaves_too_few_shards_ends_a_recovery_at_once(clock: Clock, doubles: Doubles) -> None:
    doubles.count = 4
    lossy(doubles, "ks-1", set())
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.recover_request())
        plan = await clock.plan(handle)
        await handle.signal("approve", doubles.decision("dave", plan, await clock.now(), FORTNIGHT, "reject"))
        error = await failure(handle)
    assert isinstance(error, CeremonyEnded)
    assert error.message == "refused by dave: the quorum can no longer be reached"
    await clean(handle)
