"""Waiting: deadlines of days, approvals that expire, clouds that are away, on the time-skipping test server."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from tests.workflows.doubles import Doubles, stop_here
from tests.workflows.people import Handle, clean, failure
from tests.world import NAMES, World
from workflows.contracts import names
from workflows.contracts.documents import Plan
from workflows.contracts.errors import (
    CeremonyEnded,
    DeadlinePassed,
    KeystoreUnavailable,
    PlanInvalid,
    QuorumUnreachable,
    SessionLost,
)
from workflows.contracts.messages import CeremonyStatus, InitRequest, UnsealRequest, UnsealResult

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest_asyncio.fixture(loop_scope="session")
async def environment() -> AsyncIterator[WorkflowEnvironment]:
    server = str(Path(sys.executable).parent / "temporal-test-server")
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=server, data_converter=pydantic_data_converter
    ) as started:
        keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
        request = AddSearchAttributesRequest(search_attributes={key.name: keyword for key in names.SEARCH_ATTRIBUTES})
        await started.client.operator_service.add_search_attributes(request)
        yield started


@pytest.fixture
def doubles(tmp_path: Path) -> Doubles:
    return Doubles(World.make(tmp_path))


class Clock:
    """The server's time, and a ceremony on it."""

    def __init__(self, environment: WorkflowEnvironment) -> None:
        self.environment = environment

    async def now(self) -> datetime:
        return await self.environment.get_current_time()

    async def start(self, request: InitRequest | UnsealRequest) -> Handle:
        workflow = "InitWorkflow" if isinstance(request, InitRequest) else "UnsealWorkflow"
        return await self.environment.client.start_workflow(
            workflow, request, id=names.workflow_id(request.ceremony), task_queue=names.ORCHESTRATOR_QUEUE
        )

    async def plan(self, handle: Handle) -> Plan:
        while True:
            status = await self.status(handle)
            if status.phase == "quorum" and status.plan is not None:
                return Plan.parse(status.plan.encode())
            await self.environment.sleep(0.01)

    async def status(self, handle: Handle) -> CeremonyStatus:
        found: CeremonyStatus = await handle.query("status", result_type=CeremonyStatus)
        return found


@pytest.fixture
def clock(environment: WorkflowEnvironment) -> Clock:
    return Clock(environment)


async def test_a_quorum_may_take_days(clock: Clock, doubles: Doubles) -> None:
    doubles.open = stop_here
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.init_request())
        plan = await clock.plan(handle)
        for name in NAMES[:3]:
            await clock.environment.sleep(23 * HOUR)
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
        await clock.environment.sleep(24 * HOUR)
        await handle.signal("approve", doubles.decision("bob", plan, await clock.now(), DAY))
        assert (await clock.status(handle)).needed == "1 more of the governance quorum of 3"
        await clock.environment.sleep(2 * HOUR)
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
        await clock.environment.sleep(50 * HOUR)
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
        await clock.environment.sleep(back - current)
        status = await clock.status(handle)
        assert status.phase in ("waiting", "releasing")
        assert {k.keystore for k in status.keystores if k.state == "failed"} == away
        away.clear()
        result = UnsealResult.model_validate(await handle.result())
    assert len(result.served_by) == 3
    await clean(handle)


@pytest.mark.slow
async def test_an_unseal_may_wait_as_long_as_its_deadline_without_outgrowing_its_history(
    clock: Clock, doubles: Doubles
) -> None:
    # Temporal ends a workflow for good at 51,200 events or 50 MiB of history.
    doubles.unwrap = lambda keystore: KeystoreUnavailable(f"{keystore} is away", subject=keystore)
    async with doubles.working(clock.environment):
        handle = await approved_unseal(clock, doubles, 3 * DAY)
        error = await failure(handle)
        history = await clean(handle)
    assert isinstance(error, (QuorumUnreachable, DeadlinePassed))
    size = sum(event.ByteSize() for event in history.events)
    assert len(history.events) < 45_000
    assert size < 45 * 2**20


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
        await clock.environment.sleep(2 * HOUR)
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
        await clock.environment.sleep(2 * HOUR)
        status = await clock.status(handle)
        assert (status.phase, status.missing) == ("waiting", NAMES)
        asked = len(doubles.calls)
        await clock.environment.sleep(2 * HOUR)
        assert len(doubles.calls) == asked, "nothing is asked of a keystore without a quorum"
        away.clear()
        for name in NAMES[1:4]:
            await handle.signal("approve", doubles.decision(name, plan, await clock.now(), HOUR))
        result = UnsealResult.model_validate(await handle.result())
    assert result.served_by == ("ks-2", "ks-3", "ks-4")
    await clean(handle)
