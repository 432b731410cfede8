"""A ledger is made from a bundle, or brought up to date; nothing is overwritten, and nothing is half done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from activities.ledger.bundle import import_ as importing
from activities.ledger.bundle.export import export
from activities.ledger.bundle.import_ import ImportResult, append_events, import_bundle
from activities.ledger.bundle.verify import Verified, verify
from activities.ledger.store import rows as stored_rows
from activities.ledger.store.database import WriteSession
from activities.ledger.store.ledger import Ledger
from activities.roster import RosterSource
from tests.bundle.conftest import Lived, begin_life
from tests.bundle.life import NAME, QUORUM, Life, world_keystores
from tests.bundle.tampering import altered, rewritten
from tests.ledger.samples import make_master_key, sql, tamper
from tests.world import NAMES, World, now
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import ApprovalInvalid, RosterInvalid
from workflows.contracts.trust.import_approval import ImportApproval
from workflows.contracts.trust.service_errors import BundleInvalid, LedgerConflict, LedgerCorrupt

TABLES = ("ceremonies", "master_keys", "protections", "shards", "stops", "events", "chain_head")


def rows(url: str) -> dict[str, list[Any]]:
    return {table: [tuple(row) for row in sql(url, f"SELECT * FROM {table} ORDER BY 1, 2")] for table in TABLES}  # noqa: S608


def approvals(world: World, verified: Verified, names: Sequence[str] = QUORUM, **changes: Any) -> list[Signed]:
    fields: dict[str, Any] = {
        "terms": verified.terms,
        "roster": verified.chain.digest,
        "issued": now(),
        "expires": now() + timedelta(days=1),
    } | changes
    identities = [world.custodians[name] for name in names]
    return [one.sign(ImportApproval(custodian=one.fingerprint, **fields)) for one in identities]


def fill(ledger: Ledger, lived: Lived, **arguments: Any) -> ImportResult:
    verified = lived.verify()
    return import_bundle(ledger, verified, **{"approvals": approvals(lived.world, verified), **arguments})


def exported(ledger: Ledger, world: World) -> bytes:
    return export(ledger, world.source).data


# --- into an empty ledger ---


def test_an_empty_ledger_becomes_what_the_bundle_says_and_one_event_more(ledger: Ledger, lived: Lived) -> None:
    verified = lived.verify()
    done = fill(ledger, lived)
    assert (done.added, done.approved_by) == (verified.terms.head.events, ("alice", "bob", "carol"))
    assert ledger.verify_chain().events == verified.terms.head.events + 1
    original = lived.life.ledger
    assert ledger.protections(NAME) == [p for p in original.protections(NAME) if p.status != "staged"]
    assert ledger.master_keys() == original.master_keys()
    assert ledger.stops_in_force() == original.stops_in_force()
    assert ledger.events(limit=verified.terms.head.events) == original.events()
    told = {"phase": "imported"}
    theirs = [record.model_copy(update=told) for record in original.ceremonies()]
    assert sorted(ledger.ceremonies(), key=lambda c: c.ceremony) == sorted(theirs, key=lambda c: c.ceremony)
    last = ledger.events(after=verified.terms.head.events)[0]
    body = json.loads(last.body)
    assert (last.type, body["bundle"], len(body["approvals"])) == ("bundle-imported", verified.terms.bundle, 3)


def test_what_was_imported_exports_the_same_bundle_plus_that_event(ledger: Ledger, lived: Lived) -> None:
    fill(ledger, lived)
    again = exported(ledger, lived.world)
    before, after = json.loads(lived.data), json.loads(again)
    assert after["events"][:-1] == before["events"]
    for section in ("master_keys", "protections", "roster"):
        assert after[section] == before[section]
    found = lived.verify(again)
    assert found.master_keys == lived.verify().master_keys
    altered = rewritten(again, lambda whole: whole["events"][-1].update(body=_with_other_approval(whole)))
    with pytest.raises(BundleInvalid):
        lived.verify(altered)


def _with_other_approval(whole: dict[str, Any]) -> str:
    body = json.loads(whole["events"][-1]["body"])
    body["approvals"][0]["signature"] = body["approvals"][1]["signature"]
    return json.dumps(body, separators=(",", ":"), sort_keys=True)


def test_importing_twice_imports_once(ledger: Ledger, lived: Lived, url: str) -> None:
    fill(ledger, lived)
    before = rows(url)
    assert fill(ledger, lived).added == 0
    assert fill(ledger, lived, approvals=()).added == 0
    assert rows(url) == before


def test_life_goes_on_after_an_import(ledger: Ledger, lived: Lived) -> None:
    fill(ledger, lived)
    after = Life(lived.world, ledger)
    after._number = 100
    stop = ledger.stops_in_force(NAME)[0]
    # The world's people plan under the first version of their roster: here the ledger alone goes on.
    lift = after.id_of("lift")
    after.begin(lift)
    ledger.lift_stops(lift, (stop.digest,))
    active = ledger.protection(NAME)
    assert ledger.destroy_due() == []
    destroy = after.id_of("destroy")
    retired = next(p for p in ledger.protections(NAME) if p.status == "retired")
    after.begin(destroy, manifest=retired.digest)
    ledger.destroy(destroy, retired.digest)
    assert ledger.protection(NAME) == active
    ledger.verify_chain()


@pytest.mark.parametrize("names", [(), QUORUM[:2], ("alice", "alice", "alice")])
def test_an_empty_ledger_needs_the_quorum(ledger: Ledger, lived: Lived, url: str, names: tuple[str, ...]) -> None:
    before = rows(url)
    with pytest.raises(ApprovalInvalid, match="3 are needed"):
        fill(ledger, lived, approvals=approvals(lived.world, lived.verify(), names))
    assert rows(url) == before


def test_a_quorum_for_another_bundle_is_none(ledger: Ledger, lived: Lived) -> None:
    verified = lived.verify()
    other = verified.terms.model_copy(update={"bundle": verified.terms.head.digest})
    with pytest.raises(ApprovalInvalid, match="another bundle"):
        fill(ledger, lived, approvals=approvals(lived.world, verified, terms=other))


def test_an_import_that_dies_in_the_middle_leaves_nothing(
    ledger: Ledger, lived: Lived, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(url)
    applied = 0

    def die(*arguments: Any) -> None:
        nonlocal applied
        applied += 1
        if applied == 40:
            raise KeyboardInterrupt
        original(*arguments)

    original = stored_rows.apply
    with monkeypatch.context() as patch:
        patch.setattr(stored_rows, "apply", die)
        with pytest.raises(KeyboardInterrupt):
            fill(ledger, lived)
    assert rows(url) == before
    assert fill(ledger, lived).added > 40


def test_an_import_that_would_come_to_something_else_leaves_nothing(
    ledger: Ledger, lived: Lived, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(url)

    def forgets(session: WriteSession, events: Any, committed: Any) -> None:
        append_events(session, events[:-1], committed)

    monkeypatch.setattr(importing, "append_events", forgets)
    with pytest.raises(BundleInvalid, match="nothing was changed"):
        fill(ledger, lived)
    assert rows(url) == before


# --- into a ledger that holds something ---


def test_a_ledger_is_brought_up_to_date_without_a_quorum(life: Life, ledger: Ledger, url: str) -> None:
    genesis = life.world.roster.digest
    first = life.init()
    life.stop()
    early = verify(life.bundle(), genesis=genesis)
    import_bundle(ledger, early, approvals=approvals(life.world, early))
    restored = restore(ledger, life, url)
    stops = [stop.digest for stop in life.ledger.stops_in_force()]
    life.order("lift", stops)
    second = life.reshard(first, life.world.target_over(world_keystores(3), retention_hours=0))
    life.collect()
    life.refused_reshard(second, life.world.target_over(world_keystores(4), epoch=3))
    late = verify(life.bundle(), genesis=genesis)
    done = import_bundle(restored, late)
    assert (done.added, done.approved_by) == (late.terms.head.events - early.terms.head.events, ())
    assert [(p.epoch, p.status) for p in restored.protections(NAME)] == [(1, "destroyed"), (2, "active")]
    assert restored.stops_in_force() == []
    restored.verify_chain()


def restore(ledger: Ledger, life: Life, url: str) -> Ledger:
    """A ledger as it was copied from the original on that day: with the same log, and with no import in it."""
    last = ledger.verify_chain().events
    head = f"UPDATE chain_head SET seq = {last - 1}, digest = (SELECT digest FROM events WHERE seq = {last - 1})"  # noqa: S608
    tamper(url, f"DELETE FROM events WHERE seq = {last}", head)  # noqa: S608 - a test's own
    assert ledger.verify_chain() == life.ledger.verify_chain()
    return ledger


def test_what_was_staged_and_open_in_an_old_copy_is_finished_by_the_bundle(
    life: Life, ledger: Ledger, url: str
) -> None:
    genesis = life.world.roster.digest
    first = life.init()
    early = verify(life.bundle(), genesis=genesis)
    import_bundle(ledger, early, approvals=approvals(life.world, early))
    restored = restore(ledger, life, url)
    # The copy was made in the middle of two reshards: replay what the original did until then.
    life.refused_reshard(first, life.world.target_over(world_keystores(4), epoch=2))
    life.reshard(first, life.world.target_over(world_keystores(3), epoch=2))
    late = verify(life.bundle(), genesis=genesis)
    events = life.ledger.events()
    staged = [event.seq for event in events if event.type == "protection-staged"][-1]
    entries = {entry.signed.digest: entry for entry in late.bundle.protections}
    middle = [event for event in events if early.terms.head.events < event.seq <= staged]
    restored.write(lambda session: append_events(session, middle, entries))
    assert [p.status for p in restored.protections(NAME)] == ["active", "staged"]
    done = import_bundle(restored, late)
    assert done.added == len(events) - staged
    assert [(p.epoch, p.status) for p in restored.protections(NAME)] == [(1, "retired"), (2, "active")]


def test_the_ledgers_own_bundle_adds_nothing(lived: Lived) -> None:
    before = lived.life.ledger.verify_chain()
    assert import_bundle(lived.life.ledger, lived.verify()) == ImportResult(0)
    assert lived.life.ledger.verify_chain() == before


def test_an_older_bundle_is_refused(life: Life) -> None:
    first = life.init()
    early = verify(life.bundle(), genesis=life.world.roster.digest)
    life.drill(first)
    with pytest.raises(BundleInvalid, match="the bundle is older"):
        import_bundle(life.ledger, early, approvals=approvals(life.world, early))


def test_a_ledger_that_went_another_way_is_not_mended(life: Life, ledger: Ledger, url: str) -> None:
    first = life.init()
    early = verify(life.bundle(), genesis=life.world.roster.digest)
    import_bundle(ledger, early, approvals=approvals(life.world, early))
    before = rows(url)
    life.drill(first)
    late = verify(life.bundle(), genesis=life.world.roster.digest)
    number = early.terms.head.events + 1
    with pytest.raises(BundleInvalid, match=f"does not continue this ledger: event {number} differs"):
        import_bundle(ledger, late, approvals=approvals(life.world, late))
    assert rows(url) == before


def test_a_master_key_of_the_same_name_is_not_replaced_by_another(ledger: Ledger, lived: Lived, url: str) -> None:
    make_master_key(ledger, NAME)
    before = rows(url)
    with pytest.raises(BundleInvalid, match="another MasterKey eu10: its KCV differs"):
        fill(ledger, lived)
    assert rows(url) == before


def test_a_ledger_of_another_master_key_takes_no_bundle(ledger: Ledger, lived: Lived) -> None:
    make_master_key(ledger, "us20")
    with pytest.raises(BundleInvalid, match="event 1 differs"):
        fill(ledger, lived)


def test_an_altered_row_below_a_good_log_stops_the_import(life: Life, ledger: Ledger, url: str) -> None:
    first = life.init()
    early = verify(life.bundle(), genesis=life.world.roster.digest)
    import_bundle(ledger, early, approvals=approvals(life.world, early))
    restored = restore(ledger, life, url)
    tamper(url, "UPDATE protections SET status = 'retired'")
    life.drill(first)
    late = verify(life.bundle(), genesis=life.world.roster.digest)
    with pytest.raises(LedgerCorrupt, match="contradicts its own event log"):
        import_bundle(restored, late)


# --- what keystores serve ---


def kcv(lived: Lived) -> str:
    return lived.verify().master_keys[0].kcv


@pytest.mark.parametrize(
    "epochs",
    [{}, {"primary": 1}, {"primary": 4}, {"primary": 4, "emergency": 4}, {"emergency": 5}],
    ids=str,
)
def test_a_bundle_that_keystores_know_nothing_newer_than_is_imported(
    ledger: Ledger, lived: Lived, epochs: dict[str, int]
) -> None:
    assert fill(ledger, lived, served={NAME: (kcv(lived), epochs)}).added > 0


@pytest.mark.parametrize(
    "epochs",
    [{"primary": 5}, {"primary": 4, "emergency": 6}],
    ids=str,
)
def test_a_bundle_that_is_older_than_what_keystores_serve_is_refused(
    ledger: Ledger, lived: Lived, url: str, epochs: dict[str, int]
) -> None:
    before = rows(url)
    with pytest.raises(BundleInvalid, match="it is older"):
        fill(ledger, lived, served={NAME: (kcv(lived), epochs)})
    assert rows(url) == before


def test_a_bundle_of_another_master_key_than_keystores_serve_is_refused(ledger: Ledger, lived: Lived) -> None:
    with pytest.raises(BundleInvalid, match="another eu10"):
        fill(ledger, lived, served={NAME: ("0" * 32, {"primary": 1})})
    with pytest.raises(BundleInvalid, match="us20, and the bundle does not know it"):
        fill(ledger, lived, served={"us20": ("0" * 32, {"primary": 1})})


def test_keystores_that_heard_of_a_stop_only_hold_nothing_up(ledger: Ledger, lived: Lived) -> None:
    assert fill(ledger, lived, served={NAME: ("", {}), "us20": ("", {})}).added > 0


# --- rosters ---


def test_the_quorum_is_judged_by_the_newer_roster_of_the_host(ledger: Ledger, life: Life) -> None:
    life.init()
    verified = verify(life.bundle(), genesis=life.world.roster.digest)
    life.world.write_roster(life.world.next_version(NAMES[:3], recipients=()))
    ours = life.world.chain
    with pytest.raises(ApprovalInvalid, match="another roster"):
        import_bundle(ledger, verified, roster=ours, approvals=approvals(life.world, verified))
    good = approvals(life.world, verified, roster=ours.digest)
    assert import_bundle(ledger, verified, roster=ours, approvals=good).added > 0


def test_a_roster_that_forked_is_refused(ledger: Ledger, life: Life) -> None:
    life.init()
    life.world.write_roster(life.world.next_version(NAMES[:3], recipients=()))
    life.stop()
    verified = verify(life.bundle(), genesis=life.world.roster.digest)
    life.world.write_roster(life.world.next_version(NAMES[:3], strongrooms=()))
    ours = life.world.chain
    with pytest.raises(BundleInvalid, match="do not continue each other"):
        import_bundle(ledger, verified, roster=ours, approvals=approvals(life.world, verified))


def test_a_roster_older_than_the_one_that_was_in_force_is_noticed(life: Life) -> None:
    life.init()
    before = life.world.roster_file.read_text(encoding="utf-8")
    life.world.write_roster(life.world.next_version(NAMES[:3], recipients=()))
    life.stop()
    data = life.bundle()
    life.world.roster_file.write_text(before, encoding="utf-8")
    with pytest.raises(RosterInvalid, match="newer roster than this host's"):
        life.bundle()
    older = altered(data, ("roster",), lambda versions: versions[:1])
    with pytest.raises(BundleInvalid, match="was in force"):
        verify(older, genesis=life.world.roster.digest)


def test_a_bundle_of_another_installation_is_not_even_read(lived: Lived, life: Life) -> None:
    with pytest.raises(BundleInvalid, match="pinned"):
        verify(lived.data, genesis=life.world.roster.digest)


def test_two_installations_do_not_mix(tmp_path: Any, lived: Lived) -> None:
    other = begin_life(tmp_path / "other")
    other.init()
    source = RosterSource(other.world.roster_file, other.world.roster.digest)
    theirs = verify(export(other.ledger, source).data, genesis=source.genesis)
    with pytest.raises(BundleInvalid):
        import_bundle(lived.life.ledger, theirs)


def test_constraints_of_the_database_have_the_last_word(ledger: Ledger, lived: Lived, url: str) -> None:
    verified = lived.verify()
    events = list(verified.bundle.events)
    entries = {entry.signed.digest: entry for entry in verified.bundle.protections}
    with pytest.raises(LedgerConflict):
        ledger.write(lambda session: append_events(session, [events[1]], entries))
    assert rows(url)["events"] == []
