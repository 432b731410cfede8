"""The rules of authority as pure functions: who may do what, for how long, and over which topology."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from activities.crypto.hpke import PrivateKey
from tests.strongroom.test_session import Ceremony, manifest_of
from tests.world import NAMES, World, acting, now
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.trust.authority import check_manifest, check_protect, check_release
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import ApprovalInvalid, ManifestInvalid, PlanInvalid, RosterInvalid
from workflows.contracts.trust.plan import Target
from workflows.contracts.trust.quorum import shards_released_by
from workflows.contracts.trust.roster import Governance
from workflows.contracts.trust.stop import check_stop
from workflows.contracts.trust.topology import check_target
from workflows.contracts.trust.validity import CLOCK_SKEW, MAXIMUM_CEREMONY, check_time


@pytest.fixture(scope="module")
def ceremony(tmp_path_factory: pytest.TempPathFactory) -> Ceremony:
    return Ceremony(World.make(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def stored(ceremony: Ceremony) -> StoredProtection:
    return ceremony.protect()


def with_current(world: World, **changes: Any) -> RosterChain:
    """The chain with another current version, as if it had been signed."""
    found = world.chain
    current = found.current.model_copy(update=changes)
    return replace(found, versions=(*found.versions[:-1], current))


# --- topology ---------------------------------------------------------------------------------------------


def shard(place: int, **changes: Any) -> Callable[[Target], Target]:
    def change(target: Target) -> Target:
        shards = list(target.shards)
        shards[place - 1] = shards[place - 1].model_copy(update=changes)
        return target.model_copy(update={"shards": tuple(shards)})

    return change


BAD: dict[str, tuple[Callable[[Target], Target], str]] = {
    "M above N": (lambda t: t.model_copy(update={"threshold": 6}), "could never be recovered"),
    "M of one in sss": (lambda t: t.model_copy(update={"threshold": 1}), "threshold of 2 or more"),
    "N unlike the shards": (lambda t: t.model_copy(update={"count": 4}), "the plan lists 5 shards, but N is 4"),
    "no shards": (lambda t: t.model_copy(update={"shards": (), "count": 1}), "lists 0 shards"),
    "an index twice": (shard(2, index=1), "the plan lists"),
    "a keystore twice": (shard(2, keystore="ks-1"), "keystore ks-1 stands behind more than one shard"),
    "a KMS key twice": (shard(2, key_id="memory:ks-1"), "KMS key memory:ks-1 stands behind"),
    "an unknown keystore": (shard(2, keystore="ks-9"), "keystore ks-9 is not in the roster"),
    "overlapping custody": (shard(2, custodians=("bob", "alice")), "custodian alice stands behind"),
    "no custody": (shard(2, custodians=()), "has no custodian"),
    "unknown custody": (shard(2, custodians=("mallory",)), "custodian mallory is not in the roster"),
    "seal with a threshold": (lambda t: t.model_copy(update={"mode": "seal"}), "the threshold is 1"),
    "seal with custody": (lambda t: t.model_copy(update={"mode": "seal", "threshold": 1}), "has a custodian"),
}


@pytest.mark.parametrize(("change", "says"), BAD.values(), ids=BAD)
def test_an_impossible_topology_is_refused(ceremony: Ceremony, change: Callable[[Target], Target], says: str) -> None:
    world = ceremony.world
    check_target(world.target(), "eu10", world.roster)
    with pytest.raises(PlanInvalid, match=says):
        check_target(change(world.target()), "eu10", world.roster)


def test_255_shards_are_possible_and_256_are_not(ceremony: Ceremony) -> None:
    # Numbers alone: the custody of so many is checked last, and there are not so many people here.
    world = ceremony.world
    many = tuple(world.target().shards[0].model_copy(update={"index": n}) for n in range(1, 256))
    with pytest.raises(PlanInvalid, match="stands behind more than one shard"):
        check_target(world.target().model_copy(update={"count": 255, "shards": many}), "eu10", world.roster)
    with pytest.raises(ValueError, match="less than or equal to 255"):
        Target.model_validate({**world.target().model_dump(), "count": 256})


def test_the_rosters_minimum_threshold_holds_for_plans_and_manifests(
    ceremony: Ceremony, stored: StoredProtection
) -> None:
    world = ceremony.world
    strict = (Governance(master_key="*", custodians=NAMES, quorum=3, minimum_threshold=4),)
    roster = world.roster.model_copy(update={"governance": strict})
    check_target(world.target(threshold=4), "eu10", roster)
    with pytest.raises(PlanInvalid, match="below the roster's minimum of 4"):
        check_target(world.target(threshold=3), "eu10", roster)
    with pytest.raises(ManifestInvalid, match="below the roster's minimum of 4"):
        check_manifest(stored.manifest, with_current(world, governance=strict))


# --- time -------------------------------------------------------------------------------------------------


def test_what_is_signed_is_in_force_from_its_date_to_its_end() -> None:
    issued, hour = now(), timedelta(hours=1)
    check_time("it", issued, issued + hour, issued, hour)
    check_time("it", issued, issued + hour, issued + hour, hour)
    check_time("it", issued, issued + hour, issued - CLOCK_SKEW, hour)
    for at, says in (
        (issued + hour + timedelta(seconds=1), "expired"),
        (issued - CLOCK_SKEW - timedelta(seconds=1), "dated in the future"),
    ):
        with pytest.raises(ApprovalInvalid, match=says):
            check_time("it", issued, issued + hour, at, hour)
    for expires in (issued, issued - hour, issued + hour + timedelta(seconds=1)):
        with pytest.raises(ApprovalInvalid, match="longer than"):
            check_time("it", issued, expires, issued, hour)


# --- protect ----------------------------------------------------------------------------------------------


def test_a_quorum_of_distinct_custodians_protects(ceremony: Ceremony) -> None:
    world = ceremony.world
    plan = world.init_plan(world.target())
    granted = check_protect(world.chain, world.authority(plan, NAMES[1:4]), now())
    assert granted.approvers == NAMES[1:4]
    assert granted.plan == plan
    for approvers in ((), NAMES[:2], (NAMES[0], NAMES[0], NAMES[1])):
        with pytest.raises(ApprovalInvalid, match="3 are needed"):
            check_protect(world.chain, world.authority(plan, approvers), now())


def test_custodians_outside_the_governance_do_not_count(ceremony: Ceremony) -> None:
    world = ceremony.world
    few = Governance(master_key="eu10", custodians=("alice", "bob"), quorum=2)
    chain = with_current(world, governance=(few,))
    plan = world.init_plan(world.target(), governance_quorum=2)
    check_protect(chain, world.authority(plan, ["alice", "bob"]), now())
    with pytest.raises(ApprovalInvalid, match="1 custodians of the governance quorum approved, 2 are needed"):
        check_protect(chain, world.authority(plan, ["alice", "carol", "dave", "erin"]), now())


def test_a_plan_may_ask_for_more_than_the_roster_and_never_for_less(ceremony: Ceremony) -> None:
    world = ceremony.world
    more = world.init_plan(world.target(), governance_quorum=4)
    with pytest.raises(ApprovalInvalid, match="3 custodians of the governance quorum approved, 4 are needed"):
        check_protect(world.chain, world.authority(more, NAMES[:3]), now())
    check_protect(world.chain, world.authority(more, NAMES[:4]), now())
    less = world.init_plan(world.target(), governance_quorum=2)
    with pytest.raises(ApprovalInvalid, match="smaller quorum than the roster's 3"):
        check_protect(world.chain, world.authority(less, NAMES), now())


def test_the_digest_of_what_was_granted_covers_plan_and_approvals(ceremony: Ceremony) -> None:
    world = ceremony.world
    plan, other = world.init_plan(world.target()), world.init_plan(world.target(threshold=4))
    authority = world.authority(plan, NAMES[:3])
    backwards = authority.model_copy(update={"approvals": authority.approvals[::-1]})
    first = check_protect(world.chain, authority, now()).digest
    assert first == check_protect(world.chain, backwards, now()).digest
    assert first != check_protect(world.chain, world.authority(plan, NAMES[:4]), now()).digest
    assert first != check_protect(world.chain, world.authority(other, NAMES[:3]), now()).digest


# --- release ----------------------------------------------------------------------------------------------


def test_a_release_needs_custodians_of_enough_different_shards() -> None:
    custody = (("alice", "bob"), ("carol",), ("dave",))
    assert shards_released_by(("alice", "bob"), custody) == [1]
    assert shards_released_by(("bob", "dave"), custody) == [1, 3]
    assert shards_released_by((), custody) == []
    assert shards_released_by(("erin",), custody) == []


def test_the_manifests_quorum_outlives_a_roster_that_asks_for_less(
    ceremony: Ceremony, stored: StoredProtection
) -> None:
    # A manifest made under a quorum of three is released by three, whatever a later roster says.
    world, request = ceremony.world, ceremony.world.request(stored, PrivateKey().public_key)
    lax = with_current(world, governance=(Governance(master_key="*", custodians=NAMES, quorum=1),))
    plan = world.unseal_plan(stored, request, governance_quorum=1)
    authority = world.authority(plan, NAMES, world.recipient.sign(request))
    with pytest.raises(ApprovalInvalid, match="smaller quorum than the manifest demands"):
        check_release(lax, authority, stored.manifest, now())
    plan = world.unseal_plan(stored, request, governance_quorum=3)
    authority = world.authority(plan, NAMES[:3], world.recipient.sign(request))
    assert check_release(lax, authority, stored.manifest, now()).approvers == NAMES[:3]


def test_a_plan_that_releases_protects_nothing_and_the_other_way_round(
    ceremony: Ceremony, stored: StoredProtection
) -> None:
    world, request = ceremony.world, ceremony.world.request(stored, PrivateKey().public_key)
    signed = world.recipient.sign(request)
    both = world.unseal_plan(stored, request, target=world.target())
    for plan in (both, acting(both, "init"), world.init_plan(world.target())):
        with pytest.raises(ApprovalInvalid, match="releases nothing to a recipient"):
            check_release(world.chain, world.authority(plan, NAMES, signed), stored.manifest, now())
    for plan in (both, world.unseal_plan(stored, request)):
        with pytest.raises(ApprovalInvalid, match="protects nothing"):
            check_protect(world.chain, world.authority(plan, NAMES), now())


@pytest.mark.parametrize("ceremony_id", ["eu11.init.0123456789ab", "eu10.unseal.0123456789ab"])
def test_a_ceremonys_id_is_of_its_masterkey_and_its_action(ceremony: Ceremony, ceremony_id: str) -> None:
    world = ceremony.world
    plan = world.init_plan(world.target(), ceremony=ceremony_id)
    with pytest.raises(ApprovalInvalid, match="is not one to init eu10"):
        check_protect(world.chain, world.authority(plan, NAMES), now())


def test_a_plan_lives_no_longer_than_a_ceremony_may(ceremony: Ceremony) -> None:
    world = ceremony.world
    plan = world.init_plan(world.target(), expires=now() + MAXIMUM_CEREMONY + timedelta(minutes=5))
    with pytest.raises(ApprovalInvalid, match="the plan is in force for longer"):
        check_protect(world.chain, world.authority(plan, NAMES), now())


# --- stops --------------------------------------------------------------------------------------------------


def test_a_stop_that_was_taken_in_before_is_looked_at_without_the_time(ceremony: Ceremony) -> None:
    world = ceremony.world
    old = world.stop("alice", issued=now() - 2 * MAXIMUM_CEREMONY)
    assert check_stop(world.roster, old, None)[1] == "alice"
    with pytest.raises(ApprovalInvalid, match="too old"):
        check_stop(world.roster, old, now())
    forged = world.stranger.sign(check_stop(world.roster, old, None)[0])
    with pytest.raises(ApprovalInvalid, match="not signed by a custodian"):
        check_stop(world.roster, forged, None)


# --- manifests --------------------------------------------------------------------------------------------


def test_a_manifest_counts_only_with_the_signature_of_the_strongroom_it_names(
    ceremony: Ceremony, stored: StoredProtection
) -> None:
    world, manifest = ceremony.world, manifest_of(stored)
    assert check_manifest(stored.manifest, world.chain) == manifest
    for signer in (world.stranger, world.recipient, world.keystores["ks-1"], world.custodians["alice"]):
        for signed in (
            signer.sign(manifest),
            signer.sign(manifest.model_copy(update={"strongroom": signer.fingerprint})),
        ):
            with pytest.raises(ManifestInvalid, match="not signed by a strongroom of the roster"):
                check_manifest(signed, world.chain)
    other = manifest.model_copy(update={"strongroom": world.stranger.fingerprint})
    with pytest.raises(ManifestInvalid, match="not signed by a strongroom of the roster"):
        check_manifest(world.strongroom.sign(other), world.chain)
    for signed in (Signed(document="{}", signature="x"), Signed(document=stored.manifest.document, signature="")):
        with pytest.raises(ManifestInvalid):
            check_manifest(signed, world.chain)


def test_a_revoked_strongroom_loses_its_old_manifests_too(ceremony: Ceremony, stored: StoredProtection) -> None:
    chain = with_current(ceremony.world, revoked=(ceremony.world.strongroom.fingerprint,))
    with pytest.raises(ManifestInvalid, match="not signed by a strongroom of the roster"):
        check_manifest(stored.manifest, chain)


def test_a_manifest_under_a_roster_outside_the_chain_is_refused(ceremony: Ceremony, stored: StoredProtection) -> None:
    manifest = manifest_of(stored).model_copy(update={"roster": "sha256:" + "0" * 64})
    with pytest.raises(RosterInvalid, match="not in this roster's chain"):
        check_manifest(ceremony.world.strongroom.sign(manifest), ceremony.world.chain)


INCONSISTENT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a lowered threshold": lambda m: m.update(threshold=2),
    "another mode": lambda m: m.update(mode="seal"),
    "another name": lambda m: m.update(master_key="eu11"),
    "another epoch": lambda m: m.update(epoch=2),
    "another protection": lambda m: m.update(protection="eu10.init.0123456789ab.2"),
    "another purpose": lambda m: m.update(purpose="emergency"),
    "another ceremony": lambda m: m.update(ceremony="eu10.init.ffffffffffff"),
    "a shard less": lambda m: m["shards"].pop(),
    "a shard twice": lambda m: m["shards"].__setitem__(1, m["shards"][0]),
    "a keystore twice": lambda m: m["shards"][1]["binding"].update(keystore="ks-1"),
    "a key twice": lambda m: m["shards"][1]["binding"].update(key_id="memory:ks-1"),
    "an x coordinate twice": lambda m: m["shards"][1]["binding"].update(x=1),
}


@pytest.mark.parametrize("change", INCONSISTENT.values(), ids=INCONSISTENT)
def test_a_manifest_that_contradicts_its_shards_is_no_manifest(
    stored: StoredProtection, change: Callable[[dict[str, Any]], Any]
) -> None:
    manifest = manifest_of(stored)
    content = manifest.model_dump(mode="json")
    change(content)
    with pytest.raises(ValueError, match=r"shard|threshold"):
        type(manifest).model_validate(content)
