"""Triggers that guard the tables, written once for both databases.

They stop a mistake, and an intruder who has no more than the application's rights to write rows. They do not
stop the owner of the tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from alembic import op


class Guard(NamedTuple):
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


def create(guards: Iterable[Guard]) -> None:
    """Create triggers."""
    for guard in guards:
        if _sqlite():
            op.execute(
                f"CREATE TRIGGER {guard.name} BEFORE {guard.operation} ON {guard.table} FOR EACH ROW"
                f" WHEN {guard.condition} BEGIN SELECT RAISE(ABORT, '{guard.message}'); END"
            )
            continue
        # A WHEN clause may not look at other tables there, so the condition is in a function.
        row = "OLD" if guard.operation == "DELETE" else "NEW"
        op.execute(
            f"CREATE FUNCTION {guard.name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF {guard.condition} THEN RAISE EXCEPTION USING"
            f" MESSAGE = '{guard.message}', ERRCODE = 'integrity_constraint_violation'; END IF;"
            f" RETURN {row}; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {guard.name} BEFORE {guard.operation} ON {guard.table} FOR EACH ROW"
            f" EXECUTE FUNCTION {guard.name}()"
        )


def refuse_truncate(tables: Iterable[str]) -> None:
    """Refuse to empty tables; SQLite knows no TRUNCATE."""
    if _sqlite():
        return
    op.execute(
        "CREATE OR REPLACE FUNCTION ledger_refuse_truncate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION USING MESSAGE = 'a table of the ledger is never emptied',"
        " ERRCODE = 'integrity_constraint_violation'; END $$"
    )
    for table in tables:
        op.execute(
            f"CREATE TRIGGER {table}_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT"
            " EXECUTE FUNCTION ledger_refuse_truncate()"
        )


def _sqlite() -> bool:
    return bool(op.get_context().dialect.name == "sqlite")
