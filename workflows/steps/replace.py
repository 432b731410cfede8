"""Making another protection of a MasterKey that exists: what a reshard and a recovery share.

One session opens the old protection and makes the new one; the MasterKey leaves it only inside new shards. The old
protection serves until the new one is proven and committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workflows.calls.concurrency import gather
from workflows.calls.sessions import use_session
from workflows.contracts import names
from workflows.contracts.messages.protection import DekAnswer, StoredProtection
from workflows.contracts.messages.results import ReshardResult
from workflows.contracts.messages.strongroom import Reshard, SessionOpened
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.difference import difference
from workflows.contracts.trust.errors import KeystoreError, MasterKeyError
from workflows.contracts.trust.plan import Plan, Target
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.roster import Roster, Strongroom
from workflows.steps.open import Opening, TargetFailed
from workflows.steps.protect import Protecting, may_pass
from workflows.steps.protections import StoredManifest, old_keys
from workflows.steps.quorum import Quorum


@dataclass(frozen=True)
class Replacement:
    """What people are asked for, and all that is needed to carry it out.

    Attributes:
        plan: what they sign.
        target: the protection that it makes.
        source: the protection that it opens.
        predecessor: the one that it replaces, if there is one of this purpose.
        roster: who everybody is.
        strongroom: where it is done.
    """

    plan: Plan
    target: Target
    source: StoredManifest
    predecessor: StoredManifest | None
    roster: Roster
    strongroom: Strongroom


class Resharding(Opening, Protecting):
    """A ceremony that opens one protection to make another."""

    def propose(self, wanted: Replacement) -> Quorum:
        """Whom to ask: the governance quorum, and custodians of as many shards as must be opened."""
        self.changes = difference(wanted.predecessor.manifest if wanted.predecessor else None, wanted.target)
        return self.open_what(wanted.source, wanted.plan, wanted.roster)

    async def carry_out(self, wanted: Replacement) -> tuple[StoredProtection, tuple[Signed, ...]]:
        """Open, protect anew, stage and prove; again and again while what fails may pass.

        Returns:
            The staged protection, and every keystore's proof.
        """
        plan = wanted.plan
        while True:
            stored = await self.open_until_done(
                plan,
                wanted.strongroom,
                "reshard",
                "reconstructing",
                lambda opened: self._attempt(opened, wanted),
            )
            try:
                return stored, await self.prove(stored, wanted.roster, plan)
            except KeystoreError as error:
                if self.now() >= plan.expires:
                    raise
                self.target_failed(error)
            await self.back_off(plan)

    async def _attempt(self, opened: SessionOpened, wanted: Replacement) -> StoredProtection:
        authority, source = self.authority(wanted.plan), wanted.source

        async def generate() -> tuple[DekAnswer, ...]:
            try:
                return await self.generate_data_keys(opened, wanted.target, authority)
            except MasterKeyError as error:
                raise TargetFailed(error) from None

        opening = self.ask_for_data_keys(opened, source, authority)
        given, deks = await gather([opening, generate()])
        request = Reshard(
            session=opened.session, authority=authority, protection=source.stored, opened=given, deks=deks
        )
        return await self.stage(await use_session(opened, names.RESHARD, request, StoredProtection))

    def target_failed(self, error: MasterKeyError) -> None:
        """A keystore that shall get a shard failed: an event, and another attempt where that may pass."""
        self.attempt_failed(f"attempt-failed.{self.attempt}.{error.subject or 'target'}", error)
        if not may_pass(error):
            raise error

    async def complete(
        self, done: Replacement, stored: StoredProtection, proofs: tuple[Signed, ...], active: Sequence[StoredManifest]
    ) -> ReshardResult:
        """Commit, export the bundle, notify everybody who serves the old protection, close.

        Args:
            done: what was carried out.
            stored: the staged protection.
            proofs: of all its keystores.
            active: all protections that were in force.
        """
        old = done.predecessor
        not_told, bundles = await self.put_in_force(
            stored,
            proofs,
            done.roster,
            retention_hours=done.target.retention_hours,
            others=old.keystores if old else (),
            away=[one.keystore for one in self.health() if one.state == "unreachable"],
        )
        manifest = Manifest.parse(stored.manifest.document.encode())
        in_force = [manifest, *(one.manifest for one in active if one is not old)]
        retired = f"; epoch {old.manifest.epoch} is retired" if old else ""
        told = f"; not told yet: {', '.join(not_told)}" if not_told else ""
        detail = f"{self.master_key} is protected anew, epoch {manifest.epoch}{retired}{told}"
        bundles = await self.finish(detail) or bundles
        return ReshardResult(
            ceremony=self.ceremony,
            master_key=self.master_key,
            kcv=manifest.kcv,
            manifest=stored.manifest,
            approved_by=self.approved_by,
            attempt=self.attempt,
            opened_by=self.served_by,
            retired=old.digest if old else None,
            old_keys=old_keys(old.manifest, in_force) if old else (),
            old_keys_needed=old.manifest.threshold if old else 0,
            not_told=not_told,
            bundles=bundles,
            health=self.health(),
            changes=self.changes,
        )
