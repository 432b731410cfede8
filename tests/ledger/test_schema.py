from __future__ import annotations

import stat
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, create_engine, inspect
from sqlalchemy.exc import DatabaseError

from activities.ledger.store import schema
from activities.ledger.store.ledger import Ledger
from activities.ledger.store.models import Base
from tests.ledger.conftest import Shared
from tests.ledger.samples import ceremony, make_master_key, order_stop, prepare_reshard, sql, stop, tamper
from workflows.contracts.trust.errors import ConfigurationInvalid


def test_the_migrations_lead_to_what_the_models_say(url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        found = inspect(connection)
        for table in Base.metadata.tables.values():
            checks = {check["name"] for check in found.get_check_constraints(table.name)}
            assert checks == {str(c.name) for c in table.constraints if isinstance(c, CheckConstraint)}
            for index in table.indexes:
                [stored] = [i for i in found.get_indexes(table.name) if i["name"] == index.name]
                condition = stored.get("dialect_options", {}).get(f"{engine.dialect.name}_where")
                wanted = index.dialect_options[engine.dialect.name]["where"]
                assert (condition is None) == (wanted is None)
    engine.dispose()


def test_upgrading_again_changes_nothing(ledger: Ledger) -> None:
    active = make_master_key(ledger)
    ledger.upgrade()
    ledger.check()
    assert ledger.protection("eu10") == active


def test_a_database_without_a_ledger_is_said_to_be_one(empty_url: str) -> None:
    ledger = Ledger(empty_url)
    with pytest.raises(ConfigurationInvalid) as caught:
        ledger.check()
    assert "masterkey ledger upgrade" in caught.value.next_step
    with pytest.raises(ConfigurationInvalid) as caught:
        ledger.append("c.1", "k", "noted", {})
    assert "masterkey ledger upgrade" in caught.value.next_step
    ledger.close()


@pytest.fixture
def newer_url(empty_url: str) -> str:
    """A ledger to which newer code has added what older code need not know."""
    ledger = Ledger(empty_url)
    ledger.upgrade()
    make_master_key(ledger)
    ledger.close()
    sql(
        empty_url,
        "UPDATE alembic_version SET version_num = '9998'",
        "CREATE TABLE added (name TEXT NOT NULL)",
        "ALTER TABLE ceremonies ADD COLUMN added TEXT",
        "ALTER TABLE events ADD COLUMN added TEXT DEFAULT 'x' NOT NULL",
        "CREATE INDEX ix_added ON protections (kcv)",
    )
    return empty_url


def test_a_ledger_that_newer_code_has_only_expanded_is_read_and_written(newer_url: str) -> None:
    ledger = Ledger(newer_url)
    ledger.check()
    prepare_reshard(ledger)
    ledger.commit("eu10.reshard.1", 1)
    ledger.close_ceremony("eu10.reshard.1", "done")
    order_stop(ledger)
    assert ledger.verify_chain().events == 10
    assert [(p.epoch, p.status) for p in ledger.protections("eu10")] == [(1, "retired"), (2, "active")]
    ledger.close()


def test_an_older_version_leaves_what_newer_code_has_migrated_as_it_is(newer_url: str) -> None:
    ledger = Ledger(newer_url)
    ledger.upgrade()
    assert sql(newer_url, "SELECT version_num FROM alembic_version")[0][0] == "9998"
    ledger.close()


def test_a_ledger_that_newer_code_has_contracted_is_refused_before_anything_is_touched(newer_url: str) -> None:
    sql(newer_url, "UPDATE compatibility SET oldest = '9997'")
    ledger = Ledger(newer_url)
    before = sql(newer_url, "SELECT * FROM alembic_version")
    for refuses in (ledger.check, ledger.upgrade):
        with pytest.raises(ConfigurationInvalid, match=r"newer than this program.* needs 9997 or later"):
            refuses()
    assert sql(newer_url, "SELECT * FROM alembic_version") == before
    with pytest.raises(DatabaseError):  # and it is not made usable again
        sql(newer_url, "UPDATE compatibility SET oldest = '0001'")
    ledger.close()


def test_an_older_ledger_asks_for_an_upgrade(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "needed", lambda: schema.Schema("9999", "0001"))
    with pytest.raises(ConfigurationInvalid, match="not 9999") as caught:
        ledger.check()
    assert "masterkey ledger upgrade" in caught.value.next_step


def test_every_migration_says_which_code_works_with_it_and_none_takes_it_back() -> None:
    scripts = list(reversed(list(ScriptDirectory.from_config(schema._config()).walk_revisions())))
    said = [script.module.works_with for script in scripts]
    assert said == sorted(said)
    assert [script.revision for script in scripts] == [f"{number:04d}" for number in range(1, len(scripts) + 1)]
    assert all(works_with <= script.revision for works_with, script in zip(said, scripts, strict=True))


def test_the_file_is_for_its_owner_only_and_only_an_upgrade_makes_it(tmp_path: Path) -> None:
    file = tmp_path / "led%20 #ger.db"
    ledger = Ledger(f"sqlite:///{file}")
    with pytest.raises(ConfigurationInvalid):
        ledger.check()
    assert not file.exists()
    ledger.upgrade()
    ledger.append("c.1", "k", "noted", {})
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    ledger.close()


def test_a_ledger_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationInvalid):
        Ledger(f"sqlite:///{tmp_path}/nowhere/ledger.db").upgrade()


REFUSED = [
    "UPDATE events SET body = '{}'",
    "UPDATE events SET seq = seq + 100",
    "DELETE FROM events",
    "DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)",
    "INSERT INTO events SELECT 99, 'c', 'k', '', 'noted', '{}', at, digest, digest FROM events WHERE seq = 1",
    "INSERT INTO events SELECT seq + 1, 'c', 'k', '', 'noted', '{}', at, previous, digest FROM events"
    " WHERE seq = (SELECT max(seq) FROM events)",
    "UPDATE chain_head SET seq = seq - 1",
    "UPDATE chain_head SET digest = 'x'",
    "UPDATE chain_head SET seq = seq + 1",
    "DELETE FROM chain_head",
    "DELETE FROM compatibility",
    "UPDATE compatibility SET oldest = '0000'",
    "INSERT INTO chain_head VALUES (2, 0, 'x')",
    "UPDATE master_keys SET kcv = 'x'",
    "DELETE FROM master_keys",
    "UPDATE ceremonies SET outcome = 'failed'",
    "UPDATE ceremonies SET master_key = 'us20'",
    "DELETE FROM ceremonies",
    "UPDATE protections SET manifest = '{}'",
    "UPDATE protections SET signature = ''",
    "UPDATE protections SET predecessor = 'x'",
    "UPDATE protections SET threshold = 3",
    "UPDATE protections SET destroy_after = '2026-11-23T20:00:00Z' WHERE status = 'retired'",
    "UPDATE protections SET destroy_after = '2026-11-23T20:00:00Z' WHERE status = 'active'",
    "UPDATE protections SET destroy_after = '2026-11-23T20:00:00Z' WHERE status = 'staged'",
    "UPDATE protections SET status = 'staged' WHERE status = 'active'",
    "UPDATE protections SET status = 'destroyed' WHERE status = 'active'",
    "UPDATE protections SET status = 'active' WHERE status = 'retired'",
    "UPDATE protections SET status = 'active' WHERE status = 'staged'",
    "UPDATE protections SET status = 'nonsense' WHERE status = 'staged'",
    "DELETE FROM protections WHERE status = 'active'",
    "DELETE FROM protections WHERE status = 'retired'",
    "UPDATE shards SET ciphertext = ''",
    "DELETE FROM shards WHERE protection = 'eu10.init.1.1'",
    "DELETE FROM shards WHERE protection IN (SELECT protection FROM protections WHERE status = 'retired')",
    "UPDATE stops SET document = '{}'",
    "UPDATE stops SET ordered_at = 'x'",
    "UPDATE stops SET lifted_at = 'x'",
    "UPDATE stops SET lifted_at = NULL, lifted_by = NULL WHERE lifted_at IS NOT NULL",
    "UPDATE stops SET lifted_at = 'x' WHERE lifted_at IS NOT NULL",
    "DELETE FROM stops",
    "INSERT INTO stops VALUES ('d', 'us20', '{}', '', 'x', NULL, NULL)",
    "INSERT INTO stops VALUES ('d', 'eu10', '{}', '', 'x', 'x', 'eu10.lift.1')",
    "UPDATE ceremonies SET plan = '{}', plan_digest = 'x' WHERE ceremony = 'eu10.reshard.2'",
    "UPDATE ceremonies SET plan = NULL, plan_digest = NULL WHERE ceremony = 'eu10.recover.1'",
    "INSERT INTO shards SELECT protection, 9, '', '', '', '', '', '' FROM protections WHERE status = 'active'",
    "INSERT INTO shards SELECT protection, 1, '', '', '', '', '', '' FROM protections WHERE status = 'staged'",
    "INSERT INTO shards SELECT protection, 0, '', '', '', '', '', '' FROM protections WHERE status = 'staged'",
    "INSERT INTO shards SELECT protection, 256, '', '', '', '', '', '' FROM protections WHERE status = 'staged'",
]


def copy_of_staged(**values: object) -> str:
    """SQL that stages once more what is staged, with other values."""
    columns = [column.name for column in Base.metadata.tables["protections"].columns]
    fresh = {"protection": "'p'", "attempt": 9, "digest": f"'sha256:{'9' * 64}'"} | values
    chosen = ", ".join(str(fresh.get(column, column)) for column in columns)
    return f"INSERT INTO protections SELECT {chosen} FROM protections WHERE status = 'staged'"  # noqa: S608


REFUSED_COPIES: list[dict[str, object]] = [
    {"status": "'active'"},
    {"destroy_after": "'2026-11-23T20:00:00Z'"},
    {"digest": "digest"},
    {"attempt": "attempt"},
    {"protection": "protection"},
    {"threshold": 4},
    {"threshold": 0},
    {"count": 256},
    {"mode": "'plain'"},
    {"mode": "'seal'"},
    {"purpose": "'other'"},
    {"epoch": 0},
    {"digest": "'sha256:9'"},
    {"ceremony": "'nobody'"},
]


@pytest.fixture
def full_url(ledger: Ledger, url: str) -> str:
    """A ledger with a retired, an active and a staged protection, a stop in force and a lifted one."""
    make_master_key(ledger)
    prepare_reshard(ledger)
    ledger.commit("eu10.reshard.1", 1)
    prepare_reshard(ledger, "eu10.reshard.2")
    ledger.set_plan("eu10.reshard.2", "approving", "{}  ")
    ledger.open_ceremony(ceremony("eu10.recover.1", action="recover"))
    ledger.set_plan("eu10.recover.1", "approving", "{}")
    for number in (1, 2):
        order_stop(ledger, number)
    ledger.open_ceremony(ceremony("eu10.lift.1", action="lift"))
    ledger.lift_stops("eu10.lift.1", (stop(1).digest,))
    return url


def test_the_schema_refuses_what_contradicts_it_without_any_code(full_url: str, ledger: Ledger) -> None:
    def everything() -> tuple[object, ...]:
        stops = sql(full_url, "SELECT * FROM stops ORDER BY digest")
        return ledger.protections("eu10"), ledger.ceremonies(), ledger.verify_chain(), stops

    before = everything()
    for statement in [*REFUSED, *(copy_of_staged(**values) for values in REFUSED_COPIES)]:
        with pytest.raises(DatabaseError):
            sql(full_url, statement)
    assert everything() == before


def test_what_the_schema_refuses_is_otherwise_possible(full_url: str) -> None:
    sql(full_url, copy_of_staged())
    sql(full_url, "UPDATE ceremonies SET plan = '{ }', plan_digest = 'x' WHERE ceremony = 'eu10.recover.1'")
    sql(full_url, "UPDATE stops SET lifted_at = 'x', lifted_by = 'eu10.lift.1' WHERE lifted_at IS NULL")
    sql(
        full_url,
        "UPDATE protections SET status = 'destroyed' WHERE status = 'retired'",
        "DELETE FROM shards WHERE protection IN (SELECT protection FROM protections WHERE status = 'destroyed')",
    )
    soon = "UPDATE protections SET status = 'retired', destroy_after = 'x' WHERE status = 'active'"
    sql(full_url, soon)


def test_postgresql_does_not_truncate_a_table_either(postgresql: Shared) -> None:
    for table in Base.metadata.tables:
        with pytest.raises(DatabaseError, match="never emptied"):
            sql(postgresql.url, f"TRUNCATE {table} CASCADE")


def test_two_active_protections_of_one_purpose_are_impossible_even_without_triggers(full_url: str) -> None:
    with pytest.raises(DatabaseError):
        tamper(full_url, "UPDATE protections SET status = 'active' WHERE status = 'staged'")
    with pytest.raises(DatabaseError):
        tamper(full_url, "UPDATE protections SET status = 'retired', epoch = 1 WHERE status = 'staged'")


def test_a_staged_epoch_is_not_yet_taken(ledger: Ledger) -> None:
    make_master_key(ledger)
    prepare_reshard(ledger, "eu10.reshard.1")
    prepare_reshard(ledger, "eu10.reshard.2")
    assert [record.epoch for record in ledger.protections("eu10")] == [1, 2, 2]
