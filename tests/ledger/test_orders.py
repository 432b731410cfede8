from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from activities.ledger.store import rows
from activities.ledger.store.ledger import Ledger
from tests.ledger.samples import (
    Clock,
    ceremony,
    make_master_key,
    order_stop,
    prepare_reshard,
    protection,
    sql,
    stop,
    tamper,
    types,
)
from workflows.contracts.messages.results import DrillResult
from workflows.contracts.trust.canonical import digest
from workflows.contracts.trust.errors import PlanInvalid
from workflows.contracts.trust.service_errors import CeremonyEnded, LedgerConflict, LedgerCorrupt, NotKnown

RETIRE, DESTROY = "eu10.retire.1", "eu10.destroy.1"


def resharded(ledger: Ledger, retention: timedelta | None = None) -> str:
    """A MasterKey with a retired and an active protection; returns the digest of the retired one."""
    old = make_master_key(ledger)
    prepare_reshard(ledger)
    ledger.commit("eu10.reshard.1", 1, retention=retention)
    ledger.open_ceremony(ceremony(DESTROY, action="destroy"))
    return old.digest


def with_emergency(ledger: Ledger) -> str:
    """A MasterKey with a primary and an emergency protection; returns the digest of the latter."""
    make_master_key(ledger)
    staged = prepare_reshard(ledger, purpose="emergency", predecessor=None)
    ledger.commit("eu10.reshard.1", 1)
    ledger.open_ceremony(ceremony(RETIRE, action="retire"))
    return staged.digest


def shard_rows(url: str) -> int:
    return int(sql(url, "SELECT count(*) FROM shards")[0][0])


def drilled(ledger: Ledger, number: int, spare: int) -> None:
    name = f"eu10.drill.{number:012x}"
    result = DrillResult(
        ceremony=name, master_key="eu10", at=ledger.clock(), healthy=False, spare=spare, protections=()
    )
    ledger.append(name, "finished", "drill-finished", {"result": result.model_dump_json()}, "eu10")


def test_a_protection_is_retired_without_a_successor_once(ledger: Ledger) -> None:
    emergency = with_emergency(ledger)
    for _ in range(2):
        ledger.retire(RETIRE, emergency)
    found = ledger.protection("eu10", digest=emergency)
    assert (found.status, found.destroy_after, len(found.shards)) == ("retired", None, 3)
    [event] = [event for event in ledger.events() if event.type == "protection-retired"]
    assert (event.ceremony, json.loads(event.body)["digest"]) == (RETIRE, emergency)
    ledger.close_ceremony(RETIRE, "done")
    ledger.retire(RETIRE, emergency)  # a repeated activity
    ledger.verify_chain()


def test_the_last_protection_that_serves_is_not_retired(ledger: Ledger) -> None:
    active = make_master_key(ledger)
    ledger.open_ceremony(ceremony(RETIRE, action="retire"))
    with pytest.raises(PlanInvalid, match="last protection") as caught:
        ledger.retire(RETIRE, active.digest)
    assert "reshard" in caught.value.next_step
    assert ledger.protection("eu10") == active


def test_an_order_is_about_a_protection_of_its_ceremonys_master_key_in_the_state_for_it(ledger: Ledger) -> None:
    emergency = with_emergency(ledger)
    primary = ledger.protection("eu10").digest
    ledger.open_ceremony(ceremony("us20.retire.1", action="retire"))
    with pytest.raises(NotKnown):
        ledger.retire("us20.retire.1", emergency)
    with pytest.raises(NotKnown):
        ledger.retire(RETIRE, digest(b"another"))
    with pytest.raises(PlanInvalid, match="is active"):
        ledger.destroy(RETIRE, primary)
    ledger.retire(RETIRE, emergency)
    ledger.open_ceremony(ceremony("eu10.retire.2", action="retire"))
    with pytest.raises(PlanInvalid, match="is retired"):
        ledger.retire("eu10.retire.2", emergency)
    ledger.close_ceremony("eu10.retire.2", "refused")
    with pytest.raises(CeremonyEnded):
        ledger.retire("eu10.retire.2", primary)


def test_a_destroyed_protection_loses_its_shards_and_keeps_its_manifest(ledger: Ledger, url: str) -> None:
    old = resharded(ledger)
    before = ledger.protection("eu10", digest=old)
    assert shard_rows(url) == 6
    for _ in range(2):
        ledger.destroy(DESTROY, old)
    assert shard_rows(url) == 3
    assert ledger.protection("eu10", digest=old) == before.model_copy(update={"status": "destroyed", "shards": ()})
    assert [(p.epoch, p.status) for p in ledger.protections("eu10")] == [(1, "destroyed"), (2, "active")]
    [event] = [event for event in ledger.events() if event.type == "protection-destroyed"]
    body = json.loads(event.body)
    assert (event.ceremony, body["digest"], body["threshold"], body["scheduled"]) == (DESTROY, old, 2, None)
    assert body["keys"] == [
        {"keystore": shard.keystore, "key_id": shard.key_id, "key_version": ""} for shard in before.shards
    ]
    ledger.stage(protection())  # a repeated activity, years late
    ledger.commit("eu10.init.1", 1)
    assert ledger.protection("eu10", digest=old).status == "destroyed"
    ledger.verify_chain()


def test_a_destruction_that_dies_at_its_end_destroys_nothing(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = resharded(ledger)

    apply = rows.apply

    def apply_and_die(*arguments: Any) -> None:
        apply(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rows, "apply", apply_and_die)
        with pytest.raises(KeyboardInterrupt):
            ledger.destroy(DESTROY, old)
    assert (ledger.protection("eu10", digest=old).status, shard_rows(url)) == ("retired", 6)


def test_a_destroyed_protection_with_shards_and_a_retired_one_without_are_corrupt(ledger: Ledger, url: str) -> None:
    old = resharded(ledger)
    tamper(url, "UPDATE protections SET status = 'destroyed' WHERE status = 'retired'")
    with pytest.raises(LedgerCorrupt, match="still has shards"):
        ledger.protection("eu10", digest=old)
    tamper(
        url,
        "UPDATE protections SET status = 'retired' WHERE status = 'destroyed'",
        "DELETE FROM shards WHERE protection = 'eu10.init.1.1'",
    )
    with pytest.raises(LedgerCorrupt):
        ledger.protection("eu10", digest=old)


def test_what_a_reshard_retires_is_destroyed_when_its_time_has_come(ledger: Ledger, clock: Clock) -> None:
    old = resharded(ledger, timedelta(hours=48))
    due = clock.now + timedelta(hours=48)
    assert ledger.protection("eu10", digest=old).destroy_after == due
    [committed] = [e for e in ledger.events() if e.type == "protection-committed" and e.ceremony == "eu10.reshard.1"]
    assert json.loads(committed.body)["destroy_after"] == "2026-11-25T20:00:00Z"
    clock.advance(hours=47)
    assert ledger.destroy_due() == []
    clock.advance(hours=1)
    assert ledger.destroy_due() == [old]
    assert ledger.destroy_due() == []
    [event] = [event for event in ledger.events() if event.type == "protection-destroyed"]
    assert (event.ceremony, event.master_key) == ("", "eu10")
    assert json.loads(event.body)["scheduled"] == "2026-11-25T20:00:00Z"


def test_what_has_no_time_stays_until_its_destruction_is_ordered(ledger: Ledger, clock: Clock) -> None:
    old = resharded(ledger)
    clock.advance(days=3650)
    assert ledger.destroy_due() == []
    assert ledger.protection("eu10", digest=old).status == "retired"


def test_nothing_is_destroyed_on_schedule_while_a_stop_is_in_force(ledger: Ledger, clock: Clock) -> None:
    old = resharded(ledger, timedelta(0))
    order_stop(ledger)
    assert ledger.destroy_due() == []
    ledger.open_ceremony(ceremony("eu10.lift.1", action="lift"))
    ledger.lift_stops("eu10.lift.1", (stop().digest,))
    assert ledger.destroy_due() == [old]


def test_nothing_is_destroyed_on_schedule_while_the_active_ones_cannot_recover_the_master_key(ledger: Ledger) -> None:
    old = resharded(ledger, timedelta(0))
    drilled(ledger, 1, spare=-1)
    assert ledger.destroy_due() == []
    drilled(ledger, 2, spare=0)
    assert ledger.destroy_due() == [old]


def test_a_drill_from_before_the_newest_commit_holds_nothing_up(ledger: Ledger) -> None:
    make_master_key(ledger)
    drilled(ledger, 1, spare=-1)
    prepare_reshard(ledger)
    ledger.commit("eu10.reshard.1", 1, retention=timedelta(0))
    assert len(ledger.destroy_due()) == 1


def test_a_retention_without_anything_to_retire_says_nothing(ledger: Ledger) -> None:
    ledger.open_ceremony(ceremony())
    ledger.stage(protection())
    ledger.commit("eu10.init.1", 1, retention=timedelta(hours=1))
    assert ledger.protection("eu10").destroy_after is None
    assert types(ledger)[-1] == "protection-committed"


def test_a_protection_is_not_staged_with_a_time_of_destruction(ledger: Ledger, clock: Clock) -> None:
    ledger.open_ceremony(ceremony())
    with pytest.raises(LedgerConflict):
        ledger.stage(protection(destroy_after=clock.now))
