"""Reshards that nobody authorised, and real ones steered elsewhere: through real workers, past the workflow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from activities.crypto.hpke import PrivateKey
from activities.identity import generate_identity
from tests.attacker.flows import QUORUM, Ceremonies
from tests.attacker.orchestrator import Hostile
from tests.attacker.people import People, manifest_of
from tests.attacker.test_release import Scene, forged, scene_of
from tests.attacker.test_strongroom import deks_for, own_dek
from tests.conftest import Installation
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.errors import ApprovalInvalid, ManifestInvalid, MasterKeyError, PlanInvalid
from workflows.contracts.trust.plan import Plan, Target, TargetShard
from workflows.contracts.trust.quorum import Authority


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def victim(ceremonies: Ceremonies, installation: Installation) -> StoredProtection:
    """A MasterKey that three of five release; no test here retires it."""
    return await ceremonies.init(installation.fresh_name(), "sss", 3, [f"bao-{n}" for n in range(1, 6)])


def target_of(stored: StoredProtection, places: Sequence[int] = (1, 3, 4), mode: str = "sss", **changes: Any) -> Target:
    """A topology over some keystores of a protection, each with its real key and custodian."""
    chosen = [manifest_of(stored).shards[place - 1] for place in places]
    shards = tuple(
        TargetShard(
            index=index,
            keystore=shard.binding.keystore,
            key_id=shard.binding.key_id,
            custodians=shard.custodians if mode == "sss" else (),
        )
        for index, shard in enumerate(chosen, start=1)
    )
    fields = {"purpose": "primary", "epoch": 2, "threshold": 2 if mode == "sss" else 1}
    return Target.model_validate({**fields, "mode": mode, "count": len(shards), "shards": shards, **changes})


def plan_for(people: People, stored: StoredProtection, target: Target | None = None, **changes: Any) -> Plan:
    """The plan that an honest orchestrator makes."""
    ceremony = new_ceremony_id(manifest_of(stored).master_key, "reshard")
    return people.reshard_plan(stored, target or target_of(stored), **{"ceremony": ceremony, **changes})


async def everybody_refuses(
    attacker: Hostile,
    stored: StoredProtection,
    plan: Plan,
    authority: Authority,
    error: type[MasterKeyError],
    says: str,
) -> None:
    """The keystore that shall unwrap, the one that shall generate, and the session, each asked directly."""
    opened = await attacker.open(plan, "reshard")
    assert plan.target is not None
    place = plan.target.shards[0]
    outcomes = await asyncio.gather(
        attacker.unwrap(stored, 1, authority, opened.announcement),
        attacker.generate(place.keystore, 1, authority, opened.announcement),
        attacker.reshard(opened, authority, stored, (), ()),
        return_exceptions=True,
    )
    for outcome in outcomes:
        assert (type(outcome), says in str(outcome)) == (error, True), outcome


# --- the honest twin ---------------------------------------------------------------------------------------


async def test_with_real_approvals_the_attacker_makes_only_what_was_approved(
    attacker: Hostile, people: People, ceremonies: Ceremonies, victim: StoredProtection
) -> None:
    plan = plan_for(people, victim)
    made = await attacker.remake(plan, people.authority(plan, QUORUM), victim, (1, 3, 4))
    manifest = manifest_of(made)
    assert (manifest.kcv, manifest.predecessor) == (manifest_of(victim).kcv, victim.manifest.digest)
    # What was made gives back the same key, and only to the recipient.
    key = PrivateKey()
    request = people.wish(made, key.public_key)
    release = people.release_plan(made, request)
    scene = Scene(people, made, request, release, QUORUM)
    opened = await attacker.open(release, "release")
    delivered = await attacker.release(opened, scene.authority(), made, await deks_for(attacker, scene, opened, (1, 2)))
    received = ceremonies.receive(delivered, request, key, made)
    assert received == (await ceremonies.unseal(victim, QUORUM))[0]


# --- steered elsewhere after the approvals -----------------------------------------------------------------


def to_target(**changes: Any) -> Callable[[StoredProtection, Plan], Plan]:
    """The approved plan with another target."""
    return lambda stored, plan: plan.model_copy(update={"target": plan.target.model_copy(update=changes)})  # type: ignore[union-attr]


STEERED: dict[str, Callable[[StoredProtection, Plan], Plan]] = {
    "other keystores": lambda s, p: p.model_copy(update={"target": target_of(s, (2, 3, 5))}),
    "one keystore in seal mode": lambda s, p: p.model_copy(update={"target": target_of(s, (2,), "seal")}),
    "a lower threshold": lambda s, p: p.model_copy(update={"target": target_of(s, (1, 3, 4, 5))}),
    "custodians of the attacker's choice": lambda s, p: p.model_copy(
        update={"target": to_custodians(p.target, ("bob",))}
    ),
    "another purpose": to_target(purpose="emergency", predecessor=None),
    "another epoch": to_target(epoch=3),
    "a shorter retention": to_target(retention_hours=0),
    "another action": lambda s, p: p.model_copy(update={"action": "recover"}),
    "another ceremony": lambda s, p: p.model_copy(update={"ceremony": new_ceremony_id(p.master_key, "reshard")}),
    "a longer life": lambda s, p: p.model_copy(update={"expires": p.expires.replace(year=p.expires.year + 1)}),
}


def to_custodians(target: Target | None, custodians: tuple[str, ...]) -> Target:
    """The target with the first shard in other hands."""
    assert target is not None
    first = target.shards[0].model_copy(update={"custodians": custodians})
    return target.model_copy(update={"shards": (first, *target.shards[1:])})


@pytest.mark.parametrize("steer", STEERED.values(), ids=STEERED)
async def test_an_approved_reshard_cannot_be_steered_elsewhere(
    attacker: Hostile, people: People, victim: StoredProtection, steer: Callable[[StoredProtection, Plan], Plan]
) -> None:
    approved = plan_for(people, victim)
    steered = steer(victim, approved)
    assert steered != approved
    approvals = people.authority(approved, QUORUM).approvals
    shown = Authority(plan=steered.canonical().decode(), approvals=approvals)
    opened = await attacker.open(steered, "reshard")
    assert steered.target is not None
    place = steered.target.shards[0]
    for call in (
        attacker.unwrap(victim, 1, shown, opened.announcement),
        attacker.generate(place.keystore, 1, shown, opened.announcement),
        attacker.reshard(opened, shown, victim, (), ()),
    ):
        with pytest.raises(MasterKeyError) as refused:
            await call
        assert isinstance(refused.value, (ApprovalInvalid, PlanInvalid))


async def test_an_approved_recovery_is_no_reshard(attacker: Hostile, people: People, victim: StoredProtection) -> None:
    recovery = plan_for(people, victim, action="recover")
    reshard = recovery.model_copy(update={"action": "reshard"})
    approvals = people.authority(recovery, QUORUM).approvals
    shown = Authority(plan=reshard.canonical().decode(), approvals=approvals)
    await everybody_refuses(attacker, victim, reshard, shown, ApprovalInvalid, "signed another plan")


async def test_an_approved_reshard_opens_no_other_protection(
    attacker: Hostile, people: People, victim: StoredProtection, sss: StoredProtection, tmp_path: Path
) -> None:
    plan = plan_for(people, victim)
    authority = people.authority(plan, QUORUM)
    opened = await attacker.open(plan, "reshard")
    mallory = generate_identity(tmp_path / "mallory")
    for other in (sss, forged(victim, mallory), forged(victim, mallory, threshold=2)):
        for call in (
            attacker.unwrap(other, 1, authority, opened.announcement),
            attacker.reshard(await attacker.open(plan, "reshard"), authority, other, (), ()),
        ):
            with pytest.raises(ApprovalInvalid):
                await call


async def test_an_approved_reshard_uses_no_other_strongroom(
    attacker: Hostile, people: People, victim: StoredProtection, tmp_path: Path
) -> None:
    # The attacker announces a session of its own, with a key that it has; and asks the real one for its plan.
    plan, mallory = plan_for(people, victim), generate_identity(tmp_path / "mallory")
    authority = people.authority(plan, QUORUM)
    opened = await attacker.open(plan, "reshard")
    from workflows.contracts.trust.session import SessionAnnouncement

    genuine = SessionAnnouncement.parse(opened.announcement.document.encode())
    mine = genuine.model_copy(update={"hpke_public_key": PrivateKey().public_key})
    for announced in (
        mallory.sign(mine),
        mallory.sign(mine.model_copy(update={"strongroom": mallory.fingerprint})),
        people.recipient.sign(mine),
    ):
        for call in (
            attacker.unwrap(victim, 1, authority, announced),
            attacker.generate("bao-1", 1, authority, announced),
        ):
            with pytest.raises(ApprovalInvalid, match="not signed by the strongroom"):
                await call
    with pytest.raises(ApprovalInvalid, match="names another strongroom"):
        await attacker.open(plan.model_copy(update={"strongroom": mallory.fingerprint}), "reshard")


@pytest.mark.parametrize("approvers", [(), ("alice", "carol"), ("alice", "alice", "carol")])
async def test_too_few_custodians_reshard_nothing(
    attacker: Hostile, people: People, victim: StoredProtection, approvers: tuple[str, ...]
) -> None:
    plan = plan_for(people, victim)
    authority = people.authority(plan, approvers)
    await everybody_refuses(attacker, victim, plan, authority, ApprovalInvalid, "3 are needed")


async def test_approvals_of_a_release_reshard_nothing_and_the_other_way_round(
    attacker: Hostile, people: People, victim: StoredProtection
) -> None:
    scene, plan = scene_of(people, victim), plan_for(people, victim)
    of_release = scene.authority(plan=plan.canonical().decode())
    await everybody_refuses(attacker, victim, plan, of_release, ApprovalInvalid, "signed another plan")
    of_reshard = people.authority(plan, QUORUM).approvals
    both = await attacker.refusals(scene.plan, scene.authority(approvals=of_reshard), stored=victim, place=1)
    assert all(type(one) is ApprovalInvalid and "signed another plan" in str(one) for one in both)
    # The reshard's own plan, with the recipient's request: nothing is delivered for it.
    with_request = people.authority(plan, QUORUM, scene.signed.request)
    opened = await attacker.open(plan, "release")
    with pytest.raises(ApprovalInvalid, match="releases nothing to a recipient"):
        await attacker.release(opened, with_request, victim, ())
    with pytest.raises(ApprovalInvalid, match="opened for something else"):
        await attacker.unwrap(victim, 1, with_request, opened.announcement)


# --- data keys on their way --------------------------------------------------------------------------------


async def test_data_keys_of_a_reshard_release_nothing_and_the_other_way_round(
    attacker: Hostile, people: People, victim: StoredProtection
) -> None:
    scene, plan = scene_of(people, victim), plan_for(people, victim)
    authority = people.authority(plan, QUORUM)
    resharding, releasing = await attacker.open(plan, "reshard"), await attacker.open(scene.plan, "release")
    given = await asyncio.gather(
        *(attacker.unwrap(victim, place, authority, resharding.announcement) for place in (1, 3, 4))
    )
    released = await deks_for(attacker, scene, releasing)
    fresh = await attacker.generate_all(plan, authority, resharding)
    with pytest.raises(ApprovalInvalid, match="made for something else"):
        await attacker.release(releasing, scene.authority(), victim, given)
    with pytest.raises(ApprovalInvalid, match="made for something else"):
        await attacker.reshard(resharding, authority, victim, released, fresh)


async def test_the_masterkey_is_not_protected_with_data_keys_of_the_attacker(
    attacker: Hostile, people: People, victim: StoredProtection, tmp_path: Path
) -> None:
    plan, mallory = plan_for(people, victim), generate_identity(tmp_path / "mallory")
    authority = people.authority(plan, QUORUM)

    async def attempt(number: int, change: Callable[[list[Any], list[Any], Any], None]) -> None:
        opened = await attacker.open(plan, "reshard", number)
        calls = [attacker.unwrap(victim, place, authority, opened.announcement) for place in (1, 3, 4)]
        given = list(await asyncio.gather(*calls))
        fresh = await attacker.generate_all(plan, authority, opened)
        change(given, fresh, opened)
        await attacker.reshard(opened, authority, victim, given, fresh)

    changes: list[Callable[[list[Any], list[Any], Any], None]] = [
        lambda given, fresh, opened: fresh.__setitem__(1, own_dek(fresh[1], opened, mallory)),
        lambda given, fresh, opened: fresh.__setitem__(1, own_dek(fresh[1], opened, people.recipient)),
        lambda given, fresh, opened: fresh.__setitem__(0, given[0]),
        lambda given, fresh, opened: given.__setitem__(0, fresh[0]),
        lambda given, fresh, opened: fresh.reverse(),
        lambda given, fresh, opened: fresh.pop(),
        lambda given, fresh, opened: fresh.append(fresh[0]),
        lambda given, fresh, opened: given.pop(),
        lambda given, fresh, opened: given.__setitem__(1, given[0]),
    ]
    for number, change in enumerate(changes, start=1):
        with pytest.raises(ApprovalInvalid):
            await attempt(number, change)


# --- retiring what works -----------------------------------------------------------------------------------


async def test_what_was_staged_and_never_proven_retires_nothing(
    attacker: Hostile, people: People, ceremonies: Ceremonies, installation: Installation
) -> None:
    stored = await ceremonies.init(installation.fresh_name(), "sss", 3, [f"bao-{n}" for n in range(1, 6)])
    plan = plan_for(people, stored)
    authority = people.authority(plan, QUORUM)
    staged = await attacker.remake(plan, authority, stored, (1, 3, 4))
    again = await attacker.remake(plan, authority, stored, (1, 3, 4), attempt=2)
    proofs, of_old, of_again = [await attacker.proofs(one) for one in (staged, stored, again)]
    for shown in ((), proofs[:2], of_old, of_again, (*proofs[:2], of_again[2])):
        for keystore in ("bao-1", "bao-2"):
            with pytest.raises(ManifestInvalid, match="was not proven by"):
                await attacker.note(keystore, staged.manifest, shown)
    # By the other door: whoever is deceived into a release from what was staged retires nothing either.
    scene = scene_of(people, staged)
    opened = await attacker.open(scene.plan, "release")
    await attacker.unwrap(staged, 1, scene.authority(), opened.announcement)
    key, _ = await ceremonies.unseal(stored, QUORUM)
    # With every proof it is in force, at keystores that hold a shard of it and at those that do not.
    for keystore in ("bao-1", "bao-2", "bao-3", "bao-4", "bao-5"):
        assert (await attacker.note(keystore, staged.manifest, proofs)).epochs == {"primary": 2}
    scene = scene_of(people, stored)
    opened = await attacker.open(scene.plan, "release")
    for place in (1, 3):
        with pytest.raises(ManifestInvalid, match="serves 2 and newer"):
            await attacker.unwrap(stored, place, scene.authority(), opened.announcement)
    assert len(key) == 32


async def test_a_manifest_that_no_strongroom_signed_retires_nothing(
    attacker: Hostile, people: People, ceremonies: Ceremonies, victim: StoredProtection, tmp_path: Path
) -> None:
    proofs = await attacker.proofs(victim)
    for signer in (generate_identity(tmp_path / "mallory"), people.recipient):
        newer = forged(victim, signer, epoch=9)
        with pytest.raises(ManifestInvalid):
            await attacker.note("bao-1", newer.manifest, proofs)
    assert len((await ceremonies.unseal(victim, QUORUM))[0]) == 32
