"""What a custodian reads is rendered from the bytes that are signed, and says everything that matters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from activities.crypto.hpke import PrivateKey
from tests.strongroom.test_session import Ceremony
from tests.world import KEYSTORES, World
from workflows.contracts.trust.canonical import canonical_json
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.statement import render_approval, render_plan, render_stop


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


# --- reshard and recovery ----------------------------------------------------------------------------------


def words_of(world: World, plan: Plan) -> str:
    return render_approval(world.approval("alice", plan).document.encode(), world.chain)


@pytest.mark.parametrize(
    ("action", "headline"),
    [
        ("reshard", "PROTECT ANEW the MasterKey eu10, which stays the same"),
        ("recover", "RECOVER the MasterKey eu10, which stays the same, into a new protection"),
    ],
)
def test_a_reshard_shows_what_is_opened_made_and_replaced(world: World, action: str, headline: str) -> None:
    stored = Ceremony(world).protect()
    target = world.target_over(KEYSTORES[2:], retention_hours=24)
    plan = world.reshard_plan(stored, target, action=action)
    lines = words_of(world, plan).splitlines()
    for line in (
        f"  {headline}",
        "  opened is       Shamir, any 3 of 5 shards, epoch 1",
        f"  manifest        {stored.manifest.digest}",
        "  protected by    Shamir, any 2 of 3 shards, primary, epoch 2",
        "    shard 1       ks-3: memory:ks-3; released by carol",
        "    shard 3       ks-5: memory:ks-5; released by erin",
        f"  replaces        {stored.manifest.digest}",
        "                  its ciphertexts are kept for 24 hours, then destroyed",
        "  needs           3 custodians of the governance quorum, among them custodians of 3 shards",
    ):
        assert line in lines
    kept = world.reshard_plan(stored, world.target_over(KEYSTORES[2:]))
    assert "                  its ciphertexts are kept until their destruction is ordered" in words_of(world, kept)


def test_a_protection_beside_the_present_one_says_what_keystores_do_with_an_older_one_of_its_purpose(
    world: World,
) -> None:
    # No digest is named, and still keystores stop serving an older one: they go by the epoch.
    stored = Ceremony(world).protect("seal", 1, 2)
    words = words_of(world, world.reshard_plan(stored, world.target_over(KEYSTORES, purpose="emergency")))
    assert "  opened is       seal, any one of 2 keystores, epoch 1" in words
    assert "  replaces        nothing by name; an older emergency protection is served no more" in words
    assert "custodians of the governance quorum\n" in words
    assert "replaces" not in words_of(world, world.init_plan(world.target()))


# --- orders ------------------------------------------------------------------------------------------------


def test_a_lift_shows_every_stop_that_it_lifts(world: World) -> None:
    stops = [world.stop(name).digest for name in ("alice", "bob")]
    words = words_of(world, world.order_plan("lift", stops))
    assert "  LIFT the stops of the MasterKey eu10: keystores serve it again" in words
    assert [line for line in words.splitlines() if line.startswith("  stop ")] == [
        f"  stop            {stop}" for stop in stops
    ]


@pytest.mark.parametrize(
    ("action", "headline", "about"),
    [
        ("retire", "RETIRE a protection of the MasterKey eu10: no keystore serves it any more", "retired is"),
        (
            "destroy",
            "DESTROY the ciphertexts of a retired protection of the MasterKey eu10, for good",
            "destroyed is",
        ),
    ],
)
def test_an_order_shows_what_it_is_about(world: World, action: str, headline: str, about: str) -> None:
    stored = Ceremony(world).protect()
    words = words_of(world, world.order_plan(action, stored))  # type: ignore[arg-type]
    assert f"  {headline}" in words
    assert f"  {about:<16}Shamir, any 3 of 5 shards, epoch 1\n  manifest        {stored.manifest.digest}" in words
    # Nothing is opened, so no custodians of shards are needed.
    assert "custodians of the governance quorum\n" in words


@pytest.mark.parametrize("action", ["init", "reshard", "recover", "lift", "retire", "destroy", "seal", "drill"])
def test_whoever_receives_the_key_or_what_is_lifted_is_shown_whatever_the_action_is_called(
    world: World, action: str
) -> None:
    # No role executes such a plan; but nobody shall sign one without having read what is in it.
    stored = Ceremony(world).protect()
    request = world.request(stored, PrivateKey().public_key)
    stop = world.stop("alice").digest
    plan = world.unseal_plan(stored, request, action=action, target=world.target(), stops=(stop,))
    words = words_of(world, plan)
    for text in (
        f"crypto (key {world.recipient.fingerprint})",
        request.hpke_key,
        f"stop            {stop}",
        "ks-4: memory:ks-4; released by dave",
        stored.manifest.digest,
    ):
        assert text in words


def test_every_value_of_a_plan_is_shown(world: World) -> None:
    stored = Ceremony(world).protect()
    target = world.target_over(KEYSTORES[2:], epoch=7, retention_hours=24)
    plan = world.reshard_plan(stored, target, governance_quorum=5)
    words = render_plan(plan, world.chain)
    assert plan.source is not None
    assert plan.target is not None
    shown = [plan.master_key, plan.ceremony, plan.strongroom, plan.roster, plan.digest, "epoch 7", "needs           5"]
    shown += [plan.source.manifest, plan.target.predecessor or "?", "24 hours"]
    shown += [value for shard in plan.target.shards for value in (shard.keystore, shard.key_id, *shard.custodians)]
    for value in shown:
        assert value in words


# --- stops -------------------------------------------------------------------------------------------------


def test_a_stop_shows_who_what_why_and_when(world: World) -> None:
    words = render_stop(world.stop("alice", ceremony="eu10.seal.0123456789ab").document.encode(), world.chain)
    assert words.startswith("I, alice, STOP the MasterKey eu10:\n")
    for text in (
        "no keystore serves it",
        "until the governance quorum lifts this stop",
        "reason          a laptop was stolen",
        "ceremony        eu10.seal.0123456789ab",
        "UTC",
    ):
        assert text in words
    assert "(none given)" in render_stop(world.stop("alice", reason="").document.encode(), world.chain)
    unknown = world.stop("alice", custodian=world.stranger.fingerprint).document.encode()
    assert f"I, UNKNOWN {world.stranger.fingerprint}, STOP" in render_stop(unknown, world.chain)


@pytest.mark.parametrize(
    "reason", ["two\nlines", "a\x1b[2Jb", "a\u202eb", "\u0430lice", "tab\there", "line\u2028end", "x" * 201, "\x00"]
)
def test_the_reason_of_a_stop_is_one_printable_line(world: World, reason: str) -> None:
    with pytest.raises(ValidationError):
        world.stop("alice", reason=reason)
    good = world.stop("alice").document.encode()
    spoilt = canonical_json({**_parsed(good), "reason": reason})
    with pytest.raises(ApprovalInvalid) as refused:
        render_stop(spoilt, world.chain)
    assert refused.value.message.isprintable()


def _parsed(data: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(data)
    return found


def test_bytes_that_are_no_stop_are_not_rendered(world: World) -> None:
    plan = world.init_plan(world.target())
    for data in (b"", b"{}", plan.canonical(), world.approval("alice", plan).document.encode()):
        with pytest.raises(ApprovalInvalid):
            render_stop(data, world.chain)
