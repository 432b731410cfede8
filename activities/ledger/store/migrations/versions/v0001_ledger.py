"""The ledger: ceremonies, MasterKeys, protections, shards, events, and the triggers that guard them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from activities.ledger.store.migrations import triggers
from activities.ledger.store.migrations.triggers import STAGED, Rule, differs

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, their triggers, and the head of an empty chain."""
    _tables()
    triggers.create(RULES)
    triggers.create_truncate_function()
    triggers.refuse_truncate(sorted({rule.table for rule in RULES}))


def downgrade() -> None:
    """Drop everything; the triggers go with their tables."""
    for table in ("shards", "protections", "master_keys", "ceremonies", "chain_head", "events"):
        op.drop_table(table)
    triggers.drop_functions(RULES)
    triggers.drop_truncate_function()


def _text(name: str, *, null: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=null)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), autoincrement=False, nullable=False)


def _sequence() -> sa.Column[int]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column("seq", kind, autoincrement=False, nullable=False)


def _tables() -> None:
    op.create_table(
        "ceremonies",
        _text("ceremony"),
        _text("workflow_id"),
        _text("master_key"),
        _text("action"),
        _text("phase"),
        _text("plan", null=True),
        _text("plan_digest", null=True),
        _text("opened_at"),
        _text("deadline", null=True),
        _text("closed_at", null=True),
        _text("outcome"),
        _text("detail"),
        sa.CheckConstraint(
            "action IN ('init', 'unseal', 'seal', 'reshard', 'recover', 'drill')",
            name=op.f("ck_ceremonies_action"),
        ),
        sa.CheckConstraint(
            "outcome IN ('', 'done', 'refused', 'failed', 'expired')", name=op.f("ck_ceremonies_outcome")
        ),
        sa.CheckConstraint("(outcome = '') = (closed_at IS NULL)", name=op.f("ck_ceremonies_closed")),
        sa.CheckConstraint("(plan IS NULL) = (plan_digest IS NULL)", name=op.f("ck_ceremonies_plan")),
        sa.PrimaryKeyConstraint("ceremony", name=op.f("pk_ceremonies")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_ceremonies_master_key"), "ceremonies", ["master_key"])
    op.create_table(
        "master_keys",
        _text("name"),
        _text("kcv"),
        _text("ceremony"),
        _text("created_at"),
        sa.ForeignKeyConstraint(["ceremony"], ["ceremonies.ceremony"], name=op.f("fk_master_keys_ceremony")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_master_keys")),
        sqlite_strict=True,
    )
    op.create_table(
        "protections",
        _text("protection"),
        _text("master_key"),
        _text("purpose"),
        _text("mode"),
        _number("threshold"),
        _number("count"),
        _number("epoch"),
        _text("kcv"),
        _text("predecessor", null=True),
        _text("ceremony"),
        _number("attempt"),
        _text("manifest"),
        _text("signature"),
        _text("digest"),
        _text("status"),
        sa.CheckConstraint("purpose IN ('primary', 'emergency')", name=op.f("ck_protections_purpose")),
        sa.CheckConstraint(
            "status IN ('staged', 'active', 'retired', 'destroyed')", name=op.f("ck_protections_status")
        ),
        sa.CheckConstraint("threshold BETWEEN 1 AND count AND count <= 255", name=op.f("ck_protections_threshold")),
        sa.CheckConstraint(
            "(mode = 'sss' AND threshold >= 2) OR (mode = 'seal' AND threshold = 1)",
            name=op.f("ck_protections_mode"),
        ),
        sa.CheckConstraint("epoch >= 1 AND attempt >= 1", name=op.f("ck_protections_numbers")),
        sa.CheckConstraint(
            "substr(digest, 1, 7) = 'sha256:' AND length(digest) = 71", name=op.f("ck_protections_digest")
        ),
        sa.ForeignKeyConstraint(["ceremony"], ["ceremonies.ceremony"], name=op.f("fk_protections_ceremony")),
        sa.PrimaryKeyConstraint("protection", name=op.f("pk_protections")),
        sa.UniqueConstraint("ceremony", "attempt", name=op.f("uq_protections_ceremony_attempt")),
        sa.UniqueConstraint("digest", name=op.f("uq_protections_digest")),
        sqlite_strict=True,
    )
    for name, column, condition in (
        ("ix_protections_one_active", "purpose", "status = 'active'"),
        ("ix_protections_one_for_each_epoch", "epoch", "status <> 'staged'"),
    ):
        op.create_index(
            name,
            "protections",
            ["master_key", column],
            unique=True,
            sqlite_where=sa.text(condition),
            postgresql_where=sa.text(condition),
        )
    op.create_table(
        "shards",
        _text("protection"),
        _number("shard_index"),
        _text("keystore"),
        _text("key_id"),
        _text("key_version"),
        _text("wrapped_dek"),
        _text("nonce"),
        _text("ciphertext"),
        sa.CheckConstraint("shard_index BETWEEN 1 AND 255", name=op.f("ck_shards_index")),
        sa.ForeignKeyConstraint(
            ["protection"], ["protections.protection"], name=op.f("fk_shards_protection"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("protection", "shard_index", name=op.f("pk_shards")),
        sqlite_strict=True,
    )
    op.create_table(
        "events",
        _sequence(),
        _text("ceremony"),
        _text("key"),
        _text("master_key"),
        _text("type"),
        _text("body"),
        _text("at"),
        _text("previous"),
        _text("digest"),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_events")),
        sa.UniqueConstraint("ceremony", "key", name=op.f("uq_events_ceremony_key")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_events_master_key"), "events", ["master_key"])
    head = op.create_table(
        "chain_head",
        _number("id"),
        _sequence(),
        _text("digest"),
        sa.CheckConstraint("id = 1", name=op.f("ck_chain_head_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_chain_head")),
        sqlite_strict=True,
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0, "digest": f"sha256:{'0' * 64}"}])


_COMMITTED = STAGED.replace("p.status =", "p.status <>")

RULES = (
    Rule(
        "events_insert",
        "events",
        "INSERT",
        "NOT EXISTS (SELECT 1 FROM chain_head h WHERE h.seq + 1 = NEW.seq AND h.digest = NEW.previous)",
        "an event is appended to the head of the chain",
    ),
    Rule("events_update", "events", "UPDATE", "1 = 1", "an event is never changed"),
    Rule("events_delete", "events", "DELETE", "1 = 1", "an event is never deleted"),
    Rule(
        "chain_head_update",
        "chain_head",
        "UPDATE",
        "NEW.seq <> OLD.seq + 1 OR NOT EXISTS (SELECT 1 FROM events e WHERE e.seq = NEW.seq AND e.digest = NEW.digest)",
        "the head of the chain only moves to the next event",
    ),
    Rule("chain_head_delete", "chain_head", "DELETE", "1 = 1", "the head of the chain is never deleted"),
    Rule("master_keys_update", "master_keys", "UPDATE", "1 = 1", "a MasterKey is never changed"),
    Rule("master_keys_delete", "master_keys", "DELETE", "1 = 1", "a MasterKey is never deleted"),
    Rule(
        "ceremonies_update",
        "ceremonies",
        "UPDATE",
        "OLD.outcome <> '' OR (OLD.plan IS NOT NULL AND (NEW.plan IS NULL OR NEW.plan <> OLD.plan))"
        f" OR {differs('ceremony', 'workflow_id', 'master_key', 'action', 'opened_at')}",
        "what a ceremony is never changes, nor does a closed one",
    ),
    Rule("ceremonies_delete", "ceremonies", "DELETE", "1 = 1", "a ceremony is never deleted"),
    Rule(
        "protections_insert",
        "protections",
        "INSERT",
        "NEW.status <> 'staged'",
        "a protection is staged before it is committed",
    ),
    Rule(
        "protections_update",
        "protections",
        "UPDATE",
        "coalesce(NEW.predecessor, '') <> coalesce(OLD.predecessor, '') OR "
        + differs(
            "protection",
            "master_key",
            "purpose",
            "mode",
            "threshold",
            "count",
            "epoch",
            "kcv",
            "ceremony",
            "attempt",
            "manifest",
            "signature",
            "digest",
        ),
        "a manifest is never changed",
    ),
    Rule(
        "protections_status",
        "protections",
        "UPDATE",
        "NOT (NEW.status = OLD.status"
        " OR (OLD.status = 'staged' AND NEW.status = 'active')"
        " OR (OLD.status = 'active' AND NEW.status = 'retired')"
        " OR (OLD.status = 'retired' AND NEW.status = 'destroyed'))",
        "a protection is staged, then active, then retired, then destroyed",
    ),
    Rule(
        "protections_delete",
        "protections",
        "DELETE",
        "OLD.status <> 'staged'",
        "a committed protection is never deleted",
    ),
    Rule(
        "shards_insert",
        "shards",
        "INSERT",
        "NOT " + STAGED.format(row="NEW"),
        "a committed protection gets no other shards",
    ),
    Rule("shards_update", "shards", "UPDATE", "1 = 1", "a shard is never changed"),
    Rule(
        "shards_delete",
        "shards",
        "DELETE",
        _COMMITTED.format(row="OLD"),
        "a shard of a committed protection is never deleted",
    ),
)
