"""One attacker, and two MasterKeys that many attacks are tried on: one `sss`, one `seal`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from temporalio.client import Client

from tests.attacker.flows import Ceremonies
from tests.attacker.orchestrator import Hostile, hostile
from tests.attacker.people import People
from tests.conftest import Installation
from tests.driving.house import House
from workflows.contracts.messages.protection import StoredProtection


@pytest.fixture(scope="session")
def people(installation: Installation) -> People:
    """The custodians and the recipient."""
    return People.of(installation.stack)


@pytest.fixture(scope="session")
def ceremonies(house: House, people: People) -> Ceremonies:
    """Honest ceremonies of the installation."""
    return Ceremonies(house, people)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def attacker(client: Client) -> AsyncIterator[Hostile]:
    """Whoever controls Temporal."""
    async with hostile(client) as found:
        yield found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sss(ceremonies: Ceremonies, installation: Installation) -> StoredProtection:
    """A MasterKey that three of five release; shard N lies in bao-N, its custodians in alphabetical order."""
    return await ceremonies.init(installation.fresh_name(), "sss", 3, [f"bao-{n}" for n in range(1, 6)])


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def seal(ceremonies: Ceremonies, installation: Installation) -> StoredProtection:
    """A MasterKey that either of two keystores gives back."""
    return await ceremonies.init(installation.fresh_name(), "seal", 1, ["bao-1", "bao-2"])
