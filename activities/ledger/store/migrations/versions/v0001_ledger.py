"""The first released schema: ceremonies, MasterKeys, protections, shards, stops, events, and what guards them."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from alembic import op

from activities.ledger.store.migrations import triggers
from activities.ledger.store.migrations.triggers import Guard, differs

revision = "0001"
down_revision = None
works_with = "0001"


def upgrade() -> None:
    """Create the tables, their triggers, the head of an empty chain, and who may use them."""
    _ceremonies()
    _protections()
    _events()
    triggers.create(GUARDS)
    triggers.refuse_truncate(sorted({guard.table for guard in GUARDS}))


def _text(*names: str, null: bool = False) -> Iterator[sa.Column[str]]:
    return (sa.Column(name, sa.Text(), nullable=null) for name in names)


def _numbers(*names: str) -> Iterator[sa.Column[int]]:
    return (sa.Column(name, sa.Integer(), autoincrement=False, nullable=False) for name in names)


def _sequence() -> sa.Column[int]:
    # 64 bits in both: SQLite's INTEGER has them, and its STRICT tables know no BIGINT.
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column("seq", kind, autoincrement=False, nullable=False)


def _key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=op.f(f"pk_{table}"))


def _reference(table: str, column: str, to: str, *, cascade: bool = False) -> sa.ForeignKeyConstraint:
    ondelete = "CASCADE" if cascade else None
    return sa.ForeignKeyConstraint([column], [to], name=op.f(f"fk_{table}_{column}"), ondelete=ondelete)


def _check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))


def _ceremonies() -> None:
    op.create_table(
        "ceremonies",
        *_text("ceremony", "workflow_id", "master_key", "action", "phase"),
        *_text("plan", "plan_digest", null=True),
        *_text("opened_at"),
        *_text("deadline", "closed_at", null=True),
        *_text("outcome", "detail"),
        _check(
            "ceremonies",
            "action",
            "action IN ('init', 'unseal', 'drill', 'seal', 'lift', 'reshard', 'recover', 'retire', 'destroy',"
            " 'import')",
        ),
        _check("ceremonies", "outcome", "outcome IN ('', 'done', 'refused', 'failed', 'expired')"),
        _check("ceremonies", "closed", "(outcome = '') = (closed_at IS NULL)"),
        _check("ceremonies", "plan", "(plan IS NULL) = (plan_digest IS NULL)"),
        _key("ceremonies", "ceremony"),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_ceremonies_master_key"), "ceremonies", ["master_key"])
    op.create_table(
        "master_keys",
        *_text("name", "kcv", "ceremony", "created_at"),
        _reference("master_keys", "ceremony", "ceremonies.ceremony"),
        _key("master_keys", "name"),
        sqlite_strict=True,
    )
    op.create_table(
        "stops",
        *_text("digest", "master_key", "document", "signature", "ordered_at"),
        *_text("lifted_at", "lifted_by", null=True),
        _check("stops", "lifted", "(lifted_at IS NULL) = (lifted_by IS NULL)"),
        _reference("stops", "master_key", "master_keys.name"),
        _reference("stops", "lifted_by", "ceremonies.ceremony"),
        _key("stops", "digest"),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_stops_master_key"), "stops", ["master_key"])


def _protections() -> None:
    op.create_table(
        "protections",
        *_text("protection", "master_key", "purpose", "mode"),
        *_numbers("threshold", "count", "epoch"),
        *_text("kcv"),
        *_text("predecessor", null=True),
        *_text("ceremony"),
        *_numbers("attempt"),
        *_text("manifest", "signature", "digest", "status"),
        *_text("destroy_after", null=True),
        _check("protections", "purpose", "purpose IN ('primary', 'emergency')"),
        _check("protections", "status", "status IN ('staged', 'active', 'retired', 'destroyed')"),
        _check("protections", "threshold", "threshold BETWEEN 1 AND count AND count <= 255"),
        _check("protections", "mode", "(mode = 'sss' AND threshold >= 2) OR (mode = 'seal' AND threshold = 1)"),
        _check("protections", "numbers", "epoch >= 1 AND attempt >= 1"),
        _check("protections", "digest", "substr(digest, 1, 7) = 'sha256:' AND length(digest) = 71"),
        _reference("protections", "ceremony", "ceremonies.ceremony"),
        _key("protections", "protection"),
        sa.UniqueConstraint("ceremony", "attempt", name=op.f("uq_protections_ceremony_attempt")),
        sa.UniqueConstraint("digest", name=op.f("uq_protections_digest")),
        sqlite_strict=True,
    )
    for name, column, condition in (
        ("ix_protections_one_active", "purpose", "status = 'active'"),
        ("ix_protections_one_for_each_epoch", "epoch", "status <> 'staged'"),
    ):
        where = sa.text(condition)
        columns = ["master_key", column]
        op.create_index(name, "protections", columns, unique=True, sqlite_where=where, postgresql_where=where)
    op.create_table(
        "shards",
        *_text("protection"),
        *_numbers("shard_index"),
        *_text("keystore", "key_id", "key_version", "wrapped_dek", "nonce", "ciphertext"),
        _check("shards", "index", "shard_index BETWEEN 1 AND 255"),
        _reference("shards", "protection", "protections.protection", cascade=True),
        _key("shards", "protection", "shard_index"),
        sqlite_strict=True,
    )


def _events() -> None:
    op.create_table(
        "events",
        _sequence(),
        *_text("ceremony", "key", "master_key", "type", "body", "at", "previous", "digest"),
        _key("events", "seq"),
        sa.UniqueConstraint("ceremony", "key", name=op.f("uq_events_ceremony_key")),
        sqlite_strict=True,
    )
    op.create_index(op.f("ix_events_master_key_type_seq"), "events", ["master_key", "type", "seq"])
    head = op.create_table(
        "chain_head",
        *_numbers("id"),
        _sequence(),
        *_text("digest"),
        _check("chain_head", "one_row", "id = 1"),
        _key("chain_head", "id"),
        sqlite_strict=True,
    )
    op.bulk_insert(head, [{"id": 1, "seq": 0, "digest": f"sha256:{'0' * 64}"}])
    compatibility = op.create_table(
        "compatibility",
        *_numbers("id"),
        *_text("oldest"),
        _check("compatibility", "one_row", "id = 1"),
        _key("compatibility", "id"),
        sqlite_strict=True,
    )
    op.bulk_insert(compatibility, [{"id": 1, "oldest": works_with}])


_IDENTITY = (
    *("protection", "master_key", "purpose", "mode", "threshold", "count", "epoch", "kcv", "ceremony", "attempt"),
    *("manifest", "signature", "digest"),
)
_OF = "SELECT 1 FROM protections p WHERE p.protection"

GUARDS = (
    Guard(
        "events_insert",
        "events",
        "INSERT",
        "NOT EXISTS (SELECT 1 FROM chain_head h WHERE h.seq + 1 = NEW.seq AND h.digest = NEW.previous)",
        "an event is appended to the head of the chain",
    ),
    Guard("events_update", "events", "UPDATE", "1 = 1", "an event is never changed"),
    Guard("events_delete", "events", "DELETE", "1 = 1", "an event is never deleted"),
    Guard(
        "chain_head_update",
        "chain_head",
        "UPDATE",
        "NEW.seq <> OLD.seq + 1 OR NOT EXISTS (SELECT 1 FROM events e WHERE e.seq = NEW.seq AND e.digest = NEW.digest)",
        "the head of the chain only moves to the next event",
    ),
    Guard("chain_head_delete", "chain_head", "DELETE", "1 = 1", "the head of the chain is never deleted"),
    Guard(
        "compatibility_update",
        "compatibility",
        "UPDATE",
        "NEW.oldest < OLD.oldest",
        "what older code can no longer use does not become usable",
    ),
    Guard("compatibility_delete", "compatibility", "DELETE", "1 = 1", "which code can use the ledger is always said"),
    Guard("master_keys_update", "master_keys", "UPDATE", "1 = 1", "a MasterKey is never changed"),
    Guard("master_keys_delete", "master_keys", "DELETE", "1 = 1", "a MasterKey is never deleted"),
    Guard(
        "ceremonies_update",
        "ceremonies",
        "UPDATE",
        "OLD.outcome <> '' OR (OLD.plan IS NOT NULL AND"
        " (NEW.plan IS NULL OR (NEW.plan <> OLD.plan AND OLD.action <> 'recover')))"
        f" OR {differs('ceremony', 'workflow_id', 'master_key', 'action', 'opened_at')}",
        "what a ceremony is never changes, nor does a closed one",
    ),
    Guard("ceremonies_delete", "ceremonies", "DELETE", "1 = 1", "a ceremony is never deleted"),
    Guard(
        "protections_insert",
        "protections",
        "INSERT",
        "NEW.status <> 'staged' OR NEW.destroy_after IS NOT NULL",
        "a protection is staged before it is committed",
    ),
    Guard(
        "protections_update",
        "protections",
        "UPDATE",
        f"coalesce(NEW.predecessor, '') <> coalesce(OLD.predecessor, '') OR {differs(*_IDENTITY)}",
        "a manifest is never changed",
    ),
    Guard(
        "protections_status",
        "protections",
        "UPDATE",
        "NOT (NEW.status = OLD.status"
        " OR (OLD.status = 'staged' AND NEW.status = 'active')"
        " OR (OLD.status = 'active' AND NEW.status = 'retired')"
        " OR (OLD.status = 'retired' AND NEW.status = 'destroyed'))",
        "a protection is staged, then active, then retired, then destroyed",
    ),
    Guard(
        "protections_destroy_after",
        "protections",
        "UPDATE",
        "coalesce(NEW.destroy_after, '') <> coalesce(OLD.destroy_after, '')"
        " AND NOT (OLD.status = 'active' AND NEW.status = 'retired')",
        "when a protection is destroyed is said when it is retired",
    ),
    Guard(
        "protections_delete",
        "protections",
        "DELETE",
        "OLD.status <> 'staged'",
        "a committed protection is never deleted",
    ),
    Guard(
        "shards_insert",
        "shards",
        "INSERT",
        f"NOT EXISTS ({_OF} = NEW.protection AND p.status = 'staged')",
        "a committed protection gets no other shards",
    ),
    Guard("shards_update", "shards", "UPDATE", "1 = 1", "a shard is never changed"),
    Guard(
        "shards_delete",
        "shards",
        "DELETE",
        f"EXISTS ({_OF} = OLD.protection AND p.status NOT IN ('staged', 'destroyed'))",
        "a shard is deleted when its protection is destroyed",
    ),
    Guard(
        "stops_insert",
        "stops",
        "INSERT",
        "NEW.lifted_at IS NOT NULL OR NEW.lifted_by IS NOT NULL",
        "a stop is ordered before it is lifted",
    ),
    Guard(
        "stops_update",
        "stops",
        "UPDATE",
        "OLD.lifted_at IS NOT NULL OR NEW.lifted_at IS NULL"
        f" OR {differs('digest', 'master_key', 'document', 'signature', 'ordered_at')}",
        "a stop is lifted once, and otherwise never changed",
    ),
    Guard("stops_delete", "stops", "DELETE", "1 = 1", "a stop is never deleted"),
)
