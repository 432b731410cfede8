"""`InitWorkflow`: create a MasterKey and protect it.

Phases: planning, quorum, protecting, proving, committing, done; or refused, failed, expired. Before the
commit nothing but a record is left behind; after it the MasterKey is recoverable, because every keystore
has proven that it can give back its data key.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from workflows.calls.sessions import use_session, with_session
from workflows.contracts import names
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.messages.requests import InitRequest
from workflows.contracts.messages.results import InitResult
from workflows.contracts.messages.strongroom import Protect, SessionOpened
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import KeystoreError, SessionLost
from workflows.contracts.trust.plan import Plan, Target
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.roster import Roster, Strongroom
from workflows.steps.protect import Protecting, Topology, choose_strongroom
from workflows.steps.quorum import Quorum

_ATTEMPTS = 5


@workflow.defn
class InitWorkflow(Protecting):
    """The creation of one MasterKey."""

    @workflow.init
    def __init__(self, request: InitRequest) -> None:
        super().__init__(request.ceremony, "init", request.master_key)
        self._request = request

    @workflow.run
    async def run(self, request: InitRequest) -> InitResult:
        """Plan, gather the quorum, protect, prove, commit; fails with the type of one of our errors."""
        return await self.run_to_the_end(self._init)

    async def _init(self) -> InitResult:
        begun, request = await self.begin(), self._request
        roster = Roster.parse(begun.roster.encode())
        strongroom = choose_strongroom(roster, request.strongroom)
        topology = Topology(
            mode=request.mode,
            threshold=request.threshold,
            shards=request.shards,
            purpose=request.purpose,
            epoch=begun.next_epoch,
        )
        target = await self.plan_target(topology, roster)
        plan = Plan(
            action="init",
            master_key=self.master_key,
            ceremony=self.ceremony,
            governance_quorum=roster.governance_of(self.master_key).quorum,
            source=None,
            target=target,
            recipient=None,
            strongroom=strongroom.fingerprint,
            roster=begun.roster_digest,
            created=self.now(),
            expires=self.now() + timedelta(seconds=request.quorum_timeout_seconds),
        )
        self.quorum = Quorum(plan, roster, custody=(), threshold=0)
        await self.record_plan(plan, "quorum")
        await self.wait_for_quorum("quorum")
        stored = await self._protect_until_done(plan, target, strongroom)
        await self.enter("proving", flush=True)
        proofs = await self.prove(stored, roster, plan)
        await self.enter("committing", flush=True)
        return await self.to_its_end(self._commit(stored, proofs, roster, self.quorum))

    async def _commit(
        self, stored: StoredProtection, proofs: tuple[Signed, ...], roster: Roster, quorum: Quorum
    ) -> InitResult:
        await self.commit()
        bundles = await self.export_bundle()
        not_told = await self.tell_of_commit(stored, proofs, [row.keystore for row in stored.shards], roster)
        manifest = Manifest.parse(stored.manifest.document.encode())
        await self.close("done", f"{self.master_key} is protected; KCV {manifest.kcv}")
        bundles = await self.export_bundle(final=True) or bundles
        return InitResult(
            ceremony=self.ceremony,
            master_key=self.master_key,
            kcv=manifest.kcv,
            manifest=stored.manifest,
            approved_by=quorum.approved_by,
            attempt=self.attempt,
            not_told=not_told,
            bundles=bundles,
        )

    async def _protect_until_done(self, plan: Plan, target: Target, strongroom: Strongroom) -> StoredProtection:
        while True:
            self.attempt += 1
            await self.enter("protecting")
            try:
                return await with_session(
                    plan, strongroom.name, "protect", self.attempt, lambda s: self._protect(s, target)
                )
            except (SessionLost, KeystoreError) as error:
                self.event(
                    f"attempt-failed.{self.attempt}",
                    "attempt-failed",
                    error=type(error).__name__,
                    subject=error.subject,
                    reason=error.message,
                )
                if not error.retryable or self.attempt >= _ATTEMPTS:
                    raise
            await self.enter("protecting", flush=True)
            await workflow.sleep(timedelta(seconds=2**self.attempt))

    async def _protect(self, opened: SessionOpened, target: Target) -> StoredProtection:
        authority = self.authority()
        deks = await self.generate_data_keys(opened, target, authority)
        request = Protect(session=opened.session, authority=authority, deks=deks)
        return await self.stage(await use_session(opened, names.PROTECT, request, StoredProtection))
