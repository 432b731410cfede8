"""Crashes: whatever is cut off, ended or cancelled, whenever, loses nothing, and its record is written once.

No workflow stays in memory here: every task replays its workflow's whole history, as an orchestrator does that has just
started. That real processes, killed for real, do the same: `test_kills.py`.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.driving.reading import clean, failure
from tests.workflows.crashing import Action, Crashes
from workflows.contracts import names

ACTIONS: tuple[Action, ...] = ("init", "unseal", "reshard", "recover")
CHANGES: tuple[Action, ...] = ("reshard", "recover")


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.timeout(420)
@pytest.mark.parametrize("action", ACTIONS)
async def test_what_is_cut_off_at_any_boundary_is_done_again_and_loses_nothing(
    crashes: Crashes, action: Action
) -> None:
    await crashes.cut(action, crashes.at(action))


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["orchestrator", "strongroom", "keystore-bao-1"])
async def test_ending_a_worker_while_others_are_at_work_loses_nothing(crashes: Crashes, victim: str) -> None:
    mine = "keystores" if victim.startswith("keystore") else victim
    others = [one for one in crashes.at("init") if one.role != mine and one.when == "before"]
    await crashes.lead("init", others)
    crashes.gated.kill(victim)
    crashes.open()
    crashes.gated.start_again(victim)
    await crashes.finish()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("action", ACTIONS)
async def test_keystore_services_that_are_gone_for_a_while_at_any_of_their_boundaries_lose_nothing(
    crashes: Crashes, action: Action
) -> None:
    async with crashes.led(action, crashes.at(action, "keystores")):
        with crashes.gated.services_gone():
            crashes.check_held()
            crashes.open()
            await asyncio.sleep(3)
        # Nobody is asked to approve a plan over keystores that do not say which key they use.
        await crashes.finish(refused_in=["planning"])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("action", CHANGES)
async def test_on_both_sides_of_the_commit_the_masterkey_is_really_released_while_a_keystore_worker_is_dead(
    crashes: Crashes, action: Action
) -> None:
    # Where nothing that a release needs is dead, it is proven, not concluded, that it still works.
    near = [one for one in crashes.at(action) if one.phase in ("proving", "committing", "done")]
    async with crashes.led(action, near):
        dead = crashes.spare(crashes.cases[0])
        crashes.gated.kill(f"keystore-{dead}")
        crashes.check_held()
        for case in crashes.cases:
            await crashes.unseal(case, crashes.in_force(case))
        assert {case.boundary.committed for case in crashes.cases} == {True, False}
        crashes.open()
        crashes.gated.start_again(f"keystore-{dead}")
        await crashes.finish()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("action", CHANGES)
async def test_cancelling_before_the_commit_leaves_the_old_protection_and_nothing_staged(
    crashes: Crashes, action: Action
) -> None:
    stops = [one for one in crashes.at(action) if one.may_be_cancelled and one.activity != names.BEGIN_CEREMONY]
    async with crashes.led(action, stops):
        for case in crashes.cases:
            await case.handle.cancel()
        crashes.open()
        for case in crashes.cases:
            await failure(case.handle)
            await clean(case.handle)
            assert crashes.gated.ledger.ceremony(case.ceremony).outcome == "refused", case
            assert case.before is not None
            assert crashes.gated.active(case.name).digest == case.before.digest, case
        await crashes.collect()
        for case in crashes.cases:
            assert "staged" not in {one.status for one in crashes.gated.ledger.protections(case.name)}, case
        crashes.cases.clear()


async def test_cancelling_at_any_activity_leaves_only_a_record(crashes: Crashes) -> None:
    await crashes.lead("init", [one for one in crashes.at("init") if one.may_be_cancelled])
    wrong = []
    for case in crashes.cases:
        await case.handle.cancel()
        error = await failure(case.handle)
        case.open()
        record = (
            crashes.gated.ledger.ceremony(case.ceremony) if case.boundary.activity != names.BEGIN_CEREMONY else None
        )
        said = (type(error).__name__, record.outcome if record else "", record.detail if record else "")
        if said not in (
            ("CeremonyEnded", "refused", "cancelled by an operator"),
            ("CeremonyEnded", "", ""),
        ):
            wrong.append((str(case), said, error.message))
        assert [p.status for p in crashes.gated.ledger.protections(case.name)] == []
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
