"""The rest of a MasterKey's life: orders and recoveries, stops, and shards that are destroyed.

SQLite cannot alter a constraint, so `ceremonies` is made anew there: its rows are put aside, the table is
dropped and created again under its own name, and the rows go back. The foreign keys that point to it are
checked at the end of the transaction only, when what they point to is there again.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from activities.ledger.store.migrations import triggers
from activities.ledger.store.migrations.triggers import STAGED, Rule, differs
from activities.ledger.store.migrations.versions import v0001_ledger as before

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ACTIONS_BEFORE = "action IN ('init', 'unseal', 'seal', 'reshard', 'recover', 'drill')"
_ACTIONS = "action IN ('init', 'unseal', 'drill', 'seal', 'lift', 'reshard', 'recover', 'retire', 'destroy', 'import')"
_KEPT = STAGED.replace("p.status = 'staged'", "p.status NOT IN ('staged', 'destroyed')").format(row="OLD")

CHANGED = (
    Rule(
        "ceremonies_update",
        "ceremonies",
        "UPDATE",
        "OLD.outcome <> '' OR (OLD.plan IS NOT NULL AND"
        " (NEW.plan IS NULL OR (NEW.plan <> OLD.plan AND OLD.action <> 'recover')))"
        f" OR {differs('ceremony', 'workflow_id', 'master_key', 'action', 'opened_at')}",
        "what a ceremony is never changes, nor does a closed one",
    ),
    Rule(
        "protections_insert",
        "protections",
        "INSERT",
        "NEW.status <> 'staged' OR NEW.destroy_after IS NOT NULL",
        "a protection is staged before it is committed",
    ),
    Rule("shards_delete", "shards", "DELETE", _KEPT, "a shard is deleted when its protection is destroyed"),
)
"""Rules that were there before, by the same names."""

NEW = (
    Rule(
        "protections_destroy_after",
        "protections",
        "UPDATE",
        "coalesce(NEW.destroy_after, '') <> coalesce(OLD.destroy_after, '')"
        " AND NOT (OLD.status = 'active' AND NEW.status = 'retired')",
        "when a protection is destroyed is said when it is retired",
    ),
    Rule(
        "stops_insert",
        "stops",
        "INSERT",
        "NEW.lifted_at IS NOT NULL OR NEW.lifted_by IS NOT NULL",
        "a stop is ordered before it is lifted",
    ),
    Rule(
        "stops_update",
        "stops",
        "UPDATE",
        "OLD.lifted_at IS NOT NULL OR NEW.lifted_at IS NULL"
        f" OR {differs('digest', 'master_key', 'document', 'signature', 'ordered_at')}",
        "a stop is lifted once, and otherwise never changed",
    ),
    Rule("stops_delete", "stops", "DELETE", "1 = 1", "a stop is never deleted"),
)


def upgrade() -> None:
    """Widen what a ceremony may be and what may be deleted; add stops."""
    names = {rule.name for rule in CHANGED}
    triggers.drop(rule for rule in before.RULES if rule.name in names)
    _allow(_ACTIONS)
    op.add_column("protections", sa.Column("destroy_after", sa.Text(), nullable=True))
    op.drop_index(op.f("ix_events_master_key"), "events")
    op.create_index(op.f("ix_events_master_key_type_seq"), "events", ["master_key", "type", "seq"])
    op.create_table(
        "stops",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("master_key", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("ordered_at", sa.Text(), nullable=False),
        sa.Column("lifted_at", sa.Text(), nullable=True),
        sa.Column("lifted_by", sa.Text(), nullable=True),
        sa.CheckConstraint("(lifted_at IS NULL) = (lifted_by IS NULL)", name=op.f("ck_stops_lifted")),
        sa.ForeignKeyConstraint(["master_key"], ["master_keys.name"], name=op.f("fk_stops_master_key")),
        sa.ForeignKeyConstraint(["lifted_by"], ["ceremonies.ceremony"], name=op.f("fk_stops_lifted_by")),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_stops")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_stops_master_key"), "stops", ["master_key"])
    triggers.create((*CHANGED, *NEW))
    triggers.refuse_truncate(["stops"])


def downgrade() -> None:
    """Go back; refused by the constraints while there is a ceremony of a new kind. Stops stay in the event log."""
    ours = [rule for rule in (*CHANGED, *NEW) if rule.table != "stops"]
    triggers.drop(ours)
    op.drop_table("stops")
    triggers.drop_functions(rule for rule in NEW if rule.table == "stops")
    op.drop_index(op.f("ix_events_master_key_type_seq"), "events")
    op.create_index(op.f("ix_events_master_key"), "events", ["master_key"])
    op.drop_column("protections", "destroy_after")
    _allow(_ACTIONS_BEFORE)
    names = {rule.name for rule in CHANGED}
    triggers.create(rule for rule in before.RULES if rule.name in names)


def _allow(actions: str) -> None:
    """Let ceremonies be of these actions; called while the trigger `ceremonies_update` is dropped."""
    if op.get_context().dialect.name != "sqlite":
        op.drop_constraint(op.f("ck_ceremonies_action"), "ceremonies", type_="check")
        op.create_check_constraint(op.f("ck_ceremonies_action"), "ceremonies", actions)
        return
    op.execute("PRAGMA defer_foreign_keys = ON")
    op.execute("CREATE TABLE ceremonies_aside AS SELECT * FROM ceremonies")
    op.drop_table("ceremonies")
    op.create_table(
        "ceremonies",
        sa.Column("ceremony", sa.Text(), nullable=False),
        sa.Column("workflow_id", sa.Text(), nullable=False),
        sa.Column("master_key", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=True),
        sa.Column("plan_digest", sa.Text(), nullable=True),
        sa.Column("opened_at", sa.Text(), nullable=False),
        sa.Column("deadline", sa.Text(), nullable=True),
        sa.Column("closed_at", sa.Text(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.CheckConstraint(actions, name=op.f("ck_ceremonies_action")),
        sa.CheckConstraint(
            "outcome IN ('', 'done', 'refused', 'failed', 'expired')", name=op.f("ck_ceremonies_outcome")
        ),
        sa.CheckConstraint("(outcome = '') = (closed_at IS NULL)", name=op.f("ck_ceremonies_closed")),
        sa.CheckConstraint("(plan IS NULL) = (plan_digest IS NULL)", name=op.f("ck_ceremonies_plan")),
        sa.PrimaryKeyConstraint("ceremony", name=op.f("pk_ceremonies")),
        sqlite_strict=True,
    )
    op.execute("INSERT INTO ceremonies SELECT * FROM ceremonies_aside")
    op.drop_table("ceremonies_aside")
    op.create_index(op.f("ix_ceremonies_master_key"), "ceremonies", ["master_key"])
    # Its triggers went with the table; `ceremonies_update` is made by whoever called.
    triggers.create(rule for rule in before.RULES if rule.name == "ceremonies_delete")
