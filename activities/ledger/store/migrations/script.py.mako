"""${message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
# The oldest revision whose code reads and writes what this makes: see README.md.
works_with = "????"


def upgrade() -> None:
    """Migrate."""
    ${upgrades if upgrades else "pass"}
