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
from workflows.steps.backoff import backoff
from workflows.steps.plan import Topology, choose_strongroom, make_plan
from workflows.steps.protect import Protecting
from workflows.steps.quorum import Quorum

_ATTEMPTS = 5
_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=1), timedelta(minutes=1)


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
        request = self._request
        begun, roster = await self.begin()
        strongroom = choose_strongroom(roster, request.strongroom)
        topology = Topology(request.mode, request.threshold, request.shards, request.purpose, begun.next_epoch)
        target = await self.plan_target(topology, roster)
        plan = make_plan(self, roster, strongroom.fingerprint, request.quorum_timeout_seconds, target=target)
        await self.ask(Quorum(plan, roster))
        stored = await self._protect_until_done(plan, target, strongroom)
        proofs = await self.prove(stored, roster, plan)
        await self.enter("committing", flush=True)
        return await self.to_its_end(self._complete(stored, proofs, roster))

    async def _complete(self, stored: StoredProtection, proofs: tuple[Signed, ...], roster: Roster) -> InitResult:
        not_told, bundles = await self.put_in_force(stored, proofs, roster)
        manifest = Manifest.parse(stored.manifest.document.encode())
        bundles = await self.finish(f"{self.master_key} is protected; KCV {manifest.kcv}") or bundles
        return InitResult(
            ceremony=self.ceremony,
            master_key=self.master_key,
            kcv=manifest.kcv,
            manifest=stored.manifest,
            approved_by=self.approved_by,
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
                    plan, strongroom.name, "protect", self.attempt, lambda s: self._protect(s, plan, target)
                )
            except (SessionLost, KeystoreError) as error:
                self.attempt_failed(f"attempt-failed.{self.attempt}", error)
                if not error.retryable or self.attempt >= _ATTEMPTS:
                    raise
            await self.enter("protecting", flush=True)
            await workflow.sleep(backoff(self.attempt, _FIRST_WAIT, _LONGEST_WAIT))

    async def _protect(self, opened: SessionOpened, plan: Plan, target: Target) -> StoredProtection:
        authority = self.authority(plan)
        deks = await self.generate_data_keys(opened, target, authority)
        request = Protect(session=opened.session, authority=authority, deks=deks)
        return await self.stage(await use_session(opened, names.PROTECT, request, StoredProtection))
