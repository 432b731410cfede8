from __future__ import annotations

import pytest

from activities.ledger.log.records import GENESIS, event_digest
from activities.ledger.store.ledger import Ledger
from tests.ledger.samples import Clock, ceremony, make_master_key, sql, tamper
from workflows.contracts.trust.canonical import canonical_json, digest
from workflows.contracts.trust.service_errors import LedgerConflict, LedgerCorrupt


def fill(ledger: Ledger, count: int = 6) -> None:
    for number in range(1, count + 1):
        ledger.append("eu10.drill.1", f"check-{number}", "shard-checked", {"index": number}, "eu10")


def test_each_event_names_the_one_before_it(ledger: Ledger) -> None:
    fill(ledger)
    events = ledger.events()
    assert [event.seq for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event.previous for event in events] == [GENESIS, *(event.digest for event in events[:-1])]
    assert ledger.verify_chain() == (6, events[-1].digest)


def test_an_empty_chain_verifies(ledger: Ledger) -> None:
    assert ledger.verify_chain() == (0, GENESIS)


def test_the_digest_is_of_the_canonical_json_that_the_documentation_says(ledger: Ledger) -> None:
    event = ledger.append("c.1", "k", "noted", {"b": 1, "a": ["x", None, True]}, "eu10")
    assert event.body == '{"a":["x",null,true],"b":1}'
    assert event.digest == digest(
        canonical_json(
            {
                "seq": 1,
                "ceremony": "c.1",
                "key": "k",
                "master_key": "eu10",
                "type": "noted",
                "body": digest(event.body.encode()),
                "at": "2026-11-23T20:00:00Z",
                "previous": GENESIS,
            }
        )
    )


def test_the_same_append_again_returns_what_is_there(ledger: Ledger, clock: Clock) -> None:
    first = ledger.append("c.1", "k", "noted", {"a": 1, "b": 2})
    clock.advance(hours=1)
    assert ledger.append("c.1", "k", "noted", {"b": 2, "a": 1}) == first
    assert ledger.events() == [first]


def test_the_same_key_in_another_ceremony_is_another_event(ledger: Ledger) -> None:
    ledger.append("c.1", "k", "noted", {})
    assert ledger.append("c.2", "k", "noted", {}).seq == 2
    assert ledger.append("", "k", "noted", {}).seq == 3


@pytest.mark.parametrize(
    ("type_", "body", "master_key"), [("noted", {"a": 2}, ""), ("other", {"a": 1}, ""), ("noted", {"a": 1}, "eu10")]
)
def test_another_event_under_the_same_key_is_refused(
    ledger: Ledger, type_: str, body: dict[str, int], master_key: str
) -> None:
    ledger.append("c.1", "k", "noted", {"a": 1})
    with pytest.raises(LedgerConflict):
        ledger.append("c.1", "k", type_, body, master_key)
    assert ledger.verify_chain().events == 1


def test_nobody_else_writes_under_the_ledgers_own_keys(ledger: Ledger) -> None:
    with pytest.raises(LedgerConflict):
        ledger.append("c.1", "ledger:ceremony-closed", "ceremony-closed", {})


@pytest.mark.parametrize(
    ("ceremony_", "key", "type_", "body"),
    [
        ("NO SUCH FORM", "k", "noted", {}),
        ("c.1", "", "noted", {}),
        ("c.1", "k" * 201, "noted", {}),
        ("c.1", "k", "Not a type", {}),
        ("c.1", "k", "noted", {"set": {1, 2}}),
        ("c.1", "k", "noted", {"number": float("nan")}),
    ],
)
def test_what_is_not_of_its_form_is_not_appended(
    ledger: Ledger, ceremony_: str, key: str, type_: str, body: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=r"."):
        ledger.append(ceremony_, key, type_, body)
    assert ledger.events() == []


def test_a_body_may_hold_what_json_can(ledger: Ledger) -> None:
    body = {"text": "\x00 \u2028 ü 🔑 ' \" \\ %s :x", "numbers": [0, -1, 1.5, 2**53 - 1]}
    assert ledger.append("c.1", "k", "noted", body).body.encode() == canonical_json(body)
    ledger.verify_chain()


def test_events_are_found_by_master_key_ceremony_and_number(ledger: Ledger) -> None:
    make_master_key(ledger, "eu10")
    make_master_key(ledger, "us20")
    assert [event.seq for event in ledger.events("us20")] == [5, 6, 7, 8]
    assert [event.seq for event in ledger.events(ceremony="eu10.init.1", after=1, limit=2)] == [2, 3]
    assert ledger.events("us20", "eu10.init.1") == []


@pytest.mark.parametrize(
    ("statements", "seq"),
    [
        (["UPDATE events SET body = '{\"index\":9}' WHERE seq = 3"], 3),
        (["UPDATE events SET type = 'x' WHERE seq = 3"], 3),
        (["UPDATE events SET key = 'x' WHERE seq = 3"], 3),
        (["UPDATE events SET ceremony = 'x' WHERE seq = 3"], 3),
        (["UPDATE events SET master_key = 'x' WHERE seq = 3"], 3),
        (["UPDATE events SET at = '2020-01-01T00:00:00Z' WHERE seq = 3"], 3),
        (["UPDATE events SET at = 'yesterday' WHERE seq = 3"], 3),
        (["UPDATE events SET digest = 'x' WHERE seq = 3"], 3),
        (["UPDATE events SET previous = 'x' WHERE seq = 3"], 3),
        (["DELETE FROM events WHERE seq = 3"], 3),
        (["DELETE FROM events WHERE seq = 1"], 1),
        (["UPDATE events SET seq = -seq WHERE seq = 3"], 1),
        (
            [
                "UPDATE events SET seq = 99 WHERE seq = 3",
                "UPDATE events SET seq = 3 WHERE seq = 4",
                "UPDATE events SET seq = 4 WHERE seq = 99",
            ],
            3,
        ),
        (
            [
                "DELETE FROM events WHERE seq = 3",
                "UPDATE events SET seq = 1 - seq WHERE seq > 3",
                "UPDATE events SET seq = -seq WHERE seq < 0",
            ],
            3,
        ),
        (["DELETE FROM events WHERE seq > 4"], 5),
        (["DELETE FROM events"], 1),
        (["DELETE FROM events WHERE seq > 4", "UPDATE chain_head SET seq = 4"], 4),
        (["UPDATE chain_head SET seq = 5"], 6),
        (["DELETE FROM chain_head"], 6),
    ],
    ids=lambda value: "; ".join(value) if isinstance(value, list) else str(value),
)
def test_a_change_to_the_chain_is_noticed_where_it_was_made(
    ledger: Ledger, url: str, statements: list[str], seq: int
) -> None:
    fill(ledger)
    tamper(url, *statements)
    with pytest.raises(LedgerCorrupt) as caught:
        ledger.verify_chain()
    assert caught.value.subject == f"event {seq}"


def test_an_event_forged_together_with_its_digest_is_noticed_at_the_next(ledger: Ledger, url: str) -> None:
    fill(ledger)
    third = ledger.events()[2]
    forged = event_digest({**third.model_dump(), "body": "{}"})
    tamper(url, f"UPDATE events SET body = '{{}}', digest = '{forged}' WHERE seq = 3")  # noqa: S608 - a test's own
    with pytest.raises(LedgerCorrupt, match="event 4"):
        ledger.verify_chain()


def test_a_ledger_put_back_to_an_earlier_day_shows_only_in_a_head_noted_elsewhere(ledger: Ledger, url: str) -> None:
    fill(ledger)
    noted = ledger.verify_chain()
    third = ledger.events()[2]
    tamper(
        url,
        "DELETE FROM events WHERE seq > 3",
        "UPDATE chain_head SET seq = 3, digest = (SELECT digest FROM events WHERE seq = 3)",
    )
    assert ledger.verify_chain() == (3, third.digest) != noted


def test_nothing_is_written_once_the_head_of_the_chain_is_gone(ledger: Ledger, url: str) -> None:
    tamper(url, "DELETE FROM chain_head")
    with pytest.raises(LedgerCorrupt):
        ledger.append("c.1", "k", "noted", {})
    with pytest.raises(LedgerCorrupt):
        ledger.open_ceremony(ceremony())


def test_an_event_that_is_none_is_noticed_when_it_is_read(ledger: Ledger, url: str) -> None:
    fill(ledger)
    tamper(url, "UPDATE events SET digest = 'x' WHERE seq = 3")
    with pytest.raises(LedgerCorrupt):
        ledger.events()


def test_events_are_stored_as_they_are_hashed(ledger: Ledger, url: str) -> None:
    fill(ledger, 1)
    assert [*sql(url, "SELECT body, at FROM events")[0]] == ['{"index":1}', "2026-11-23T20:00:00Z"]
