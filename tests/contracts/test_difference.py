"""What a reshard changes, in words that a custodian can check: who loses, who gains, and what becomes weaker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.strongroom.test_session import Ceremony, manifest_of
from tests.world import KEYSTORES, World
from workflows.contracts.trust.difference import difference
from workflows.contracts.trust.protection import Manifest


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(Path(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def before(world: World) -> Manifest:
    """Three of five, shard N in ks-N with its own custodian."""
    return manifest_of(Ceremony(world).protect())


def test_who_loses_and_who_gains_is_told_with_keys_and_custodians(world: World) -> None:
    sealed = manifest_of(Ceremony(world).protect("seal", 1, 2))
    assert difference(sealed, world.target_over(KEYSTORES[1:3], epoch=2)) == (
        "seal, any one of 2 keystores -> Shamir, any 2 of 2 shards",
        "loses   ks-1 (memory:ks-1)",
        "gains   ks-3 (memory:ks-3), released by carol",
        "custody ks-2: policy -> bob",
    )


def test_a_threshold_that_falls_is_the_first_thing_that_is_told(world: World, before: Manifest) -> None:
    lines = difference(before, world.target_over(KEYSTORES, threshold=2))
    assert lines == ("Shamir, any 3 of 5 shards -> Shamir, any 2 of 5 shards",)


def test_a_fall_from_shamir_to_seal_is_told(world: World, before: Manifest) -> None:
    lines = difference(before, world.target_over(KEYSTORES, "seal"))
    assert lines[0] == "Shamir, any 3 of 5 shards -> seal, any one of 5 keystores"
    assert [line for line in lines if line.startswith("custody")] == [
        f"custody ks-{number}: {name} -> policy"
        for number, name in enumerate(("alice", "bob", "carol", "dave", "erin"), start=1)
    ]


def test_another_key_or_custodian_in_the_same_keystore_is_told(world: World, before: Manifest) -> None:
    target = world.target_over(KEYSTORES, threshold=3)
    shards = list(target.shards)
    shards[0] = shards[0].model_copy(update={"key_id": "memory:new"})
    shards[4] = shards[4].model_copy(update={"custodians": ("erin", "frank")})
    assert difference(before, target.model_copy(update={"shards": tuple(shards)})) == (
        "re-keys ks-1: memory:ks-1 -> memory:new",
        "custody ks-5: erin -> erin or frank",
    )


def test_the_same_topology_says_that_only_keys_are_new(world: World, before: Manifest) -> None:
    (line,) = difference(before, world.target_over(KEYSTORES, threshold=3))
    assert line == "same keystores and custodians; all data keys and shards are made anew"


def test_a_protection_beside_the_present_one_retires_nothing(world: World) -> None:
    (line,) = difference(None, world.target_over(KEYSTORES, threshold=3, purpose="emergency"))
    assert line == "adds emergency: Shamir, any 3 of 5 shards; nothing is retired"
