"""A bundle is made from a ledger: the same bytes each time, and never from a ledger that contradicts itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError

from activities.ledger.bundle.export import export
from activities.ledger.bundle.places import Folder
from activities.ledger.bundle.verify import verify
from activities.ledger.store.ledger import Ledger
from activities.roster import RosterSource
from tests.bundle.conftest import Lived
from tests.bundle.life import NAME, QUORUM, Life, world_keystores
from tests.ledger.samples import tamper
from workflows.contracts.messages.ledger import BundleExported, ExportBundle, Stage
from workflows.contracts.trust.canonical import digest
from workflows.contracts.trust.errors import RosterInvalid
from workflows.contracts.trust.service_errors import BundleInvalid, LedgerCorrupt, NotKnown

ASK = ExportBundle(ceremony="eu10.init.0123456789ab", master_key=NAME)


def url_of(life: Life) -> str:
    return f"sqlite:///{life.ledger.file}"


def test_exporting_twice_gives_the_same_bytes(lived: Lived) -> None:
    assert lived.life.bundle() == lived.data


def test_what_is_only_staged_is_not_in_it(life: Life) -> None:
    first = life.init()
    ceremony = life.id_of("reshard")
    life.begin(ceremony, all_active=True)
    plan = life.world.reshard_plan(first, life.world.target_over(world_keystores(3)), ceremony=ceremony)
    stored = life.protect(plan, life.world.authority(plan, QUORUM), first)
    life.plan(plan)
    life.activities.stage_protection(Stage(ceremony=ceremony, attempt=1, protection=stored))
    data = life.bundle()
    assert [p["status"] for p in json.loads(data)["protections"]] == ["active"]
    assert stored.shards[0].ciphertext not in data.decode()
    verify(data, genesis=life.world.roster.digest)


def test_an_empty_ledger_has_no_bundle(life: Life) -> None:
    with pytest.raises(NotKnown, match="empty"):
        life.bundle()


def test_a_roster_with_a_proposal_and_a_signature_too_many_gives_the_same_bundle(life: Life) -> None:
    life.init()
    world = life.world
    version = world.next_version(QUORUM, recipients=())
    world.write_roster(version)
    before = life.bundle()
    stranger = world.stranger.sign_bytes(version.document.encode(), "masterkey-roster")
    spread = version.signatures[0].replace("\n", "\r\n")
    more = version.model_copy(update={"signatures": (spread, *version.signatures, stranger)})
    world.write_roster(more)
    file = json.loads(world.roster_file.read_text(encoding="utf-8"))
    world.roster_file.write_text(json.dumps({**file, "proposed": file["versions"][1]}), encoding="utf-8")
    assert life.bundle() == before
    verify(before, genesis=world.roster.digest)


def test_a_host_with_another_roster_exports_nothing(life: Life) -> None:
    life.init()
    with pytest.raises(RosterInvalid):
        export(life.ledger, RosterSource(life.world.roster_file, digest(b"another")))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE protections SET status = 'retired'",
        "UPDATE protections SET destroy_after = '2026-11-23T20:00:00Z'",
        "UPDATE master_keys SET kcv = 'ffffffffffffffffffffffffffffffff'",
        "UPDATE stops SET lifted_at = NULL, lifted_by = NULL",
        "DELETE FROM stops",
        "UPDATE events SET body = '{}' WHERE seq = 3",
        "DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)",
        "UPDATE shards SET ciphertext = 'none'",
        "DELETE FROM shards WHERE shard_index = 2",
        "UPDATE protections SET manifest = '{}'",
    ],
)
def test_a_ledger_that_contradicts_its_own_log_is_not_exported(life: Life, statement: str) -> None:
    life.init()
    life.order("lift", [life.stop().digest])
    life.bundle()
    tamper(url_of(life), statement)
    with pytest.raises(LedgerCorrupt):
        life.bundle()


def test_a_ledger_that_is_too_large_for_a_bundle_says_so(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    life.init()
    monkeypatch.setattr("activities.ledger.bundle.format.LIMIT", 1000)
    with pytest.raises(BundleInvalid, match="1000 are allowed"):
        life.bundle()


def test_a_ledger_in_either_database_has_a_bundle_that_verifies(ledger: Ledger, life: Life) -> None:
    living = Life(life.world, ledger)
    living.init()
    living.stop()
    found = verify(living.bundle(), genesis=life.world.roster.digest)
    assert [(entry.name, entry.stops) for entry in found.master_keys] == [(NAME, 1)]


def test_the_activity_writes_to_every_place_and_says_where(life: Life, tmp_path: Path) -> None:
    places = [Folder(tmp_path / "one"), Folder(tmp_path / "two")]
    living = Life(life.world, life.ledger, places)
    living.init()
    done = living.activities.export_bundle(ASK)
    head = life.ledger.verify_chain()
    name = f"masterkey-{head.events:06d}-{head.digest[7:19]}.json"
    assert done == BundleExported(places=tuple(str(place.directory / name) for place in places), digest=head.digest)
    assert [Path(place).read_bytes() for place in done.places] == [life.bundle()] * 2
    assert living.activities.export_bundle(ASK) == done
    assert [len(list(place.directory.iterdir())) for place in places] == [1, 1]


def test_without_a_place_nothing_is_written_and_that_is_no_failure(life: Life) -> None:
    assert life.activities.export_bundle(ASK) == BundleExported()


def test_a_place_that_fails_is_a_failure_to_try_again_and_the_others_are_written(life: Life, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    living = Life(life.world, life.ledger, [Folder(tmp_path / "file"), Folder(tmp_path / "good")])
    living.init()
    with pytest.raises(ApplicationError) as caught:
        living.activities.export_bundle(ASK)
    assert (caught.value.type, caught.value.non_retryable) == ("BundleUnavailable", False)
    assert str(tmp_path / "file") in caught.value.message
    assert len(list((tmp_path / "good").iterdir())) == 1
