"""The tables. What can be a constraint of the schema is one, so that a bug in the code cannot break it.

Only `Text` and `Integer`, because SQLite's STRICT tables know no lengths. Times are RFC 3339 text in UTC,
whole seconds, in both databases: readable, sortable, and the very characters that the hash chain covers.

The triggers that make rows immutable are in the migrations; SQLAlchemy has no model for them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """Base of all models; names every constraint, so that migrations can find them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {str: Text, int: Integer}  # noqa: RUF012 - SQLAlchemy reads this very attribute


STRICT = {"sqlite_strict": True}
"""SQLite checks types only in STRICT tables."""


class CeremonyRow(Base):
    """One run of a workflow."""

    __tablename__ = "ceremonies"
    __table_args__: Any = (
        CheckConstraint(
            "action IN ('init', 'unseal', 'drill', 'seal', 'lift', 'reshard', 'recover', 'retire', 'destroy',"
            " 'import')",
            name="action",
        ),
        CheckConstraint("outcome IN ('', 'done', 'refused', 'failed', 'expired')", name="outcome"),
        CheckConstraint("(outcome = '') = (closed_at IS NULL)", name="closed"),
        CheckConstraint("(plan IS NULL) = (plan_digest IS NULL)", name="plan"),
        STRICT,
    )

    ceremony: Mapped[str] = mapped_column(primary_key=True)
    workflow_id: Mapped[str]
    master_key: Mapped[str] = mapped_column(index=True)
    action: Mapped[str]
    phase: Mapped[str]
    plan: Mapped[str | None]
    plan_digest: Mapped[str | None]
    opened_at: Mapped[str]
    deadline: Mapped[str | None]
    closed_at: Mapped[str | None]
    outcome: Mapped[str]
    detail: Mapped[str]


class MasterKeyRow(Base):
    """A MasterKey that was committed: the name is taken for ever, and the KCV never changes."""

    __tablename__ = "master_keys"
    __table_args__: Any = STRICT

    name: Mapped[str] = mapped_column(primary_key=True)
    kcv: Mapped[str]
    ceremony: Mapped[str] = mapped_column(ForeignKey(CeremonyRow.ceremony))
    created_at: Mapped[str]


class ProtectionRow(Base):
    """A manifest: staged, or committed under the one epoch that is its own.

    A staged one reserves no epoch, since two ceremonies may stage for the same one; the first to commit
    takes it. `master_key` references no row, since at init there is none before the commit. A destroyed one
    has no shards any more.
    """

    __tablename__ = "protections"
    __table_args__: Any = (
        CheckConstraint("purpose IN ('primary', 'emergency')", name="purpose"),
        CheckConstraint("status IN ('staged', 'active', 'retired', 'destroyed')", name="status"),
        CheckConstraint("threshold BETWEEN 1 AND count AND count <= 255", name="threshold"),
        CheckConstraint("(mode = 'sss' AND threshold >= 2) OR (mode = 'seal' AND threshold = 1)", name="mode"),
        CheckConstraint("epoch >= 1 AND attempt >= 1", name="numbers"),
        CheckConstraint("substr(digest, 1, 7) = 'sha256:' AND length(digest) = 71", name="digest"),
        UniqueConstraint("ceremony", "attempt"),
        UniqueConstraint("digest"),
        Index(
            "ix_protections_one_active",
            "master_key",
            "purpose",
            unique=True,
            sqlite_where="status = 'active'",
            postgresql_where="status = 'active'",
        ),
        Index(
            "ix_protections_one_for_each_epoch",
            "master_key",
            "epoch",
            unique=True,
            sqlite_where="status <> 'staged'",
            postgresql_where="status <> 'staged'",
        ),
        STRICT,
    )

    protection: Mapped[str] = mapped_column(primary_key=True)
    master_key: Mapped[str]
    purpose: Mapped[str]
    mode: Mapped[str]
    threshold: Mapped[int]
    count: Mapped[int]
    epoch: Mapped[int]
    kcv: Mapped[str]
    predecessor: Mapped[str | None]
    ceremony: Mapped[str] = mapped_column(ForeignKey(CeremonyRow.ceremony))
    attempt: Mapped[int]
    manifest: Mapped[str]
    signature: Mapped[str]
    digest: Mapped[str]
    status: Mapped[str]
    destroy_after: Mapped[str | None]

    shards: Mapped[list[ShardRow]] = relationship(order_by="ShardRow.index", passive_deletes="all")


class ShardRow(Base):
    """The ciphertext of one shard and the wrapped DEK that opens it, as base64."""

    __tablename__ = "shards"
    __table_args__: Any = (CheckConstraint("shard_index BETWEEN 1 AND 255", name="index"), STRICT)

    protection: Mapped[str] = mapped_column(ForeignKey(ProtectionRow.protection, ondelete="CASCADE"), primary_key=True)
    index: Mapped[int] = mapped_column("shard_index", primary_key=True, autoincrement=False)
    keystore: Mapped[str]
    key_id: Mapped[str]
    key_version: Mapped[str]
    wrapped_dek: Mapped[str]
    nonce: Mapped[str]
    ciphertext: Mapped[str]


class StopRow(Base):
    """A custodian's order to stop: it is lifted once, and otherwise never changed."""

    __tablename__ = "stops"
    __table_args__: Any = (
        CheckConstraint("(lifted_at IS NULL) = (lifted_by IS NULL)", name="lifted"),
        STRICT,
    )

    digest: Mapped[str] = mapped_column(primary_key=True)
    master_key: Mapped[str] = mapped_column(ForeignKey(MasterKeyRow.name), index=True)
    document: Mapped[str]
    signature: Mapped[str]
    ordered_at: Mapped[str]
    lifted_at: Mapped[str | None]
    lifted_by: Mapped[str | None] = mapped_column(ForeignKey(CeremonyRow.ceremony))


SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")
"""64 bits in both: SQLite's INTEGER has them, and its STRICT tables know no BIGINT."""


class EventRow(Base):
    """One link of the hash chain: appended, never changed, never deleted."""

    __tablename__ = "events"
    __table_args__: Any = (
        UniqueConstraint("ceremony", "key"),
        # What was recorded last of a kind, about a MasterKey.
        Index("ix_events_master_key_type_seq", "master_key", "type", "seq"),
        STRICT,
    )

    seq: Mapped[int] = mapped_column(SEQUENCE, primary_key=True, autoincrement=False)
    ceremony: Mapped[str]
    key: Mapped[str]
    master_key: Mapped[str]
    type: Mapped[str]
    body: Mapped[str]
    at: Mapped[str]
    previous: Mapped[str]
    digest: Mapped[str]


class ChainHeadRow(Base):
    """The one row that knows the last event; whoever writes to the ledger locks it first."""

    __tablename__ = "chain_head"
    __table_args__: Any = (CheckConstraint("id = 1", name="one_row"), STRICT)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(SEQUENCE)
    digest: Mapped[str]


class CompatibilityRow(Base):
    """The one row that says how old code may be that uses this ledger: the oldest revision of the schema it needs."""

    __tablename__ = "compatibility"
    __table_args__: Any = (CheckConstraint("id = 1", name="one_row"), STRICT)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    oldest: Mapped[str]
