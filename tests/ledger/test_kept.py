"""A ledger of every released schema lives on: this version migrates it, reads it, verifies it and continues it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from activities.ledger.bundle.export import export
from activities.ledger.bundle.verify import verify
from activities.ledger.store import schema
from activities.ledger.store.ledger import Ledger
from tests.bundle.life import NAME
from tests.ledger.kept import Kept, kept_ledgers
from tests.ledger.samples import ceremony


@pytest.fixture(params=kept_ledgers(), ids=lambda kept: kept.folder.name)
def kept(request: pytest.FixtureRequest) -> Kept:
    found: Kept = request.param
    return found


@pytest.fixture
def old(kept: Kept, empty_url: str) -> Iterator[Ledger]:
    """The kept ledger, migrated."""
    kept.load(empty_url)
    ledger = Ledger(empty_url)
    ledger.upgrade()
    yield ledger
    ledger.close()


def test_there_is_a_ledger_of_every_schema_from_the_first_released_one_on() -> None:
    newest = int(schema.needed().revision)
    assert [kept.folder.name for kept in kept_ledgers()] == [f"{number:04d}" for number in range(1, newest + 1)]


def test_its_event_chain_is_the_one_that_was_noted(old: Ledger, kept: Kept) -> None:
    assert old.verify_chain() == (kept.noted["events"], kept.noted["head"])


def test_everything_in_it_is_read_and_verifies_as_a_bundle(old: Ledger, kept: Kept) -> None:
    told = [(record.epoch, record.purpose, record.status) for record in old.protections(NAME)]
    assert told == [
        (1, "primary", "retired"),
        (2, "primary", "active"),
        (3, "emergency", "destroyed"),
        (4, "primary", "staged"),
    ]
    assert {record.action for record in old.ceremonies()} >= {"init", "drill", "unseal", "seal", "lift", "reshard"}
    assert [record.ceremony for record in old.ceremonies(open_only=True)] == [kept.noted["staged"]]
    assert len(old.stops_in_force(NAME)) == 1
    verified = verify(export(old, kept.roster).data, genesis=kept.noted["genesis"])
    assert (verified.terms.head.events, verified.warnings) == (kept.noted["events"], ())


def test_its_life_goes_on(old: Ledger, kept: Kept) -> None:
    staged = kept.noted["staged"]
    old.record(staged, (), NAME, "committing")
    old.commit(staged, 1)
    old.close_ceremony(staged, "done", "after the upgrade")
    old.open_ceremony(ceremony("eu10.drill.0123456789ab", action="drill"))
    old.append("eu10.drill.0123456789ab", "k", "noted", {"after": "the upgrade"}, NAME)
    assert [(p.epoch, p.status) for p in old.protections(NAME)][1::2] == [(2, "retired"), (4, "active")]
    assert old.verify_chain().events == kept.noted["events"] + 4
    verified = verify(export(old, kept.roster).data, genesis=kept.noted["genesis"])
    assert [(one.epoch, one.status) for one in verified.master_keys[0].protections][-1] == (4, "active")
