"""Triggers that guard the tables, written once for both databases.

They stop a mistake, and an intruder who has no more than the application's rights to write rows. They do not
stop the owner of the tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from alembic import op

STAGED = "EXISTS (SELECT 1 FROM protections p WHERE p.protection = {row}.protection AND p.status = 'staged')"


class Rule(NamedTuple):
    """One trigger, in words that both databases understand.

    Attributes:
        name: of the trigger, and in PostgreSQL of its function.
        condition: SQL over OLD and NEW; where it holds, the statement is refused.
    """

    name: str
    table: str
    operation: str
    condition: str
    message: str


def differs(*columns: str) -> str:
    """The condition that one of these columns, none of which may be NULL, changes."""
    return " OR ".join(f"NEW.{column} <> OLD.{column}" for column in columns)


def create(rules: Iterable[Rule]) -> None:
    """Create triggers."""
    for rule in rules:
        if _sqlite():
            op.execute(
                f"CREATE TRIGGER {rule.name} BEFORE {rule.operation} ON {rule.table} FOR EACH ROW"
                f" WHEN {rule.condition} BEGIN SELECT RAISE(ABORT, '{rule.message}'); END"
            )
            continue
        # A WHEN clause may not look at other tables there, so the condition is in a function.
        row = "OLD" if rule.operation == "DELETE" else "NEW"
        op.execute(
            f"CREATE FUNCTION {rule.name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF {rule.condition} THEN RAISE EXCEPTION USING"
            f" MESSAGE = '{rule.message}', ERRCODE = 'integrity_constraint_violation'; END IF;"
            f" RETURN {row}; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {rule.name} BEFORE {rule.operation} ON {rule.table} FOR EACH ROW"
            f" EXECUTE FUNCTION {rule.name}()"
        )


def drop(rules: Iterable[Rule]) -> None:
    """Drop triggers; the table that they guard is still there."""
    for rule in rules:
        if _sqlite():
            op.execute(f"DROP TRIGGER {rule.name}")
        else:
            op.execute(f"DROP TRIGGER {rule.name} ON {rule.table}")
            op.execute(f"DROP FUNCTION {rule.name}()")


def drop_functions(rules: Iterable[Rule]) -> None:
    """Drop what is left of triggers in PostgreSQL once their tables are gone."""
    if not _sqlite():
        for rule in rules:
            op.execute(f"DROP FUNCTION {rule.name}()")


def create_truncate_function() -> None:
    """What `refuse_truncate` calls; SQLite knows no TRUNCATE."""
    if not _sqlite():
        op.execute(
            "CREATE FUNCTION ledger_refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION USING MESSAGE = 'a table of the ledger is never emptied',"
            " ERRCODE = 'integrity_constraint_violation'; END $$"
        )


def refuse_truncate(tables: Iterable[str]) -> None:
    """Refuse to empty tables."""
    if not _sqlite():
        for table in tables:
            op.execute(
                f"CREATE TRIGGER {table}_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT"
                " EXECUTE FUNCTION ledger_refuse_truncate()"
            )


def drop_truncate_function() -> None:
    """Drop what `create_truncate_function` made."""
    if not _sqlite():
        op.execute("DROP FUNCTION ledger_refuse_truncate()")


def _sqlite() -> bool:
    return bool(op.get_context().dialect.name == "sqlite")
