"""Fixtures: the shared installation as a house, and a house that tests may break."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from tests.driving.site import SharedTemporal
from tests.workflows.crashing import Crashes
from tests.workflows.doubles import Clock
from tests.workflows.gated import GatedHouse
from workflows.contracts import names


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def gated(tmp_path_factory: pytest.TempPathFactory, temporal: SharedTemporal) -> AsyncIterator[GatedHouse]:
    """An installation of four keystores that may be taken away, whose workers stop at every activity."""
    found = GatedHouse.start(tmp_path_factory.mktemp("gated"), temporal)
    found.client = await found.stack.connect()
    yield found
    found.stop()


APART = ("orchestrator", "strongroom", "keystore-bao-1")


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def apart(tmp_path_factory: pytest.TempPathFactory, temporal: SharedTemporal) -> AsyncIterator[GatedHouse]:
    """Another, in which one worker of each role is a process of its own: for what only SIGKILL and SIGSTOP show.

    The worker of the other keystores is in the test's process; the fourth keystore is a Key Vault.
    """
    found = GatedHouse.start(tmp_path_factory.mktemp("apart"), temporal, vault=True, apart=APART)
    found.client = await found.stack.connect()
    yield found
    found.stop()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def learned(tmp_path_factory: pytest.TempPathFactory, temporal: SharedTemporal) -> AsyncIterator[Crashes]:
    """The boundaries of all ceremonies, from their own histories, and a house in which every task is a replay."""
    house = GatedHouse.start(tmp_path_factory.mktemp("crashes"), temporal, cached_workflows=0)
    house.client = await house.stack.connect()
    found = Crashes(house)
    await found.learn()
    yield found
    house.stop()


@pytest.fixture
def crashes(learned: Crashes) -> Iterator[Crashes]:
    """Ceremonies to be led to boundaries; whoever stands at one when the test ends is let go."""
    yield learned
    learned.open()
    learned.cases.clear()


@pytest_asyncio.fixture(loop_scope="session")
async def environment() -> AsyncIterator[WorkflowEnvironment]:
    """A server on which hours pass in milliseconds."""
    server = str(Path(sys.executable).parent / "temporal-test-server")
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=server, data_converter=pydantic_data_converter
    ) as started:
        keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
        request = AddSearchAttributesRequest(search_attributes={key.name: keyword for key in names.SEARCH_ATTRIBUTES})
        await started.client.operator_service.add_search_attributes(request)
        yield started


@pytest.fixture
def clock(environment: WorkflowEnvironment) -> Clock:
    """Its time."""
    return Clock(environment)
