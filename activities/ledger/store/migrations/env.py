"""Run by Alembic: migrates over the connection that `activities.ledger.store.schema` hands it.

SQLite cannot alter a column: a later migration that must, uses `op.batch_alter_table`, which copies the
table, and then creates the table's triggers again, because the copy has none.
"""

from __future__ import annotations

from alembic import context

from activities.ledger.store.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
