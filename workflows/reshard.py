"""`ReshardWorkflow`: the same MasterKey under a new protection.

Other numbers, keystores, custodians or mode; another protection beside the present one; newer key versions. Phases:
planning, quorum, reconstructing, waiting (a keystore does not answer), proving, committing, done; or refused,
failed, expired. What it replaces serves until the commit, and is retired by it.
"""

from __future__ import annotations

from temporalio import workflow

from workflows.contracts.messages.requests import ReshardRequest
from workflows.contracts.messages.results import ReshardResult
from workflows.contracts.trust.fields import Purpose
from workflows.contracts.trust.service_errors import NotKnown
from workflows.steps.plan import Topology, choose_strongroom, make_plan
from workflows.steps.protections import StoredManifest, by_purpose
from workflows.steps.replace import Replacement, Resharding


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
        request = self._request
        begun, roster = await self.begin(all_active=True)
        active = by_purpose(begun.active)
        source = _choose_source(active, request.source, request.purpose)
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
        target = await self.plan_target(topology, roster)
        seconds = request.quorum_timeout_seconds
        plan = make_plan(self, roster, strongroom.fingerprint, seconds, source=source, target=target)
        wanted = Replacement(plan, target, source, predecessor, roster, strongroom)
        await self.ask(self.propose(wanted))
        stored, proofs = await self.carry_out(wanted)
        await self.enter("committing", flush=True)
        return await self.to_its_end(self.complete(wanted, stored, proofs, list(active.values())))


def _choose_source(active: dict[Purpose, StoredManifest], wanted: Purpose | None, purpose: Purpose) -> StoredManifest:
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
