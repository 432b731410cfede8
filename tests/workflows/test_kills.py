"""Kills: real processes are ended with SIGKILL at every boundary of a reshard: each role's, the server, a keystore's.

A reshard opens one protection and makes another, so it has every kind of step. That the other ceremonies take a crash
at any of their boundaries as well: `test_crashes.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from deploy.emulators.fault_proxy import Reset, Rule
from tests.driving.site import SharedTemporal
from tests.workflows.crashing import Crashes
from tests.workflows.gated import VAULT, GatedHouse

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def crashes(apart: GatedHouse, learned: Crashes) -> Iterator[Crashes]:
    """Ceremonies whose workers are processes."""
    found = Crashes(apart, learned.boundaries)
    yield found
    found.open()


@pytest_asyncio.fixture(loop_scope="session")
async def on_a_server_of_its_own(learned: Crashes, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Crashes]:
    """Ceremonies on a Temporal server that nobody else uses."""
    server = SharedTemporal(tmp_path_factory.mktemp("own-temporal"))
    house = GatedHouse.start(tmp_path_factory.mktemp("own"), server)
    house.client = await house.stack.connect()
    found = Crashes(house, learned.boundaries)
    yield found
    found.open()
    house.stop()
    server.stop()


@pytest.mark.parametrize("role", ["orchestrator", "strongroom", "keystores"])
async def test_killing_a_worker_at_any_boundary_of_its_own_loses_nothing(
    apart: GatedHouse, crashes: Crashes, role: str
) -> None:
    async with crashes.led("reshard", crashes.at("reshard", role)):
        process = "keystore-bao-1" if role == "keystores" else role
        apart.kill(process)
        crashes.check_held()
        crashes.open()
        apart.start_again(process)
        await crashes.finish()


async def test_killing_the_server_at_any_boundary_loses_nothing(on_a_server_of_its_own: Crashes) -> None:
    crashes = on_a_server_of_its_own
    async with crashes.led("reshard", crashes.at("reshard")):
        crashes.gated.kill_temporal()
        crashes.check_held()
        crashes.gated.start_temporal_again()
        crashes.open()
        await crashes.finish()


async def test_a_keystore_service_that_is_killed_comes_back_with_its_keys_and_opens_the_masterkey(
    apart: GatedHouse, crashes: Crashes
) -> None:
    into_vault = [one for one in crashes.at("reshard", "keystores") if one.late]
    await crashes.alike(len(into_vault))
    await crashes.lead("reshard", into_vault)
    apart.kill_key_vault()
    crashes.check_held()
    crashes.open()
    await asyncio.sleep(3)
    apart.start_key_vault_again()
    cases = list(crashes.cases)
    await crashes.finish(unsealed=1)
    # With one other keystore left, nothing opens without the vault.
    case = next(case for case in cases if VAULT in [one.keystore for one in apart.active(case.name).shards])
    gone = next(one.keystore for one in apart.active(case.name).shards if one.keystore != VAULT)
    apart.proxies[apart.keystores.index(gone)].rule = Reset()
    try:
        await crashes.unseal(case)
    finally:
        apart.proxies[apart.keystores.index(gone)].rule = Rule()
