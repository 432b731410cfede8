"""Run by Alembic: migrates over the connection that `activities.ledger.store.schema` hands it; see README.md."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
