from __future__ import annotations

import json

import pytest

from activities.ledger.store.ledger import Ledger
from tests.ledger.samples import Clock, ceremony, make_master_key, order_stop, stop, tamper, types
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.service_errors import CeremonyEnded, LedgerConflict, LedgerCorrupt, NotKnown

LIFT = "eu10.lift.1"
ENDED = Signed(document="{}", signature="opaque")


def unsealed(ledger: Ledger, number: int = 1, name: str = "eu10", *, done: bool = True) -> str:
    """An unseal ceremony, and its id."""
    unseal = f"{name}.unseal.{number}"
    ledger.open_ceremony(ceremony(unseal, action="unseal"))
    if done:
        ledger.close_ceremony(unseal, "done")
    return unseal


def test_a_stop_is_recorded_once_as_it_was_signed(ledger: Ledger, clock: Clock) -> None:
    make_master_key(ledger)
    signed = order_stop(ledger)
    clock.advance(hours=1)
    ledger.order_stop("eu10.seal.1", "eu10", signed)
    ledger.close_ceremony("eu10.seal.1", "done")
    ledger.order_stop("eu10.seal.1", "eu10", signed)  # a repeated activity
    [found] = ledger.stops_in_force("eu10")
    assert (found.digest, found.document, found.signature) == (signed.digest, signed.document, "opaque")
    assert (found.lifted_at, found.lifted_by) == (None, None)
    [event] = [event for event in ledger.events() if event.type == "stop-ordered"]
    assert json.loads(event.body) == signed.model_dump()
    assert event.ceremony == "eu10.seal.1"


def test_a_stop_of_a_master_key_that_is_not_there_or_in_a_ceremony_that_is_over_is_refused(ledger: Ledger) -> None:
    make_master_key(ledger)
    with pytest.raises(NotKnown):
        order_stop(ledger, 1, "us20")
    with pytest.raises(NotKnown):
        ledger.order_stop("eu10.seal.9", "eu10", stop())
    ledger.close_ceremony("us20.seal.1", "failed")
    with pytest.raises(CeremonyEnded):
        ledger.order_stop("us20.seal.1", "us20", stop(2, "us20"))
    assert ledger.stops_in_force() == []


def test_a_lift_lifts_what_it_names_once_and_later_stops_stay_in_force(ledger: Ledger, clock: Clock) -> None:
    make_master_key(ledger)
    first, second = order_stop(ledger, 1), order_stop(ledger, 2)
    ledger.open_ceremony(ceremony(LIFT, action="lift"))
    for _ in range(2):
        ledger.lift_stops(LIFT, (first.digest,))
        clock.advance(hours=1)
    assert [found.digest for found in ledger.stops_in_force("eu10")] == [second.digest]
    ledger.close_ceremony(LIFT, "done")
    ledger.lift_stops(LIFT, (first.digest,))  # a repeated activity
    assert types(ledger).count("stops-lifted") == 1
    with pytest.raises(LedgerConflict):
        ledger.lift_stops(LIFT, (second.digest,))
    ledger.open_ceremony(ceremony("eu10.lift.2", action="lift"))
    ledger.lift_stops("eu10.lift.2", (first.digest, second.digest))
    assert ledger.stops_in_force() == []
    ledger.verify_chain()


def test_a_lift_of_a_stop_of_another_master_key_lifts_nothing(ledger: Ledger) -> None:
    make_master_key(ledger)
    make_master_key(ledger, "us20")
    ours, theirs = order_stop(ledger), order_stop(ledger, 1, "us20")
    ledger.open_ceremony(ceremony(LIFT, action="lift"))
    with pytest.raises(NotKnown):
        ledger.lift_stops(LIFT, (ours.digest, theirs.digest))
    assert len(ledger.stops_in_force()) == 2
    assert "stops-lifted" not in types(ledger)
    ledger.close_ceremony(LIFT, "refused")
    with pytest.raises(CeremonyEnded):
        ledger.lift_stops(LIFT, (ours.digest,))


def test_a_lift_also_names_stops_that_only_keystores_remember(ledger: Ledger) -> None:
    make_master_key(ledger)
    ours, forgotten = order_stop(ledger), stop(9)
    ledger.open_ceremony(ceremony(LIFT, action="lift"))
    ledger.lift_stops(LIFT, (ours.digest, forgotten.digest))
    assert ledger.stops_in_force() == []
    [event] = [event for event in ledger.events() if event.type == "stops-lifted"]
    assert json.loads(event.body) == {"stops": sorted((ours.digest, forgotten.digest))}


def test_an_altered_stop_is_noticed_when_it_is_read(ledger: Ledger, url: str) -> None:
    make_master_key(ledger)
    order_stop(ledger)
    tamper(url, "UPDATE stops SET document = '{}'")
    with pytest.raises(LedgerCorrupt):
        ledger.stops_in_force("eu10")


def test_a_stop_reaches_unseals_that_run_and_recipients_that_hold_the_master_key(ledger: Ledger) -> None:
    make_master_key(ledger)
    make_master_key(ledger, "us20")
    unsealed(ledger, 1, "us20", done=False)
    running = unsealed(ledger, 1, done=False)
    for number in (2, 3, 4):
        unseal = unsealed(ledger, number)
        for _ in range(2):
            assert ledger.hold(unseal, "eu10", f"masterkey/{unseal}/hold") == []
    ledger.hold("eu10.unseal.4", "eu10", "masterkey/eu10.unseal.4/again")
    ledger.hold("eu10.unseal.3", "eu10", "masterkey/eu10.unseal.3/hold", over=True)
    ledger.append("eu10.unseal.2", "looks-like", "holding-began", {}, "eu10")
    assert ledger.releases("eu10") == [
        f"unseal-{running}",
        "masterkey/eu10.unseal.2/hold",
        "masterkey/eu10.unseal.4/hold",
        "masterkey/eu10.unseal.4/again",
    ]


def test_whoever_begins_to_hold_a_stopped_master_key_is_told(ledger: Ledger) -> None:
    make_master_key(ledger)
    unseal = unsealed(ledger)
    signed = order_stop(ledger)
    assert [found.digest for found in ledger.hold(unseal, "eu10", "w")] == [signed.digest]


def test_the_end_of_a_holding_keeps_the_recipients_acknowledgement(ledger: Ledger) -> None:
    make_master_key(ledger)
    unseal = unsealed(ledger)
    ledger.hold(unseal, "eu10", "w")
    for _ in range(2):
        ledger.hold(unseal, "eu10", "w", ended=ENDED, over=True)
    [event] = [event for event in ledger.events() if event.type == "holding-ended"]
    assert json.loads(event.body) == {"workflow_id": "w", "ended": ENDED.model_dump()}
    with pytest.raises(LedgerConflict):
        ledger.hold(unseal, "eu10", "w", over=True)
    ledger.hold(unseal, "eu10", "w")  # a repeated activity, late
    assert ledger.releases("eu10") == []


def test_only_an_unseal_of_that_master_key_makes_a_holder(ledger: Ledger) -> None:
    make_master_key(ledger)
    unseal = unsealed(ledger)
    with pytest.raises(LedgerConflict):
        ledger.hold(unseal, "us20", "w")
    with pytest.raises(LedgerConflict):
        ledger.hold("eu10.init.1", "eu10", "w")
    with pytest.raises(NotKnown):
        ledger.hold("eu10.unseal.9", "eu10", "w")
