"""Making another protection of a MasterKey that exists: what a reshard and a recovery share.

One session opens the old protection and makes the new one; the MasterKey leaves it only inside new shards. The old
protection serves until the new one is proven and committed.
"""

from __future__ import annotations

from collections.abc import Sequence

from workflows.calls.concurrency import gather
from workflows.calls.sessions import use_session
from workflows.contracts import names
from workflows.contracts.messages.protection import DekAnswer, StoredProtection
from workflows.contracts.messages.results import OldKey, ReshardResult
from workflows.contracts.messages.strongroom import Reshard, SessionOpened
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.difference import difference
from workflows.contracts.trust.errors import KeystoreError, LedgerCorrupt, MasterKeyError, NotKnown
from workflows.contracts.trust.fields import Purpose
from workflows.contracts.trust.plan import Plan, Target
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.quorum import custodians_of
from workflows.contracts.trust.roster import Roster, Strongroom
from workflows.steps.open import Opening, TargetFailed
from workflows.steps.protect import Protecting, passes
from workflows.steps.quorum import Quorum


class Active:
    """An active protection: what the ledger gave, and its manifest, which keystores and session verify.

    Raises:
        LedgerCorrupt: its rows are not the shards of its manifest.
    """

    def __init__(self, stored: StoredProtection) -> None:
        self.stored = stored
        self.manifest = Manifest.parse(stored.manifest.document.encode())
        rows = [(row.index, row.keystore) for row in stored.shards]
        if rows != [(shard.binding.index, shard.binding.keystore) for shard in self.manifest.shards]:
            raise LedgerCorrupt(f"the ledger's rows of {self.manifest.protection} are not those of its manifest")

    @property
    def digest(self) -> str:
        """Of the manifest."""
        return self.stored.manifest.digest

    @property
    def keystores(self) -> list[str]:
        """Names, in the order of the shards."""
        return [row.keystore for row in self.stored.shards]


def by_purpose(active: Sequence[StoredProtection]) -> dict[Purpose, Active]:
    """The active protections of a MasterKey."""
    found = [Active(stored) for stored in active]
    return {one.manifest.purpose: one for one in found}


class Resharding(Opening, Protecting):
    """A ceremony that opens one protection to make another."""

    def begin_quorum(self, plan: Plan, source: Active, predecessor: Active | None, roster: Roster) -> None:
        """Ask the governance quorum, and custodians of as many shards as must be opened, about a plan."""
        manifest = source.manifest
        custody = custodians_of(plan, manifest)
        self.quorum = Quorum(plan, roster, custody, manifest.threshold if custody else 0)
        assert plan.target is not None  # noqa: S101 - these plans have one
        self.changes = difference(predecessor.manifest if predecessor else None, plan.target)
        self.open_what(manifest, roster)

    async def remake(
        self, plan: Plan, source: Active, roster: Roster, strongroom: Strongroom
    ) -> tuple[StoredProtection, tuple[Signed, ...]]:
        """Open, protect anew, stage and prove; again and again while what fails may pass.

        Returns:
            The staged protection, and every keystore's proof.
        """
        target = plan.target
        assert target is not None  # noqa: S101 - these plans have one
        while True:
            stored = await self.open_until_done(
                plan,
                source.manifest,
                strongroom,
                "reshard",
                "reconstructing",
                lambda opened: self._attempt(opened, source, target),
            )
            await self.enter("proving", flush=True)
            try:
                return stored, await self.prove(stored, roster, plan)
            except KeystoreError as error:
                if self.now() >= plan.expires:
                    raise
                self.target_failed(error)
            await self.rest(plan)

    async def _attempt(self, opened: SessionOpened, source: Active, target: Target) -> StoredProtection:
        authority = self.authority()

        async def generate() -> tuple[DekAnswer, ...]:
            try:
                return await self.generate_data_keys(opened, target, authority)
            except MasterKeyError as error:
                raise TargetFailed(error) from None

        opening = self.ask_for_data_keys(opened, source.manifest, source.stored, authority)
        given, deks = await gather([opening, generate()])
        request = Reshard(
            session=opened.session, authority=authority, protection=source.stored, opened=given, deks=deks
        )
        return await self.stage(await use_session(opened, names.RESHARD, request, StoredProtection))

    def target_failed(self, error: MasterKeyError) -> None:
        """A keystore that shall get a shard failed: an event, and another attempt where that may pass."""
        self.event(
            f"attempt-failed.{self.attempt}.{error.subject or 'target'}",
            "attempt-failed",
            error=type(error).__name__,
            subject=error.subject,
            reason=error.message,
        )
        if not passes(error):
            raise error

    async def finish(
        self,
        plan: Plan,
        stored: StoredProtection,
        proofs: tuple[Signed, ...],
        predecessor: Active | None,
        active: Sequence[Active],
        roster: Roster,
    ) -> ReshardResult:
        """Commit, export the bundle, tell everybody who serves the old protection, close."""
        target, quorum = plan.target, self.quorum
        assert target is not None and quorum is not None  # noqa: S101, PT018 - both were made before
        await self.commit(target.retention_hours)
        # At once: from here on the old protection may be refused, and the new one must survive the database.
        bundles = await self.export_bundle()
        keystores = [row.keystore for row in stored.shards] + (predecessor.keystores if predecessor else [])
        away = [one.keystore for one in self.health() if one.state == "unreachable"]
        not_told = await self.tell_of_commit(stored, proofs, keystores, roster, away)
        manifest = Manifest.parse(stored.manifest.document.encode())
        in_force = [manifest, *(one.manifest for one in active if one is not predecessor)]
        retired = f"; epoch {predecessor.manifest.epoch} is retired" if predecessor else ""
        told = f"; not told yet: {', '.join(not_told)}" if not_told else ""
        await self.close("done", f"{self.master_key} is protected anew, epoch {manifest.epoch}{retired}{told}")
        bundles = await self.export_bundle(final=True) or bundles
        return ReshardResult(
            ceremony=self.ceremony,
            master_key=self.master_key,
            kcv=manifest.kcv,
            manifest=stored.manifest,
            approved_by=quorum.approved_by,
            attempt=self.attempt,
            opened_by=self.served_by,
            retired=predecessor.digest if predecessor else None,
            old_keys=old_keys(predecessor.manifest, *in_force) if predecessor else (),
            old_keys_needed=predecessor.manifest.threshold if predecessor else 0,
            not_told=not_told,
            bundles=bundles,
            health=self.health(),
            changes=self.changes,
        )


def old_keys(old: Manifest, *others: Manifest) -> tuple[OldKey, ...]:
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


def choose_source(active: dict[Purpose, Active], wanted: Purpose | None, purpose: Purpose) -> Active:
    """The protection to open: the one that was asked for, else the one of this purpose, else the only other one.

    Raises:
        NotKnown: there is none.
    """
    if wanted is not None:
        if wanted not in active:
            raise NotKnown(f"there is no active {wanted} protection to open")
        return active[wanted]
    found = active.get(purpose) or next(iter(active.values()), None)
    if found is None:
        raise NotKnown("this MasterKey has no active protection")
    return found
