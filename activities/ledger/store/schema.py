"""The schema's version: create, migrate, check. Alembic, configured in code, with the migrations inside.

Revisions are numbers of four digits, compared as text. A ledger that newer code has migrated says which code can still
use it (`works_with` of its migrations): see `migrations/README.md`.
"""

from __future__ import annotations

from typing import NamedTuple

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, select, update

from activities.ledger.store.models import CompatibilityRow


class Schema(NamedTuple):
    """What a database has.

    Attributes:
        revision: to which it was migrated.
        oldest: the oldest revision whose code reads and writes it.
    """

    revision: str
    oldest: str


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", "activities.ledger.store:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def needed() -> Schema:
    """What this code makes of a database."""
    scripts = list(ScriptDirectory.from_config(_config()).walk_revisions())
    if not scripts:
        raise AssertionError("the package was installed without its migrations")
    return Schema(scripts[0].revision, max(script.module.works_with for script in scripts))


def found(connection: Connection) -> Schema | None:
    """What a database has; None if it has no ledger."""
    revision = MigrationContext.configure(connection).get_current_revision()
    if revision is None:
        return None
    return Schema(revision, connection.scalars(select(CompatibilityRow.oldest)).one())


def upgrade(connection: Connection) -> None:
    """Migrate upwards, in the transaction that the connection is in; what newer code has migrated stays as it is."""
    ours, theirs = needed(), found(connection)
    if theirs is None or theirs.revision < ours.revision:
        command.upgrade(_config(connection), "head")
        connection.execute(update(CompatibilityRow).values(oldest=ours.oldest))
