"""Making a protection: which keys its keystores use, fresh data keys, staging, proof, and commit.

What an init, a reshard and a recovery share. Before the commit nothing but a record is left behind; after it the
MasterKey is recoverable, because every keystore has proven that it can give back its data key. Only then, and only
with those proofs in hand, are keystore workers notified, so that they refuse what was in force before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

from workflows.calls.concurrency import gather
from workflows.calls.keystores import call_keystore
from workflows.calls.ledger import call_ledger
from workflows.contracts import names
from workflows.contracts.messages.keystore import GenerateDataKey
from workflows.contracts.messages.ledger import Commit, Stage
from workflows.contracts.messages.protection import DekAnswer, StoredProtection
from workflows.contracts.messages.strongroom import SessionOpened
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import KeystoreError, MasterKeyError, PlanInvalid
from workflows.contracts.trust.fields import Mode
from workflows.contracts.trust.plan import Plan, Target, TargetShard
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.topology import check_target
from workflows.steps.contribute import Contributing
from workflows.steps.notify import notify_of_commit
from workflows.steps.plan import Topology
from workflows.steps.prove import describe_key, worker

_DESCRIBE_TIMEOUT = timedelta(seconds=30)
_PROTECT_TIMEOUT = timedelta(seconds=90)


class Protecting(Contributing):
    """A ceremony that makes a protection."""

    async def plan_target(self, topology: Topology, roster: Roster, known: Mapping[str, str] | None = None) -> Target:
        """The target of a topology: every keystore says which key it uses.

        Args:
            topology: what is wanted.
            roster: who there is.
            known: ids of keys by keystore, for those that do not answer at this moment.

        Raises:
            PlanInvalid: it can never be.
            KeystoreError: a keystore cannot be used now.
        """
        keystores, last = [shard.keystore for shard in topology.shards], known or {}
        for name in keystores:
            if roster.keystore(name) is None:
                raise PlanInvalid(f"keystore {name} is not in the roster", subject=name)
        # The numbers are checked before anybody is asked, with stand-ins for the key ids to come.
        check_target(topology.target(roster, keystores), self.master_key, roster)
        self.know_offline(roster, keystores)
        key_ids = await gather([self._key_id(name, topology.mode, roster, last.get(name)) for name in keystores])
        target = topology.target(roster, key_ids)
        check_target(target, self.master_key, roster)
        return target

    async def _key_id(self, name: str, mode: Mode, roster: Roster, known: str | None) -> str:
        entry = roster.keystore(name)
        if entry is not None and entry.offline is not None:
            return entry.offline_key_id
        try:
            with self.asking(name, then="waiting"):
                key = await describe_key(name, roster, within=_DESCRIBE_TIMEOUT, attempts=3)
                if mode not in key.modes:
                    raise PlanInvalid(f"{name} does not serve {mode} protections", subject=name)
        except MasterKeyError as error:
            if known is None or not may_pass(error):
                raise
            return known
        return key.key_id

    async def generate_data_keys(
        self, opened: SessionOpened, target: Target, authority: Authority
    ) -> tuple[DekAnswer, ...]:
        """A fresh data key of every keystore that has a worker; the session draws those of offline ones.

        Raises:
            KeystoreError: one could not.
        """

        async def generate(place: TargetShard) -> DekAnswer:
            request = GenerateDataKey(
                keystore=place.keystore, index=place.index, authority=authority, session=opened.announcement
            )
            with self.asking(place.keystore):
                return await call_keystore(
                    names.GENERATE_DATA_KEY, place.keystore, request, DekAnswer, within=_PROTECT_TIMEOUT, attempts=4
                )

        online = [place for place in target.shards if not self.is_offline(place.keystore)]
        return tuple(await gather([generate(place) for place in online]))

    def attempt_failed(self, key: str, error: MasterKeyError) -> None:
        """Remember that an attempt failed, and whose fault it was."""
        self.event(key, "attempt-failed", error=error.failure_type, subject=error.subject, reason=error.message)

    async def stage(self, stored: StoredProtection) -> StoredProtection:
        """Store a protection that does not serve yet."""
        await call_ledger(
            names.STAGE_PROTECTION, Stage(ceremony=self.ceremony, attempt=self.attempt, protection=stored)
        )
        return stored

    async def prove(self, stored: StoredProtection, roster: Roster, plan: Plan) -> tuple[Signed, ...]:
        """Let every keystore prove that it can give back its data key; offline ones are waited for as for an approval.

        Raises:
            KeystoreError, ApprovalInvalid: one cannot.
        """
        await self.enter("proving", flush=True)
        key, ask, until = str(self.attempt), worker(_PROTECT_TIMEOUT, attempts=6), plan.expires
        return tuple(
            await gather([self.prove_shard(stored, row.index, roster, key, ask, until) for row in stored.shards])
        )

    async def put_in_force(
        self,
        stored: StoredProtection,
        proofs: tuple[Signed, ...],
        roster: Roster,
        *,
        retention_hours: int | None = None,
        others: Sequence[str] = (),
        away: Collection[str] = (),
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Commit what was staged and proven, write the bundle, and notify everybody who serves what it replaces.

        Args:
            stored: what was staged.
            proofs: of all its keystores.
            roster: who they are.
            retention_hours: as `Commit` has it.
            others: keystores of what it replaces.
            away: as `notify_of_commit` has it.

        Returns:
            Keystores that did not acknowledge, and the places where the bundle was written.
        """
        commit = Commit(ceremony=self.ceremony, attempt=self.attempt, retention_hours=retention_hours)
        await call_ledger(names.COMMIT_PROTECTION, commit)
        # At once: from here on the old protection may be refused, and the new one must survive the database.
        bundles = await self.export_bundle()
        keystores = [*(row.keystore for row in stored.shards), *others]
        return await notify_of_commit(self, stored, proofs, keystores, roster, away), bundles


def may_pass(error: MasterKeyError) -> bool:
    """Whether a keystore's failure may pass by itself."""
    return isinstance(error, KeystoreError) and error.retryable
