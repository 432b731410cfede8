from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from activities.ledger.log.records import ProtectionRecord
from activities.ledger.store import rows
from activities.ledger.store.ledger import Ledger
from tests.ledger.samples import (
    Clock,
    ceremony,
    make_master_key,
    prepare_reshard,
    protection,
    shards,
    sql,
    tamper,
    types,
)
from workflows.contracts.trust.canonical import digest
from workflows.contracts.trust.errors import MasterKeyError
from workflows.contracts.trust.service_errors import CeremonyEnded, LedgerConflict, LedgerCorrupt, NameTaken, NotKnown


def test_a_committed_protection_is_read_as_it_was_staged(ledger: Ledger) -> None:
    active = make_master_key(ledger)
    assert active == protection().model_copy(update={"status": "active"})
    assert ledger.protection("eu10", digest=active.digest) == active
    assert types(ledger) == ["ceremony-opened", "protection-staged", "protection-committed", "ceremony-closed"]
    [known] = ledger.master_keys()
    assert (known.master_key, known.kcv, known.ceremony, known.epoch) == ("eu10", active.kcv, "eu10.init.1", 1)


def test_nothing_serves_before_the_commit(ledger: Ledger) -> None:
    ledger.open_ceremony(ceremony())
    ledger.stage(protection())
    with pytest.raises(NotKnown):
        ledger.protection("eu10")
    assert ledger.protection("eu10", digest=protection().digest).status == "staged"
    assert ledger.master_keys() == []


def test_staging_twice_stages_once(ledger: Ledger) -> None:
    ledger.open_ceremony(ceremony())
    for _ in range(2):
        ledger.stage(protection())
    assert ledger.protections("eu10") == [protection()]
    assert types(ledger) == ["ceremony-opened", "protection-staged"]


def test_staging_again_after_the_commit_changes_nothing(ledger: Ledger) -> None:
    make_master_key(ledger)
    ledger.stage(protection())
    assert [record.status for record in ledger.protections("eu10")] == ["active"]


@pytest.mark.parametrize(
    "other",
    [
        protection(note="another manifest"),
        protection(shards=tuple(s.model_copy(update={"ciphertext": "AAAA"}) for s in shards(3))),
        protection(signature="another"),
    ],
    ids=["manifest", "shards", "signature"],
)
def test_an_attempt_stages_only_one_thing(ledger: Ledger, other: ProtectionRecord) -> None:
    ledger.open_ceremony(ceremony())
    ledger.stage(protection())
    with pytest.raises(LedgerConflict):
        ledger.stage(other)
    assert ledger.protections("eu10") == [protection()]


def test_an_attempts_number_is_not_used_again_after_a_discard(ledger: Ledger) -> None:
    ledger.open_ceremony(ceremony())
    ledger.stage(protection())
    ledger.discard_staged("eu10.init.1")
    with pytest.raises(LedgerConflict):
        ledger.stage(protection(note="another manifest"))
    assert ledger.protections("eu10") == []


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (protection(digest=digest(b"another")), LedgerCorrupt),
        (protection(shards=shards(2)), LedgerCorrupt),
        (protection(shards=(*shards(2), shards(2)[1])), LedgerCorrupt),
        (protection(status="active"), LedgerConflict),
        (protection(master_key="us20"), LedgerConflict),
        (protection("eu10.init.2"), NotKnown),
        (protection(threshold=3, count=2), LedgerConflict),
        (protection(mode="seal", threshold=2), LedgerConflict),
        (protection(mode="sss", threshold=1), LedgerConflict),
    ],
    ids=[
        "another digest",
        "a shard missing",
        "a shard twice",
        "not staged",
        "another MasterKey",
        "no ceremony",
        "threshold above count",
        "seal with a threshold",
        "sss without one",
    ],
)
def test_what_is_wrong_in_itself_is_not_staged(
    ledger: Ledger, record: ProtectionRecord, error: type[MasterKeyError]
) -> None:
    ledger.open_ceremony(ceremony())
    with pytest.raises(error):
        ledger.stage(record)
    assert ledger.protections("eu10") == []
    assert types(ledger) == ["ceremony-opened"]


def test_a_name_is_taken_for_ever(ledger: Ledger) -> None:
    make_master_key(ledger)
    ledger.open_ceremony(ceremony("eu10.init.2"))
    with pytest.raises(NameTaken):
        ledger.stage(protection("eu10.init.2"))


def test_of_two_inits_that_both_staged_the_first_to_commit_has_the_name(ledger: Ledger) -> None:
    for name in ("eu10.init.1", "eu10.init.2"):
        ledger.open_ceremony(ceremony(name))
        ledger.stage(protection(name))
    ledger.commit("eu10.init.2", 1)
    with pytest.raises(NameTaken):
        ledger.commit("eu10.init.1", 1)
    assert ledger.protection("eu10").ceremony == "eu10.init.2"


def test_only_init_makes_a_master_key(ledger: Ledger) -> None:
    ledger.open_ceremony(ceremony("eu10.reshard.1", action="reshard"))
    with pytest.raises(NotKnown):
        ledger.stage(protection("eu10.reshard.1"))


def test_committing_twice_commits_once(ledger: Ledger) -> None:
    make_master_key(ledger)
    ledger.commit("eu10.init.1", 1)
    assert types(ledger).count("protection-committed") == 1


def test_committing_again_after_it_was_replaced_does_not_bring_it_back(ledger: Ledger) -> None:
    make_master_key(ledger)
    staged = prepare_reshard(ledger)
    ledger.commit("eu10.reshard.1", 1)
    ledger.commit("eu10.init.1", 1)
    assert ledger.protection("eu10").digest == staged.digest


def test_what_was_never_staged_is_not_committed(ledger: Ledger) -> None:
    ledger.open_ceremony(ceremony())
    with pytest.raises(NotKnown):
        ledger.commit("eu10.init.1", 1)


def test_a_reshard_replaces_and_retires(ledger: Ledger) -> None:
    old = make_master_key(ledger)
    new = prepare_reshard(ledger)
    ledger.commit("eu10.reshard.1", 1)
    assert ledger.protection("eu10") == new.model_copy(update={"status": "active"})
    assert ledger.protection("eu10", digest=old.digest).status == "retired"
    assert [(p.epoch, p.status) for p in ledger.protections("eu10")] == [(1, "retired"), (2, "active")]
    assert ledger.master_keys()[0].epoch == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"kcv": "f" * 32},
        {"epoch": 1},
        {"predecessor": None},
        {"predecessor": digest(b"another")},
    ],
    ids=["another KCV", "an epoch that was there", "no predecessor", "another predecessor"],
)
def test_a_protection_that_does_not_follow_is_not_committed(ledger: Ledger, changes: dict[str, Any]) -> None:
    old = make_master_key(ledger)
    prepare_reshard(ledger, **changes)
    with pytest.raises(LedgerConflict):
        ledger.commit("eu10.reshard.1", 1)
    assert ledger.protection("eu10") == old


def test_a_protection_made_from_one_that_was_replaced_meanwhile_is_not_committed(ledger: Ledger) -> None:
    make_master_key(ledger)
    prepare_reshard(ledger, "eu10.reshard.1", epoch=2)
    winner = prepare_reshard(ledger, "eu10.reshard.2", epoch=3)
    ledger.commit("eu10.reshard.2", 1)
    with pytest.raises(LedgerConflict):
        ledger.commit("eu10.reshard.1", 1)
    assert ledger.protection("eu10").digest == winner.digest


def test_an_emergency_protection_stands_beside_the_primary_one(ledger: Ledger) -> None:
    primary = make_master_key(ledger)
    prepare_reshard(ledger, purpose="emergency", predecessor=None, mode="seal", threshold=1)
    ledger.commit("eu10.reshard.1", 1)
    assert ledger.protection("eu10") == primary
    assert ledger.protection("eu10", purpose="emergency").epoch == 2


def test_an_epoch_belongs_to_one_protection_whatever_its_purpose(ledger: Ledger) -> None:
    make_master_key(ledger)
    prepare_reshard(ledger, purpose="emergency", predecessor=None, epoch=1)
    with pytest.raises(LedgerConflict):
        ledger.commit("eu10.reshard.1", 1)


def test_the_other_attempts_of_a_ceremony_go_with_its_commit(ledger: Ledger, url: str) -> None:
    ledger.open_ceremony(ceremony())
    for attempt in (1, 2, 3):
        ledger.stage(protection(attempt=attempt))
    ledger.commit("eu10.init.1", 2)
    assert [p.attempt for p in ledger.protections("eu10")] == [2]
    assert sql(url, "SELECT count(*) FROM shards")[0][0] == 3
    with pytest.raises(NotKnown):
        ledger.commit("eu10.init.1", 3)


def test_a_late_activity_of_a_closed_ceremony_neither_stages_nor_commits(ledger: Ledger) -> None:
    ledger.open_ceremony(ceremony())
    ledger.stage(protection())
    ledger.close_ceremony("eu10.init.1", "expired")
    with pytest.raises(CeremonyEnded):
        ledger.commit("eu10.init.1", 1)
    with pytest.raises(CeremonyEnded):
        ledger.stage(protection(attempt=2))


def test_a_commit_that_dies_at_its_end_leaves_the_old_protection(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_master_key(ledger)
    staged = prepare_reshard(ledger)

    apply = rows.apply

    def apply_and_die(*arguments: Any) -> None:
        apply(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rows, "apply", apply_and_die)
        with pytest.raises(KeyboardInterrupt):
            ledger.commit("eu10.reshard.1", 1)
    assert ledger.protection("eu10") == old
    assert ledger.protection("eu10", digest=staged.digest).status == "staged"
    ledger.commit("eu10.reshard.1", 1)
    assert ledger.protection("eu10").digest == staged.digest


def test_discarding_deletes_what_is_staged_and_nothing_else(ledger: Ledger, url: str) -> None:
    active = make_master_key(ledger)
    prepare_reshard(ledger)
    ledger.stage(protection("eu10.reshard.1", 2, epoch=2, predecessor=active.digest))
    assert ledger.discard_staged("eu10.reshard.1") == 2
    assert ledger.discard_staged("eu10.reshard.1") == 0
    assert ledger.discard_staged("eu10.init.1") == 0
    assert ledger.protections("eu10") == [active]
    assert sql(url, "SELECT count(*) FROM shards")[0][0] == 3
    assert types(ledger).count("staged-discarded") == 1


def test_what_was_discarded_is_not_staged_again_and_a_later_attempt_is(ledger: Ledger) -> None:
    ledger.open_ceremony(ceremony())
    ledger.stage(protection(attempt=1))
    ledger.stage(protection(attempt=2))
    assert ledger.discard_staged("eu10.init.1") == 2
    with pytest.raises(LedgerConflict, match="discarded"):
        ledger.stage(protection(attempt=2))
    ledger.stage(protection(attempt=3))
    assert ledger.discard_staged("eu10.init.1") == 1
    ledger.verify_chain()


def test_leftovers_of_closed_ceremonies_are_found_by_age(ledger: Ledger, clock: Clock) -> None:
    for name in ("eu10.init.1", "us20.init.1", "ap30.init.1"):
        ledger.open_ceremony(ceremony(name))
        ledger.stage(protection(name))
    ledger.close_ceremony("us20.init.1", "failed")
    clock.advance(hours=1)
    ledger.close_ceremony("eu10.init.1", "expired")
    assert ledger.collect_staged(clock.now) == ["us20.init.1"]
    clock.advance(seconds=1)
    assert ledger.collect_staged(clock.now) == ["eu10.init.1", "us20.init.1"]
    ledger.discard_staged("us20.init.1")
    assert ledger.collect_staged(clock.now) == ["eu10.init.1"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda ledger: ledger.protection("us20"),
        lambda ledger: ledger.protection("eu10", purpose="emergency"),
        lambda ledger: ledger.protection("eu10", digest=digest(b"another")),
        lambda ledger: ledger.protection("us20", digest=protection().digest),
    ],
    ids=["MasterKey", "purpose", "digest", "digest of another MasterKey"],
)
def test_what_is_not_there_is_said_to_be_unknown(ledger: Ledger, ask: Callable[[Ledger], object]) -> None:
    make_master_key(ledger)
    with pytest.raises(NotKnown):
        ask(ledger)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE protections SET manifest = '{}'",
        "UPDATE protections SET digest = 'sha256:' || substr(digest, 9) || '0'",
        "UPDATE protections SET count = 2",
        "UPDATE protections SET predecessor = 'x'",
        "DELETE FROM shards WHERE shard_index = 1",
        "DELETE FROM shards WHERE shard_index = 3",
        "UPDATE shards SET shard_index = 4 WHERE shard_index = 3",
        "UPDATE shards SET wrapped_dek = 'not base64'",
        "INSERT INTO shards SELECT protection, 4, keystore, key_id, key_version, wrapped_dek, nonce, ciphertext"
        " FROM shards WHERE shard_index = 1",
    ],
)
def test_an_altered_protection_is_noticed_when_it_is_read(ledger: Ledger, url: str, statement: str) -> None:
    make_master_key(ledger)
    tamper(url, statement)
    with pytest.raises(LedgerCorrupt):
        ledger.protection("eu10")
    with pytest.raises(LedgerCorrupt):
        ledger.protections("eu10")


def test_what_was_altered_while_staged_is_not_committed(ledger: Ledger, url: str) -> None:
    ledger.open_ceremony(ceremony())
    ledger.stage(protection())
    tamper(url, "DELETE FROM shards WHERE shard_index = 2")
    with pytest.raises(LedgerCorrupt):
        ledger.commit("eu10.init.1", 1)
    assert ledger.master_keys() == []
