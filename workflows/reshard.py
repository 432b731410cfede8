"""`ReshardWorkflow`: the same MasterKey under a new protection.

Other numbers, keystores, custodians or mode; another protection beside the present one; newer key versions. Phases:
planning, quorum, reconstructing, waiting (a keystore does not answer), proving, committing, done; or refused,
failed, expired. What it replaces serves until the commit, and is retired by it.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from workflows.contracts.messages.requests import ReshardRequest
from workflows.contracts.messages.results import ReshardResult
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.roster import Roster
from workflows.steps.open import source_of
from workflows.steps.protect import Topology, choose_strongroom
from workflows.steps.replace import Resharding, by_purpose, choose_source


@workflow.defn
class ReshardWorkflow(Resharding):
    """One reshard of one MasterKey."""

    @workflow.init
    def __init__(self, request: ReshardRequest) -> None:
        super().__init__(request.ceremony, "reshard", request.master_key)
        self._request = request

    @workflow.run
    async def run(self, request: ReshardRequest) -> ReshardResult:
        """Plan, gather the quorum, reconstruct, prove, commit; fails with the type of one of our errors."""
        return await self.run_to_the_end(self._reshard)

    async def _reshard(self) -> ReshardResult:
        request, begun = self._request, await self.begin(all_active=True)
        roster, active = Roster.parse(begun.roster.encode()), by_purpose(begun.active)
        source = choose_source(active, request.source, request.purpose)
        predecessor = active.get(request.purpose)
        strongroom = choose_strongroom(roster, request.strongroom)
        topology = Topology(
            mode=request.mode,
            threshold=request.threshold,
            shards=request.shards,
            purpose=request.purpose,
            epoch=begun.next_epoch,
            predecessor=predecessor.digest if predecessor else None,
            retention_hours=request.retention_hours if predecessor else None,
        )
        plan = Plan(
            action="reshard",
            master_key=self.master_key,
            ceremony=self.ceremony,
            governance_quorum=max(source.manifest.governance_quorum, roster.governance_of(self.master_key).quorum),
            source=source_of(source.manifest, source.digest),
            target=await self.plan_target(topology, roster),
            recipient=None,
            strongroom=strongroom.fingerprint,
            roster=begun.roster_digest,
            created=self.now(),
            expires=self.now() + timedelta(seconds=request.quorum_timeout_seconds),
        )
        self.begin_quorum(plan, source, predecessor, roster)
        await self.record_plan(plan, "quorum")
        await self.wait_for_quorum("quorum")
        stored, proofs = await self.remake(plan, source, roster, strongroom)
        await self.enter("committing", flush=True)
        return await self.to_its_end(self.finish(plan, stored, proofs, predecessor, list(active.values()), roster))
