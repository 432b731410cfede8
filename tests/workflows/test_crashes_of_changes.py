"""Crashes of a reshard and a recovery: at every instant one protection is in force, and the MasterKey opens from it."""

from __future__ import annotations

import asyncio

import pytest

from deploy.emulators.fault_proxy import Reset, Rule
from tests.driving.reading import clean, failure
from tests.workflows.crashing import Action, Crashes
from tests.workflows.gated import VAULT, GatedHouse
from workflows.contracts import names

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CHANGES: tuple[Action, ...] = ("reshard", "recover")


def test_the_boundaries_are_those_of_the_workflows(crashes: Crashes) -> None:
    for action in CHANGES:
        steps = [(one.phase, one.activity) for one in crashes.at(action)]
        for step in (
            ("planning", names.BEGIN_CEREMONY),
            ("quorum", names.RECORD_PLAN),
            ("reconstructing", names.UNWRAP_DATA_KEY),
            ("reconstructing", names.GENERATE_DATA_KEY),
            ("reconstructing", names.RESHARD),
            ("reconstructing", names.STAGE_PROTECTION),
            ("proving", names.CHECK_DATA_KEY),
            ("committing", names.COMMIT_PROTECTION),
            ("committing", names.NOTE_COMMIT),
            ("done", names.CLOSE_CEREMONY),
        ):
            assert step in steps
        assert {one.role for one in crashes.at(action)} == {"orchestrator", "strongroom", "keystores"}
    assert ("assessing", names.CHECK_DATA_KEY) in [(one.phase, one.activity) for one in crashes.at("recover")]


@pytest.mark.parametrize("action", CHANGES)
@pytest.mark.parametrize("roles", [("orchestrator",), ("strongroom", "keystores")], ids="+".join)
async def test_killing_the_server_at_any_boundary_loses_nothing(
    gated: GatedHouse, crashes: Crashes, action: Action, roles: tuple[str, ...]
) -> None:
    async with crashes.led(action, crashes.at(action, *roles)):
        gated.kill_temporal()
        crashes.check_held()
        gated.start_temporal_again()
        crashes.open()
        await crashes.finish()


@pytest.mark.parametrize("action", CHANGES)
@pytest.mark.parametrize("role", ["orchestrator", "strongroom", "keystores"])
async def test_killing_a_worker_at_any_boundary_of_its_own_loses_nothing(
    gated: GatedHouse, crashes: Crashes, action: Action, role: str
) -> None:
    async with crashes.led(action, crashes.at(action, role)):
        processes = gated.processes(role)
        gated.kill(*processes)
        crashes.check_held()
        crashes.open()
        gated.start_again(*processes)
        await crashes.finish()


@pytest.mark.parametrize("action", CHANGES)
async def test_keystore_services_that_are_gone_for_a_while_at_any_of_their_boundaries_lose_nothing(
    gated: GatedHouse, crashes: Crashes, action: Action
) -> None:
    async with crashes.led(action, crashes.at(action, "keystores")):
        with gated.services_gone():
            crashes.check_held()
            crashes.open()
            await asyncio.sleep(3)
        # Nobody is asked to approve a plan over keystores that do not say which key they use.
        await crashes.finish(refused_in=["planning"])


@pytest.mark.parametrize("action", CHANGES)
async def test_on_both_sides_of_the_commit_the_masterkey_is_really_released_while_a_keystore_worker_is_dead(
    gated: GatedHouse, crashes: Crashes, action: Action
) -> None:
    # Where nothing that a release needs is dead, it is proven, not concluded, that it still works.
    near = [one for one in crashes.at(action) if one.phase in ("proving", "committing", "done")]
    async with crashes.led(action, near):
        dead = crashes.spare(crashes.cases[0])
        gated.kill(f"keystore-{dead}")
        crashes.check_held()
        for case in crashes.cases:
            await crashes.unseal(case, crashes.in_force(case))
        assert {case.boundary.committed for case in crashes.cases} == {True, False}
        crashes.open()
        gated.start_again(f"keystore-{dead}")
        await crashes.finish()


async def test_a_keystore_service_that_is_killed_comes_back_with_its_keys_and_opens_the_masterkey(
    gated: GatedHouse, crashes: Crashes
) -> None:
    into_vault = [one for one in crashes.at("reshard", "keystores") if one.late]
    await crashes.alike(len(into_vault))
    await crashes.lead("reshard", into_vault)
    gated.kill_key_vault()
    crashes.check_held()
    crashes.open()
    await asyncio.sleep(3)
    gated.start_key_vault_again()
    cases = list(crashes.cases)
    await crashes.finish(unsealed=1)
    # With one other keystore left, nothing opens without the vault.
    case = next(case for case in cases if crashes.spare(case) != VAULT)
    gone = next(one.keystore for one in gated.active(case.name).shards if one.keystore != VAULT)
    gated.proxies[gated.keystores.index(gone)].rule = Reset()
    try:
        await crashes.unseal(case)
    finally:
        gated.proxies[gated.keystores.index(gone)].rule = Rule()


@pytest.mark.parametrize("action", CHANGES)
async def test_cancelling_before_the_commit_leaves_the_old_protection_and_nothing_staged(
    gated: GatedHouse, crashes: Crashes, action: Action
) -> None:
    stops = [one for one in crashes.at(action) if one.may_be_cancelled and one.activity != names.BEGIN_CEREMONY]
    async with crashes.led(action, stops):
        for case in crashes.cases:
            await case.handle.cancel()
        crashes.open()
        for case in crashes.cases:
            await failure(case.handle)
            await clean(case.handle)
            assert gated.ledger.ceremony(case.ceremony).outcome == "refused", case
            assert case.before is not None
            assert gated.active(case.name).digest == case.before.digest, case
        await crashes.collect()
        for case in crashes.cases:
            assert "staged" not in {one.status for one in gated.ledger.protections(case.name)}, case
        crashes.cases.clear()
