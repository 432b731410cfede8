"""Stops, lifts and retirements that nobody ordered, or that somebody ordered once and the attacker sends again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from activities.identity import generate_identity
from tests.attacker.flows import QUORUM, Ceremonies
from tests.attacker.orchestrator import Hostile
from tests.attacker.people import People, manifest_of
from tests.attacker.test_release import scene_of
from tests.attacker.test_reshard import plan_for, target_of
from tests.conftest import Installation
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import ApprovalInvalid, ManifestInvalid, MasterKeyError
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.service_errors import Stopped
from workflows.contracts.trust.stop import Stop

BAO = [f"bao-{n}" for n in range(1, 6)]


@pytest_asyncio.fixture(loop_scope="session")
async def victim(ceremonies: Ceremonies, installation: Installation) -> AsyncIterator[StoredProtection]:
    """A MasterKey of this test's own, in two keystores."""
    yield await ceremonies.init(installation.fresh_name(), "seal", 1, ["bao-1", "bao-2"])


def stop_of(people: People, stored: StoredProtection, name: str, **changes: Any) -> Signed:
    """A custodian's real stop."""
    master_key = manifest_of(stored).master_key
    fields = {"master_key": master_key, "ceremony": new_ceremony_id(master_key, "seal")}
    return people.stop(name, **{**fields, **changes})


def order_plan(people: People, stored: StoredProtection, action: Any, *stops: Signed, **changes: Any) -> Plan:
    """The plan of an order."""
    master_key = manifest_of(stored).master_key
    fields = {"master_key": master_key, "ceremony": new_ceremony_id(master_key, action), **changes}
    return people.order_plan(action, [stop.digest for stop in stops] if action == "lift" else stored, **fields)


def shown(plan: Plan, signed: Authority) -> Authority:
    """A plan with approvals of another."""
    return signed.model_copy(update={"plan": plan.canonical().decode()})


async def serves(attacker: Hostile, people: People, stored: StoredProtection, place: int = 1) -> bool:
    """Whether a keystore gives its data key for a release."""
    scene = scene_of(people, stored)
    opened = await attacker.open(scene.plan, "release")
    try:
        await attacker.unwrap(stored, place, scene.authority(), opened.announcement)
    except (Stopped, ManifestInvalid):
        return False
    return True


async def test_only_a_custodian_stops_a_masterkey(
    attacker: Hostile, people: People, victim: StoredProtection, tmp_path: Path
) -> None:
    mallory = generate_identity(tmp_path / "mallory")
    real = stop_of(people, victim, "alice")
    document = Stop.parse(real.document.encode())
    for signed in (
        mallory.sign(document),
        mallory.sign(document.model_copy(update={"custodian": mallory.fingerprint})),
        people.recipient.sign(document.model_copy(update={"custodian": people.recipient.fingerprint})),
        Signed(document=real.document.replace("laptop", "tablet"), signature=real.signature),
        people.approval("alice", order_plan(people, victim, "retire")),
    ):
        with pytest.raises(ApprovalInvalid):
            await attacker.stop("bao-1", signed)
    assert await serves(attacker, people, victim)
    assert (await attacker.stop("bao-1", real)).stops == (real.digest,)
    assert not await serves(attacker, people, victim)
    # The attacker withheld it from the other one: that is why the report names the keys to disable.
    assert await serves(attacker, people, victim, 2)


async def test_nothing_but_the_quorums_lift_ends_a_stop(
    attacker: Hostile, people: People, victim: StoredProtection
) -> None:
    first, second = stop_of(people, victim, "alice"), stop_of(people, victim, "bob")
    for stop in (first, second):
        await attacker.stop("bao-1", stop)
    plan = order_plan(people, victim, "lift", first)
    both = order_plan(people, victim, "lift", first, second)
    for authority in (
        people.authority(plan, ()),
        people.authority(plan, QUORUM[:2]),
        people.authority(plan, ("alice", "alice", "carol")),
        shown(both, people.authority(plan, QUORUM)),
        shown(plan, people.authority(order_plan(people, victim, "retire"), QUORUM)),
        shown(plan, people.authority(plan_for(people, victim, target_of(victim, (1,), "seal")), QUORUM)),
        shown(plan, scene_of(people, victim).signed),
        people.authority(plan_for(people, victim, target_of(victim, (1,), "seal")), QUORUM),
    ):
        with pytest.raises(ApprovalInvalid):
            await attacker.order("bao-1", authority)
    lift = people.authority(plan, QUORUM)
    assert (await attacker.order("bao-1", lift)).stops == (second.digest,)
    assert not await serves(attacker, people, victim)
    assert (await attacker.order("bao-1", people.authority(both, QUORUM))).stops == ()
    assert await serves(attacker, people, victim)
    # What was lifted is not stopped by the old order, and a new stop is not lifted by the old lift.
    assert (await attacker.stop("bao-1", first)).stops == ()
    new = stop_of(people, victim, "alice")
    await attacker.stop("bao-1", new)
    assert (await attacker.order("bao-1", lift)).stops == (new.digest,)
    assert not await serves(attacker, people, victim)


async def test_a_lift_of_another_masterkey_lifts_nothing(
    attacker: Hostile, people: People, victim: StoredProtection, sss: StoredProtection
) -> None:
    stop = stop_of(people, victim, "alice")
    await attacker.stop("bao-1", stop)
    elsewhere = order_plan(people, sss, "lift", stop)
    await attacker.order("bao-1", people.authority(elsewhere, QUORUM))
    assert not await serves(attacker, people, victim)


async def test_while_stopped_nothing_is_made_anew_either(
    attacker: Hostile, people: People, victim: StoredProtection
) -> None:
    plan = plan_for(people, victim, target_of(victim, (1, 2), "seal"))
    authority = people.authority(plan, QUORUM)
    stop = stop_of(people, victim, "carol")
    for keystore in ("bao-1", "bao-2"):
        await attacker.stop(keystore, stop)
    opened = await attacker.open(plan, "reshard")
    for call in (
        attacker.unwrap(victim, 1, authority, opened.announcement),
        attacker.generate("bao-1", 1, authority, opened.announcement),
    ):
        with pytest.raises(Stopped, match="a custodian ordered to stop"):
            await call
    assert '"matches":true' in (await attacker.check(victim, 1)).document


async def test_a_retirement_needs_approvals_of_that_very_retirement(
    attacker: Hostile, people: People, victim: StoredProtection, sss: StoredProtection
) -> None:
    retire, destroy = order_plan(people, victim, "retire"), order_plan(people, victim, "destroy")
    reshard = plan_for(people, victim, target_of(victim, (1,), "seal"))
    manifest = victim.manifest
    attempts: list[tuple[Authority, Signed | None]] = [
        (people.authority(retire, QUORUM[:2]), manifest),
        (shown(retire, people.authority(destroy, QUORUM)), manifest),
        (shown(retire, people.authority(reshard, QUORUM)), manifest),
        (people.authority(reshard, QUORUM), manifest),
        (scene_of(people, victim).signed, manifest),
        (people.authority(retire, QUORUM), None),
        (people.authority(retire, QUORUM), sss.manifest),
        (people.authority(order_plan(people, sss, "retire"), QUORUM), manifest),
    ]
    for authority, presented in attempts:
        with pytest.raises(MasterKeyError) as refused:
            await attacker.order("bao-1", authority, presented)
        assert isinstance(refused.value, ApprovalInvalid)
    assert await serves(attacker, people, victim)
    assert await serves(attacker, people, sss)
    authority = people.authority(retire, QUORUM)
    told = await asyncio.gather(*(attacker.order(keystore, authority, manifest) for keystore in BAO))
    assert {tuple(one.epochs.items()) for one in told} == {(("primary", 2),)}
    assert not await serves(attacker, people, victim)
    with pytest.raises(ManifestInvalid, match="serves 2 and newer"):
        await attacker.check(victim, 1)


async def test_a_retirement_that_is_sent_again_does_not_touch_what_is_newer(
    attacker: Hostile, people: People, victim: StoredProtection
) -> None:
    # Approved, withheld, and sent when another protection is in force.
    authority = people.authority(order_plan(people, victim, "retire"), QUORUM)
    plan = plan_for(people, victim, target_of(victim, (1, 2), "seal"))
    made = await attacker.remake(plan, people.authority(plan, QUORUM), victim, (1,))
    proofs_of_then = await attacker.proofs(victim)
    await attacker.note("bao-1", made.manifest, await attacker.proofs(made))
    assert (await attacker.order("bao-1", authority, victim.manifest)).epochs == {"primary": 2}
    assert await serves(attacker, people, made)
    # Nor does the commit of the old one, with all its proofs of then, bring it back.
    with pytest.raises(ManifestInvalid, match="serves 2 and newer"):
        await attacker.note("bao-1", victim.manifest, proofs_of_then)
