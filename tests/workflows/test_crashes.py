"""Crashes of an init and an unseal: whatever is killed, whenever, it completes, and its record is written once."""

from __future__ import annotations

import asyncio

import pytest

from tests.driving.reading import clean, failure
from tests.workflows.crashing import Crashes
from tests.workflows.gated import GatedHouse
from workflows.contracts import names


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("roles", [("orchestrator",), ("strongroom", "keystores")], ids="+".join)
async def test_killing_the_server_during_any_activity_of_an_init_loses_nothing(
    gated: GatedHouse, crashes: Crashes, roles: tuple[str, ...]
) -> None:
    await crashes.lead("init", crashes.at("init", *roles))
    crashes.check_held()
    gated.kill_temporal()
    gated.start_temporal_again()
    crashes.open()
    await crashes.finish()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_killing_the_server_during_any_activity_of_an_unseal_loses_nothing(
    gated: GatedHouse, crashes: Crashes
) -> None:
    await crashes.lead("unseal", crashes.at("unseal"))
    gated.kill_temporal()
    gated.start_temporal_again()
    crashes.open()
    await crashes.finish()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("role", ["orchestrator", "strongroom", "keystores"])
async def test_killing_a_worker_during_any_of_its_own_activities_loses_nothing(
    gated: GatedHouse, crashes: Crashes, role: str
) -> None:
    await crashes.lead("init", crashes.at("init", role))
    await crashes.lead("unseal", crashes.at("unseal", role))
    processes = gated.processes(role)
    gated.kill(*processes)
    crashes.check_held()
    crashes.open()
    gated.start_again(*processes)
    await crashes.finish()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["orchestrator", "strongroom", "keystore-bao-1"])
async def test_killing_a_worker_while_others_are_at_work_loses_nothing(
    gated: GatedHouse, crashes: Crashes, victim: str
) -> None:
    mine = "keystores" if victim.startswith("keystore") else victim
    others = [one for one in crashes.at("init") if one.role != mine and one.when == "before"]
    await crashes.lead("init", others)
    gated.kill(victim)
    crashes.open()
    gated.start_again(victim)
    await crashes.finish()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_keystore_service_that_is_gone_for_a_while_loses_nothing(gated: GatedHouse, crashes: Crashes) -> None:
    await crashes.lead("init", crashes.at("init", "keystores"))
    await crashes.lead("unseal", crashes.at("unseal", "keystores"))
    with gated.services_gone():
        crashes.open()
        await asyncio.sleep(3)
    # Nobody is asked to approve a plan over keystores that do not say which key they use.
    await crashes.finish(refused_in=["planning"])


async def test_cancelling_at_any_activity_leaves_only_a_record(gated: GatedHouse, crashes: Crashes) -> None:
    await crashes.lead("init", [one for one in crashes.at("init") if one.may_be_cancelled])
    wrong = []
    for case in crashes.cases:
        await case.handle.cancel()
        error = await failure(case.handle)
        case.gate.open()
        record = gated.ledger.ceremony(case.ceremony) if case.boundary.activity != names.BEGIN_CEREMONY else None
        said = (type(error).__name__, record.outcome if record else "", record.detail if record else "")
        if said not in (
            ("CeremonyEnded", "refused", "cancelled by an operator"),
            ("CeremonyEnded", "", ""),
        ):
            wrong.append((str(case), said, error.message))
        assert [p.status for p in gated.ledger.protections(case.name)] == []
        await clean(case.handle)
    crashes.cases.clear()
    assert wrong == []


@pytest.mark.parametrize(
    "activity",
    [
        names.COMMIT_PROTECTION,
        pytest.param(names.NOTE_COMMIT, marks=pytest.mark.slow),
        pytest.param(names.CLOSE_CEREMONY, marks=pytest.mark.slow),
    ],
)
async def test_a_cancellation_after_the_commit_comes_too_late(crashes: Crashes, activity: str) -> None:
    await crashes.lead("init", [one for one in crashes.at("init") if (one.activity, one.when) == (activity, "after")])
    for case in crashes.cases:
        await case.handle.cancel()
        await asyncio.sleep(0.2)
    crashes.open()
    await crashes.finish()


@pytest.mark.slow
async def test_a_cancellation_after_the_release_comes_too_late(crashes: Crashes) -> None:
    last = [one for one in crashes.at("unseal") if one.activity == names.CLOSE_CEREMONY and one.when == "before"]
    await crashes.lead("unseal", last)
    for case in crashes.cases:
        await case.handle.cancel()
        await asyncio.sleep(0.2)
    crashes.open()
    await crashes.finish()
