"""What a custodian reads is rendered from the bytes that are signed, and says everything that matters."""

from __future__ import annotations

from pathlib import Path

import pytest

from activities.strongroom.hpke import PrivateKey
from tests.strongroom.test_session import Ceremony
from tests.world import World
from workflows.contracts.errors import ApprovalInvalid
from workflows.contracts.statement import render_approval


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path)


def test_an_init_shows_name_topology_custody_strongroom_and_deadline(world: World) -> None:
    plan = world.init_plan(world.target())
    words = render_approval(world.approval("alice", plan).document.encode(), world.chain)
    assert words.startswith("I, alice, APPROVE this plan:")
    for text in (
        "CREATE a new MasterKey named eu10",
        "Shamir, any 3 of 5 shards",
        "ks-4: memory:ks-4; released by dave",
        f"strongroom vault (key {world.strongroom.fingerprint})",
        f"{plan.expires:%Y-%m-%d %H:%M:%S} UTC",
        plan.digest,
        "version 1",
    ):
        assert text in words


def test_a_release_shows_who_receives_the_key_and_from_what(world: World) -> None:
    stored, key = Ceremony(world).protect(), PrivateKey()
    request = world.request(stored, key.public_key)
    plan = world.unseal_plan(stored, request)
    words = render_approval(world.approval("bob", plan, decision="reject").document.encode(), world.chain)
    assert words.startswith("I, bob, REJECT this plan:")
    for text in (
        "RELEASE the MasterKey eu10",
        f"crypto (key {world.recipient.fingerprint})",
        request.hpke_key,
        stored.manifest.digest,
        "custodians of 3 shards",
    ):
        assert text in words


def test_a_sealed_topology_says_that_no_human_is_asked(world: World) -> None:
    plan = world.init_plan(world.target("seal", 1, 2))
    words = render_approval(world.approval("alice", plan).document.encode(), world.chain)
    assert "seal, any one of 2 keystores" in words
    assert "released by policy" in words


def test_unknown_keys_are_called_unknown(world: World) -> None:
    plan = world.init_plan(world.target(), strongroom=world.stranger.fingerprint)
    approval = world.approval("alice", plan, custodian=world.stranger.fingerprint)
    words = render_approval(approval.document.encode(), world.chain)
    assert words.count(f"UNKNOWN {world.stranger.fingerprint}") == 2


def test_bytes_that_are_no_approval_or_under_another_roster_are_not_rendered(world: World) -> None:
    plan = world.init_plan(world.target(), roster="sha256:" + "0" * 64)
    with pytest.raises(ApprovalInvalid, match="another roster than yours"):
        render_approval(world.approval("alice", plan).document.encode(), world.chain)
    with pytest.raises(ApprovalInvalid):
        render_approval(plan.canonical(), world.chain)
