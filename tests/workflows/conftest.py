"""Fixtures: the shared installation as a house, and a house that tests may break."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from tests.conftest import Installation
from tests.workflows.crashing import Crashes
from tests.workflows.doubles import Clock
from tests.workflows.gated import GatedHouse
from tests.workflows.people import House
from workflows.contracts import names


@pytest.fixture(scope="session")
def house(installation: Installation, client: Client) -> House:
    """The installation that all tests share: nothing in it may be broken."""
    return House.of(installation.stack, client, installation.fresh_name)


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def gated(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatedHouse]:
    """An installation of four keystores whose processes may be killed, and stopped at every activity."""
    found = GatedHouse.start(tmp_path_factory.mktemp("gated"))
    assert found.stack.temporal is not None
    found.client = await Client.connect(found.stack.temporal.endpoint, data_converter=pydantic_data_converter)
    yield found
    found.stop()


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def learned(gated: GatedHouse) -> Crashes:
    """The boundaries of all ceremonies, from their own histories."""
    found = Crashes(gated)
    await found.learn()
    return found


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
