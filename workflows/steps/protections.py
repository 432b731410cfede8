"""A protection as the ledger gives it: its manifest, its rows, and the keys behind them. Nothing here is verified.

It would prove nothing: every keystore and the session verify the manifest for themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.messages.results import OldKey
from workflows.contracts.trust.canonical import decode64, digest
from workflows.contracts.trust.errors import CiphertextInvalid
from workflows.contracts.trust.fields import Purpose
from workflows.contracts.trust.plan import Source
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.service_errors import LedgerCorrupt


@dataclass(frozen=True)
class StoredManifest:
    """What the ledger gave, and the manifest in it."""

    stored: StoredProtection
    manifest: Manifest

    @classmethod
    def read(cls, stored: StoredProtection) -> Self:
        """Read the manifest; raises ApprovalInvalid if it is none."""
        return cls(stored, Manifest.parse(stored.manifest.document.encode()))

    @property
    def digest(self) -> str:
        """Of the manifest."""
        return self.stored.manifest.digest

    @property
    def keystores(self) -> list[str]:
        """Names, in the order of the shards."""
        return [row.keystore for row in self.stored.shards]

    def as_source(self) -> Source:
        """As a plan names what it opens, retires or destroys."""
        one = self.manifest
        return Source(manifest=self.digest, epoch=one.epoch, mode=one.mode, threshold=one.threshold, count=one.count)

    def check_rows(self) -> None:
        """Raise LedgerCorrupt if the rows are not the shards of the manifest."""
        rows = [(row.index, row.keystore) for row in self.stored.shards]
        if rows != [(shard.binding.index, shard.binding.keystore) for shard in self.manifest.shards]:
            raise LedgerCorrupt(f"the ledger's rows of {self.manifest.protection} are not those of its manifest")

    def check_ciphertext(self, index: int) -> None:
        """Raise CiphertextInvalid if what is stored of a shard, counted from 1, is not what the manifest describes."""
        row, described = self.stored.shards[index - 1], self.manifest.shards[index - 1]
        if digest(decode64(row.nonce) + decode64(row.ciphertext)) != described.ciphertext_hash:
            raise CiphertextInvalid(f"the stored shard {index} was altered or swapped", subject=row.keystore)


def by_purpose(active: Sequence[StoredProtection]) -> dict[Purpose, StoredManifest]:
    """The active protections of a MasterKey.

    Raises:
        LedgerCorrupt: the rows of one are not the shards of its manifest.
    """
    found = [StoredManifest.read(stored) for stored in active]
    for one in found:
        one.check_rows()
    return {one.manifest.purpose: one for one in found}


def keys_of(protections: Sequence[StoredManifest]) -> dict[str, tuple[str, ...]]:
    """The keys behind the shards of these protections, by keystore."""
    found: dict[str, tuple[str, ...]] = {}
    for one in protections:
        for shard in one.manifest.shards:
            name, key = shard.binding.keystore, shard.binding.key_id
            found[name] = tuple(sorted({*found.get(name, ()), key}))
    return found


def old_keys(old: Manifest, others: Sequence[Manifest]) -> tuple[OldKey, ...]:
    """The versions of KMS keys that still open a protection, and whether others need them too."""
    needed = {(s.binding.key_id, s.binding.key_version) for other in others for s in other.shards}
    return tuple(
        OldKey(
            keystore=shard.binding.keystore,
            key_id=shard.binding.key_id,
            key_version=shard.binding.key_version,
            in_use=(shard.binding.key_id, shard.binding.key_version) in needed,
        )
        for shard in old.shards
    )
