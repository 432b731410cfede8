"""Roster files that were once written: today's code verifies each, version by version, and always will.

`tests/data/roster` holds a chain of every format; files are added to it, never changed. Manifests and approvals name
the digest of the version that they were made under: a chain that no longer verifies takes every protection with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from activities.roster import RosterSource
from workflows.contracts.trust.canonical import canonical_json, digest
from workflows.contracts.trust.chain import parse_roster_file, signers_of, verify_chain
from workflows.contracts.trust.errors import RosterInvalid

DATA = Path(__file__).parent.parent / "data" / "roster"
KEPT = DATA / "version-1.json"
GENESIS = "sha256:17ff36c2b09e9db9f5bdebacb3815435d6e720170d5400c380a3653898743732"
NEWEST = "sha256:6df2acb0f80e06eeceef6b2bcff54c5acf858bba90cfddfba1fdd10c56b7aee7"


@pytest.fixture
def content() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(KEPT.read_text())
    return found


def test_a_kept_chain_verifies_from_its_pinned_digest() -> None:
    chain = RosterSource(KEPT, GENESIS, minimum=4).load()
    assert chain.digests[0] == GENESIS
    assert chain.digests[-1] == NEWEST
    assert [roster.number for roster in chain.versions] == [1, 2, 3, 4]


def test_a_kept_chain_says_what_it_said() -> None:
    first, second, third, fourth = RosterSource(KEPT, GENESIS).load().versions
    assert [custodian.name for custodian in first.custodians] == ["alice", "bob", "carol", "dave", "erin"]
    assert second.custodians[-1].public_key.startswith("ssh-rsa ")
    assert [keystore.offline is not None for keystore in second.keystores] == [False, False, False, False, True]
    assert second.recipients[0].master_keys == ("eu10", "us20")
    assert third.revoked == (first.strongrooms[0].fingerprint,)
    assert third.strongroom(first.strongrooms[0].fingerprint) is None
    assert (third.governance_of("us20").quorum, third.governance_of("eu10").quorum) == (2, 3)
    assert (fourth.change.quorum, len(fourth.change.custodians)) == (4, 5)


def test_signatures_of_both_kinds_of_key_are_known_in_a_kept_chain(content: dict[str, Any]) -> None:
    file = parse_roster_file(KEPT.read_text())
    versions = RosterSource(KEPT, GENESIS).load().versions
    signers = [
        signers_of(entry, before.change, before) for before, entry in zip(versions, file.versions[1:], strict=False)
    ]
    assert signers == [["alice", "bob", "carol"], ["alice", "bob", "frank"], ["alice", "bob", "frank"]]
    assert file.proposed is not None
    assert signers_of(file.proposed, versions[-1].change, versions[-1]) == ["bob"]


def test_every_byte_of_a_kept_version_counts(content: dict[str, Any]) -> None:
    for place in range(len(content["versions"])):
        altered = json.loads(json.dumps(content))
        entry = altered["versions"][place]
        entry["document"] = entry["document"].replace('"alice"', '"alicf"', 1)
        with pytest.raises(RosterInvalid):
            verify_chain(parse_roster_file(json.dumps(altered)), genesis=GENESIS)


def test_a_version_in_a_format_of_the_future_is_refused_and_not_passed_over(content: dict[str, Any]) -> None:
    document = json.loads(content["versions"][0]["document"])
    later = canonical_json({**document, "version": 2}).decode()
    content["versions"] = [{"document": later, "signatures": []}]
    with pytest.raises(RosterInvalid, match="roster version 1: not a valid masterkey-roster document: version"):
        verify_chain(parse_roster_file(json.dumps(content)), genesis=digest(later.encode()))
