"""The roster's chain: who may change it, what it may not say, and that it is never older than was seen."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.world import NAMES, World, now, rsa_custodian, sign_file
from workflows.contracts.trust.canonical import canonical_json
from workflows.contracts.trust.chain import (
    RosterChain,
    RosterFile,
    RosterVersion,
    parse_roster_file,
    signers_of,
    verify_chain,
)
from workflows.contracts.trust.errors import ApprovalInvalid, PlanInvalid, RosterInvalid
from workflows.contracts.trust.roster import ChangeQuorum, Custodian, Governance, Roster


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("world"))


def first_of(world: World) -> RosterVersion:
    return RosterVersion(document=world.roster.canonical().decode())


def chain(world: World, *versions: RosterVersion, minimum: int = 1) -> RosterChain:
    return verify_chain(
        RosterFile(versions=(first_of(world), *versions)), genesis=world.roster.digest, minimum_number=minimum
    )


def test_three_of_five_make_the_next_version(world: World) -> None:
    found = chain(world, world.next_version(["alice", "carol", "erin"]))
    assert (found.current.number, len(found.versions)) == (2, 2)
    assert found.at(world.roster.digest) == world.roster
    assert found.digest == found.current.digest


@pytest.mark.parametrize("signers", [[], ["alice"], ["alice", "bob"], ["alice", "alice", "bob"]])
def test_fewer_distinct_signers_than_the_quorum_are_refused(world: World, signers: list[str]) -> None:
    count = len(set(signers))
    with pytest.raises(RosterInvalid, match=f"version 2 is signed by {count} custodians; version 1 demands 3"):
        chain(world, world.next_version(signers))


def test_signatures_of_others_do_not_count(world: World) -> None:
    version = world.next_version(["alice", "bob"])
    document = version.document.encode()
    strangers = [
        identity.sign_bytes(document, Roster.TYPE)
        for identity in (world.stranger, world.recipient, world.strongroom, *world.keystores.values())
    ]
    other_namespace = world.custodians["carol"].sign_bytes(document, "masterkey-approval")
    of_the_first = world.custodians["carol"].sign_bytes(first_of(world).document.encode(), Roster.TYPE)
    signatures = (*version.signatures, *strangers, other_namespace, of_the_first, "garbage", "")
    signed = RosterVersion(document=version.document, signatures=signatures)
    assert signers_of(signed, world.roster.change, world.roster) == ["alice", "bob"]
    with pytest.raises(RosterInvalid, match="signed by 2 custodians"):
        chain(world, signed)


def test_a_custodian_outside_the_change_quorum_changes_nothing(world: World) -> None:
    version, quorum = world.next_version(["alice", "dave", "erin"]), ChangeQuorum(custodians=("alice", "bob"), quorum=2)
    assert signers_of(version, quorum, world.roster) == ["alice"]


def test_whoever_the_new_version_adds_does_not_sign_it(world: World) -> None:
    added = Custodian(name="mallory", public_key=world.stranger.public_key)
    version = world.next_version(
        ["alice", "bob"],
        custodians=(*world.roster.custodians, added),
        change=ChangeQuorum(custodians=("mallory",), quorum=1),
    )
    own = world.stranger.sign_bytes(version.document.encode(), Roster.TYPE)
    with pytest.raises(RosterInvalid, match="signed by 2 custodians"):
        chain(world, version.model_copy(update={"signatures": (*version.signatures, own)}))


def test_a_custodian_whom_the_version_before_revoked_does_not_sign(world: World) -> None:
    second = world.next_version(["alice", "bob", "carol"], revoked=(world.custodians["carol"].fingerprint,))
    roster = Roster.parse(second.document.encode())
    third = Roster.model_validate({**roster.model_dump(), "number": 3, "previous": roster.digest})
    document = third.canonical()
    signatures = {n: world.custodians[n].sign_bytes(document, Roster.TYPE) for n in NAMES}

    def signed(*names: str) -> RosterVersion:
        return RosterVersion(document=document.decode(), signatures=tuple(signatures[n] for n in names))

    with pytest.raises(RosterInvalid, match="version 3 is signed by 2 custodians"):
        chain(world, second, signed("alice", "bob", "carol"))
    assert chain(world, second, signed("alice", "bob", "dave")).current.number == 3


def test_a_custodian_with_an_rsa_key_signs_with_ssh_keygen(world: World, tmp_path: Path) -> None:
    key = rsa_custodian(tmp_path, "frank")
    frank = Custodian(name="frank", public_key=(tmp_path / "frank.pub").read_text())
    people = world.roster.model_dump()
    people["custodians"] = [*people["custodians"], frank.model_dump()]
    people["change"] = {"custodians": ("frank",), "quorum": 1}
    first = Roster.model_validate(people)
    second = Roster.model_validate({**people, "number": 2, "previous": first.digest})
    signature = sign_file(key, second.canonical(), Roster.TYPE)
    file = RosterFile(
        versions=(
            RosterVersion(document=first.canonical().decode()),
            RosterVersion(document=second.canonical().decode(), signatures=(signature,)),
        )
    )
    assert verify_chain(file, genesis=first.digest).current.number == 2


def test_the_first_version_is_the_pinned_one(world: World) -> None:
    other = Roster.model_validate({**world.roster.model_dump(), "issued": now() - timedelta(days=1)})
    file = RosterFile(versions=(RosterVersion(document=other.canonical().decode()),))
    with pytest.raises(RosterInvalid, match="is pinned"):
        verify_chain(file, genesis=world.roster.digest)


def test_a_roster_older_than_one_that_was_seen_is_refused(world: World) -> None:
    second = world.next_version(["alice", "bob", "carol"])
    assert chain(world, second, minimum=2).current.number == 2
    with pytest.raises(RosterInvalid, match="version 2 was seen before"):
        chain(world, minimum=2)


def test_versions_follow_each_other_without_gaps(world: World) -> None:
    second = world.next_version(["alice", "bob", "carol"])
    skipped = Roster.model_validate({**Roster.parse(second.document.encode()).model_dump(), "number": 3})
    unlinked = Roster.model_validate(
        {**Roster.parse(second.document.encode()).model_dump(), "previous": "sha256:" + "0" * 64}
    )
    for wrong in (skipped, unlinked, world.roster):
        document = wrong.canonical()
        signatures = tuple(world.custodians[n].sign_bytes(document, Roster.TYPE) for n in NAMES)
        with pytest.raises(RosterInvalid, match="does not continue the chain"):
            chain(world, RosterVersion(document=document.decode(), signatures=signatures))


def test_a_proposed_version_counts_for_nothing(world: World) -> None:
    file = RosterFile(versions=(first_of(world),), proposed=world.next_version(list(NAMES)))
    assert verify_chain(file, genesis=world.roster.digest).current == world.roster


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"versions":[]}', '{"versions":[{}]}', "\x00"])
def test_what_is_no_roster_file_is_refused(text: str) -> None:
    with pytest.raises(RosterInvalid):
        parse_roster_file(text)


def test_an_unknown_version_is_not_in_the_chain(world: World) -> None:
    with pytest.raises(RosterInvalid, match="not in this roster's chain"):
        chain(world).at("sha256:" + "0" * 64)


Change = Callable[[dict[str, Any]], None]
INCONSISTENT: dict[str, tuple[Change, str]] = {
    "a custodian's name twice": (lambda r: r["custodians"].append(r["custodians"][0]), "a name stands twice"),
    "a key for two custodians": (
        lambda r: r["custodians"].append({**r["custodians"][0], "name": "mallory"}),
        "the same key stands twice",
    ),
    "a custodian's key for a keystore": (
        lambda r: r["keystores"][0].update(public_key=r["custodians"][0]["public_key"]),
        "the same key stands twice",
    ),
    "the strongroom's key for a recipient": (
        lambda r: r["recipients"][0].update(public_key=r["strongrooms"][0]["public_key"]),
        "the same key stands twice",
    ),
    "an unknown custodian in governance": (
        lambda r: r["governance"][0].update(custodians=["alice", "bob", "carol", "mallory"]),
        "who are not custodians",
    ),
    "an unknown custodian of a keystore": (
        lambda r: r["keystores"][0].update(custodians=["mallory"]),
        "who are not custodians",
    ),
    "a quorum above the number of custodians": (lambda r: r["governance"][0].update(quorum=6), "asks for 6 of 5"),
    "a custodian twice in a quorum": (
        lambda r: r["change"].update(custodians=["alice", "alice", "bob"]),
        "asks for 3 of 2",
    ),
    "a quorum of nobody": (lambda r: r["change"].update(quorum=0), "greater than or equal to 1"),
    "a minimum threshold of one": (
        lambda r: r["governance"][0].update(minimum_threshold=1),
        "greater than or equal to 2",
    ),
    "two governance entries": (lambda r: r["governance"].append(r["governance"][0]), "two governance entries"),
    "a malformed key": (lambda r: r["custodians"][0].update(public_key="ssh-ed25519 AAAA"), "not an OpenSSH"),
    "a key of an unknown kind": (lambda r: r["custodians"][0].update(public_key="ssh-dss AAAA"), "not accepted"),
    "an unknown field": (lambda r: r.update(more=1), "Extra inputs"),
    "a name in capitals": (lambda r: r["custodians"][0].update(name="Alice"), "should match pattern"),
    "a lookalike name": (lambda r: r["custodians"][0].update(name="\u0430lice"), "should match pattern"),
    "a name with a line": (lambda r: r["custodians"][0].update(name="alice\n"), "should match pattern"),
}


@pytest.mark.parametrize(("change", "says"), INCONSISTENT.values(), ids=INCONSISTENT)
def test_a_roster_that_contradicts_itself_is_refused(world: World, change: Change, says: str) -> None:
    content = world.roster.model_dump(mode="json")
    change(content)
    with pytest.raises(ApprovalInvalid, match=says):
        Roster.parse(canonical_json(content))


def test_workers_and_recipients_have_ed25519_keys(world: World, tmp_path: Path) -> None:
    rsa_custodian(tmp_path, "rsa")
    for kind in ("recipients", "keystores", "strongrooms"):
        content = world.roster.model_dump(mode="json")
        content[kind][0]["public_key"] = (tmp_path / "rsa.pub").read_text()
        with pytest.raises(ApprovalInvalid, match="ssh-ed25519 key"):
            Roster.parse(canonical_json(content))


def test_a_revoked_key_is_nobodys(world: World) -> None:
    keys = [world.custodians["alice"], world.recipient, world.keystores["ks-1"], world.strongroom]
    revoked = tuple(identity.fingerprint for identity in keys)
    roster = world.roster.model_copy(update={"revoked": revoked})
    for before, after in (
        (world.roster.custodian("alice"), roster.custodian("alice")),
        (world.roster.custodian(revoked[0]), roster.custodian(revoked[0])),
        (world.roster.recipient("crypto"), roster.recipient("crypto")),
        (world.roster.recipient(revoked[1]), roster.recipient(revoked[1])),
        (world.roster.keystore("ks-1"), roster.keystore("ks-1")),
        (world.roster.strongroom("vault"), roster.strongroom("vault")),
        (world.roster.strongroom(revoked[3]), roster.strongroom(revoked[3])),
    ):
        assert (before is not None, after) == (True, None)


def test_a_masterkeys_own_governance_comes_before_everybodys(world: World) -> None:
    own = Governance(master_key="eu20", custodians=("alice", "bob"), quorum=2)
    roster = world.roster.model_copy(update={"governance": (*world.roster.governance, own)})
    assert roster.governance_of("eu20") == own
    assert roster.governance_of("eu10").master_key == "*"
    with pytest.raises(PlanInvalid, match="no governance quorum for MasterKey eu10"):
        world.roster.model_copy(update={"governance": (own,)}).governance_of("eu10")
