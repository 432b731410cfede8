"""The event log in words: a name stands only where a signature verifies."""

from __future__ import annotations

import json

import pytest

from activities.ledger.log.describe import UNVERIFIED, describe_event
from activities.ledger.log.events import OWN
from activities.ledger.log.records import EventRecord
from tests.bundle.conftest import Lived
from workflows.contracts.trust.chain import RosterChain


@pytest.fixture(scope="module")
def chain(lived: Lived) -> RosterChain:
    return lived.verify().chain


def events(lived: Lived, type_: str = "") -> list[EventRecord]:
    return [event for event in lived.verify().bundle.events if type_ in ("", event.type)]


def test_every_event_of_a_whole_life_is_told(lived: Lived, chain: RosterChain) -> None:
    lines = [describe_event(event, chain) for event in events(lived)]
    assert not [line.words for line in lines if not line.words or "cannot be read" in line.words]
    # Nothing that is long or signed is poured out, and every kind of the ledger's own has words of its own.
    assert all("BEGIN SSH SIGNATURE" not in line.words and len(line.words) < 600 for line in lines)
    own = {line.event.type for line in lines if line.event.key.startswith(OWN)}
    assert {"protection-committed", "plan-made", "ceremony-closed", "stop-ordered", "stops-lifted"} <= own


def test_who_approved_proved_and_stopped_is_named(lived: Lived, chain: RosterChain) -> None:
    approvals = [describe_event(event, chain) for event in events(lived, "approval-recorded")]
    assert {name for line in approvals for name in line.who} >= {"alice", "bob", "carol"}
    assert all(line.words.startswith("approves plan sha256:") for line in approvals)
    proofs = [describe_event(event, chain) for event in events(lived, "data-key-proven")]
    assert all(line.who[0].startswith("ks-") and "can be given back" in line.words for line in proofs)
    [stop, *_] = [describe_event(event, chain) for event in events(lived, "stop-ordered")]
    assert stop.who
    assert "ordered to stop serving eu10" in stop.words


def test_an_altered_document_names_nobody(lived: Lived, chain: RosterChain) -> None:
    event = events(lived, "approval-recorded")[0]
    body = json.loads(event.body)
    body["document"] = body["document"].replace('"approve"', '"reject"')
    line = describe_event(event.model_copy(update={"body": json.dumps(body)}), chain)
    assert line.who == (UNVERIFIED,)
    assert "reject" not in line.words


def test_a_signature_by_one_who_may_not_names_nobody(lived: Lived, chain: RosterChain) -> None:
    proof, approval = events(lived, "data-key-proven")[0], events(lived, "approval-recorded")[0]
    body = {**json.loads(approval.body), "signature": json.loads(proof.body)["signature"]}
    assert describe_event(approval.model_copy(update={"body": json.dumps(body)}), chain).who == (UNVERIFIED,)


def test_a_document_of_another_ceremony_names_nobody(lived: Lived, chain: RosterChain) -> None:
    first, *_, last = events(lived, "approval-recorded")
    line = describe_event(first.model_copy(update={"body": last.body}), chain)
    assert line.who == (UNVERIFIED,)
    assert "approves" not in line.words


def test_an_event_that_cannot_be_read_says_so(lived: Lived, chain: RosterChain) -> None:
    event = events(lived, "protection-committed")[0]
    assert "cannot be read" in describe_event(event.model_copy(update={"body": "{}"}), chain).words
    made = events(lived, "plan-made")[0]
    assert (
        "cannot be read"
        in describe_event(made.model_copy(update={"body": '{"plan":"{}","deadline":null}'}), chain).words
    )
    signed = events(lived, "approval-recorded")[0]
    assert "cannot be read" in describe_event(signed.model_copy(update={"body": "[1]"}), chain).words
