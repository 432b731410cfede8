from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from activities.ledger.store.ledger import Ledger
from tests.ledger.samples import START, Clock, ceremony, sql, tamper, types
from workflows.contracts.trust.canonical import Signed, digest
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.service_errors import CeremonyEnded, LedgerConflict, LedgerCorrupt, NotKnown

PLAN = '{"action":"init"}'
REQUEST = Signed(document="{}", signature="opaque")


def test_an_opened_ceremony_is_read_as_it_was_written(ledger: Ledger) -> None:
    record = ceremony()
    assert ledger.open_ceremony(record, REQUEST) == record
    ledger.set_plan(record.ceremony, "quorum", PLAN, START + timedelta(days=3))
    planned_too = {"phase": "quorum", "plan": PLAN, "plan_digest": digest(PLAN.encode())}
    deadline = START + timedelta(days=3)
    assert ledger.ceremony(record.ceremony) == record.model_copy(update={**planned_too, "deadline": deadline})
    opened, planned = ledger.events()
    assert (opened.type, json.loads(opened.body)) == (
        "ceremony-opened",
        {
            "request": {"document": "{}", "signature": "opaque"},
            "opened": {"action": "init", "opened_at": "2026-11-23T20:00:00Z", "workflow_id": "init-eu10.init.1"},
        },
    )
    body = {"plan": PLAN, "deadline": "2026-11-26T20:00:00Z"}
    assert (planned.type, json.loads(planned.body)) == ("plan-made", body)


def test_opening_again_changes_nothing_even_later(ledger: Ledger, clock: Clock) -> None:
    ledger.open_ceremony(ceremony())
    ledger.set_plan("eu10.init.1", "approving", PLAN)
    ledger.close_ceremony("eu10.init.1", "done")
    before = ledger.ceremony("eu10.init.1")
    clock.advance(hours=1)
    ledger.open_ceremony(ceremony())
    assert ledger.ceremony("eu10.init.1") == before
    assert types(ledger) == ["ceremony-opened", "plan-made", "ceremony-closed"]


@pytest.mark.parametrize(
    "changes",
    [
        {"workflow_id": "another"},
        {"master_key": "us20"},
        {"action": "drill"},
        {"opened_at": START + timedelta(seconds=1)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_ceremony_under_the_same_id_is_refused(ledger: Ledger, changes: dict[str, Any]) -> None:
    ledger.open_ceremony(ceremony())
    with pytest.raises(LedgerConflict):
        ledger.open_ceremony(ceremony(**changes))
    assert ledger.ceremony("eu10.init.1") == ceremony()


def test_the_same_ceremony_opened_with_another_event_is_refused(ledger: Ledger) -> None:
    ledger.open_ceremony(ceremony(), REQUEST)
    with pytest.raises(LedgerConflict):
        ledger.open_ceremony(ceremony())


@pytest.mark.parametrize(
    "changes",
    [
        {"outcome": "done", "closed_at": START},
        {"plan": PLAN, "plan_digest": digest(PLAN.encode())},
        {"deadline": START},
    ],
    ids=["closed", "plan", "deadline"],
)
def test_a_ceremony_begins_open_and_without_a_plan(ledger: Ledger, changes: dict[str, Any]) -> None:
    with pytest.raises(LedgerConflict, match="cannot begin"):
        ledger.open_ceremony(ceremony(**changes))
    assert ledger.events() == []


def test_a_phase_and_then_a_plan_and_a_deadline_are_recorded(ledger: Ledger) -> None:
    ledger.open_ceremony(ceremony())
    for _ in range(2):
        ledger.set_plan("eu10.init.1", "approving", PLAN, START + timedelta(hours=72))
    ledger.set_phase("eu10.init.1", "protecting")
    stored = ledger.ceremony("eu10.init.1")
    assert (stored.phase, stored.plan, stored.plan_digest) == ("protecting", PLAN, digest(PLAN.encode()))
    assert stored.deadline == START + timedelta(hours=72)


def test_a_plan_is_never_replaced(ledger: Ledger) -> None:
    ledger.open_ceremony(ceremony())
    ledger.set_plan("eu10.init.1", "approving", PLAN)
    with pytest.raises(LedgerConflict):
        ledger.set_plan("eu10.init.1", "approving", "{}")
    assert ledger.ceremony("eu10.init.1").plan == PLAN


def plan(ceremony: str, note: str) -> str:
    """A valid plan to lift a stop; that is enough for the ledger, which reads only whose it is."""
    made = Plan(
        action="lift",
        master_key="eu10",
        ceremony=ceremony,
        governance_quorum=1,
        source=None,
        target=None,
        recipient=None,
        strongroom="SHA256:" + "A" * 43,
        roster=digest(note.encode()),
        created=START,
        expires=START + timedelta(hours=1),
    )
    return made.canonical().decode()


def test_only_a_recovery_takes_another_plan_and_every_plan_is_an_event(ledger: Ledger) -> None:
    name = "eu10.recover.0123456789ab"
    ledger.open_ceremony(ceremony(name, action="recover"))
    plans = [plan(name, note) for note in ("first", "second")]
    for text in plans:
        for _ in range(2):
            ledger.set_plan(name, "quorum", text, START)
    assert ledger.ceremony(name).plan == plans[1]
    assert [json.loads(e.body)["plan"] for e in ledger.events() if e.type == "plan-made"] == plans
    with pytest.raises(LedgerConflict, match="was replaced"):
        ledger.set_plan(name, "quorum", plans[0], START)
    with pytest.raises(LedgerConflict):
        ledger.set_plan(name, "quorum", plan("eu10.recover.ba9876543210", "third"))
    with pytest.raises(ApprovalInvalid):
        ledger.set_plan(name, "quorum", "{}")
    ledger.close_ceremony(name, "refused")
    with pytest.raises(CeremonyEnded):
        ledger.set_plan(name, "quorum", plan(name, "fourth"))
    assert ledger.ceremony(name).plan == plans[1]


def test_closing_twice_closes_once(ledger: Ledger, clock: Clock) -> None:
    ledger.open_ceremony(ceremony())
    clock.advance(hours=1)
    ledger.close_ceremony("eu10.init.1", "refused", "rejected by a custodian")
    clock.advance(hours=1)
    ledger.close_ceremony("eu10.init.1", "refused", "rejected by a custodian")
    stored = ledger.ceremony("eu10.init.1")
    assert (stored.outcome, stored.detail) == ("refused", "rejected by a custodian")
    assert stored.closed_at == START + timedelta(hours=1)
    assert types(ledger) == ["ceremony-opened", "ceremony-closed"]


def test_a_closed_ceremony_stays_as_it_is(ledger: Ledger) -> None:
    ledger.open_ceremony(ceremony())
    ledger.set_phase("eu10.init.1", "approving")
    ledger.close_ceremony("eu10.init.1", "expired")
    ledger.set_phase("eu10.init.1", "approving")  # a repeated activity
    with pytest.raises(CeremonyEnded):
        ledger.set_phase("eu10.init.1", "protecting")
    with pytest.raises(LedgerConflict):
        ledger.close_ceremony("eu10.init.1", "done")


def test_an_unknown_ceremony_is_said_to_be_unknown(ledger: Ledger) -> None:
    with pytest.raises(NotKnown):
        ledger.ceremony("eu10.init.9")
    with pytest.raises(NotKnown):
        ledger.set_phase("eu10.init.9", "approving")
    with pytest.raises(NotKnown):
        ledger.close_ceremony("eu10.init.9", "done")


def test_ceremonies_are_listed_from_the_newest_and_by_master_key(ledger: Ledger) -> None:
    for hour, name in enumerate(["eu10.init.1", "us20.init.1", "eu10.init.2", "eu10.init.3"]):
        ledger.open_ceremony(ceremony(name, opened_at=START + timedelta(hours=hour)))
    ledger.close_ceremony("eu10.init.2", "failed")

    def names(**wanted: Any) -> list[str]:
        return [record.ceremony for record in ledger.ceremonies(**wanted)]

    assert names() == ["eu10.init.3", "eu10.init.2", "us20.init.1", "eu10.init.1"]
    assert names(master_key="eu10", open_only=True) == ["eu10.init.3", "eu10.init.1"]
    assert names(limit=1) == ["eu10.init.3"]


def test_an_altered_plan_is_noticed_when_it_is_read(ledger: Ledger, url: str) -> None:
    ledger.open_ceremony(ceremony())
    ledger.set_plan("eu10.init.1", "approving", PLAN)
    tamper(url, "UPDATE ceremonies SET plan = '{}'")
    with pytest.raises(LedgerCorrupt):
        ledger.ceremony("eu10.init.1")


def test_a_time_that_is_none_is_noticed_when_it_is_read(ledger: Ledger, url: str) -> None:
    ledger.open_ceremony(ceremony())
    tamper(url, "UPDATE ceremonies SET opened_at = 'yesterday'")
    with pytest.raises(LedgerCorrupt, match="opened_at"):
        ledger.ceremony("eu10.init.1")


def test_times_are_the_same_text_in_both_databases(ledger: Ledger, url: str) -> None:
    ledger.open_ceremony(ceremony())
    ledger.set_plan("eu10.init.1", "quorum", PLAN, START)
    assert [*sql(url, "SELECT opened_at, deadline, closed_at FROM ceremonies")[0]] == [
        "2026-11-23T20:00:00Z",
        "2026-11-23T20:00:00Z",
        None,
    ]


def test_a_ceremony_is_about_what_its_id_says(ledger: Ledger) -> None:
    # A bundle would be refused otherwise: whoever can start workflows could spoil it.
    good = ceremony("eu10.drill.0123456789ab", action="drill")
    for changes in ({"master_key": "us20"}, {"action": "unseal"}):
        with pytest.raises(LedgerConflict, match="the id"):
            ledger.open_ceremony(good.model_copy(update=changes))
    assert ledger.events() == []


def test_an_event_of_a_ceremony_is_about_its_masterkey(ledger: Ledger) -> None:
    ledger.open_ceremony(ceremony("eu10.drill.1", action="drill"))
    with pytest.raises(LedgerConflict, match="is about eu10"):
        ledger.append("eu10.drill.1", "k", "noted", {}, "us20")
    ledger.append("eu10.drill.1", "k", "noted", {}, "eu10")
