"""`DisasterRecoveryWorkflow`: make a protection whole again after keystores were lost.

Phases: assessing, planning, quorum, reconstructing, waiting (too few keystores answer), proving, committing, done;
or refused, failed, expired. It proposes the plan that needs the fewest changes, and takes another one, which is then
approved anew. While it waits it looks for keystores that come back, for days if it must, and says who and what is
missing. There is no second implementation: on a laptop, from a bundle, this same code runs.
"""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

from pydantic import ValidationError
from temporalio import workflow

from workflows.calls.concurrency import gather
from workflows.calls.failures import as_failure
from workflows.contracts.messages.ledger import Begun
from workflows.contracts.messages.requests import ChangedPlan, RecoverRequest
from workflows.contracts.messages.results import ReshardResult
from workflows.contracts.messages.status import KeystoreHealth
from workflows.contracts.trust.errors import DocumentInvalid, MasterKeyError, PlanInvalid
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.service_errors import (
    CeremonyEnded,
    KeystoreUnavailable,
    NotKnown,
    QuorumUnreachable,
    Stopped,
)
from workflows.steps.assess import GONE, LOST, USABLE, Assessment
from workflows.steps.backoff import backoff
from workflows.steps.plan import Topology, choose_strongroom, make_plan
from workflows.steps.propose import best_source, propose
from workflows.steps.protections import StoredManifest, by_purpose
from workflows.steps.quorum import Quorum
from workflows.steps.replace import Replacement, Resharding

_REPLANNABLE = ("assessing", "planning", "quorum", "waiting", "reconstructing", "proving")
"""Nothing is changed yet in these: what was staged by an earlier plan is discarded."""
_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=5), timedelta(minutes=30)
"""Between two looks at keystores of which too few answer: a week of them costs some 15,000 events."""
_NO_PLAN = "a changed plan names replacements, or shards, mode and threshold"


@workflow.defn
class DisasterRecoveryWorkflow(Resharding):
    """One recovery of one protection of a MasterKey."""

    @workflow.init
    def __init__(self, request: RecoverRequest) -> None:
        super().__init__(request.ceremony, "recover", request.master_key)
        self._request = request
        self._requested = ChangedPlan.model_validate(request.model_dump())
        self._changed: ChangedPlan | None = None
        self._assessment = Assessment()
        self._assessments = 0
        self._reported: dict[str, str] = {}

    @workflow.run
    async def run(self, request: RecoverRequest) -> ReshardResult:
        """Assess, propose, gather the quorum, reconstruct, prove, commit; fails with the type of one of our errors."""
        return await self.run_to_the_end(self._recover)

    # --- messages --------------------------------------------------------------------------------------------

    @workflow.update(name="replan")
    def replan(self, requested: Any = None, *extra: Any) -> str:
        """Take another plan: it is made anew, and needs new approvals. Answers with the present phase."""
        self._changed = _as_changed_plan(requested, extra)
        self.changed()
        return self.phase

    @replan.validator
    def check_replan(self, requested: Any = None, *extra: Any) -> None:
        """Refuse where a plan is being carried out, or is not one."""
        try:
            self.check_open()
            if self.phase not in _REPLANNABLE:
                raise CeremonyEnded(
                    f"the plan is being put in force ({self.phase})",
                    next_step="wait for the end; a reshard can change what came of it",
                )
            _as_changed_plan(requested, extra)
        except MasterKeyError as error:
            raise as_failure(error) from None

    def health(self) -> tuple[KeystoreHealth, ...]:
        """How the keystores were when they were last asked."""
        return self._assessment.all()

    def check_course(self) -> None:
        """Go another way when another plan was asked for."""
        if self._changed is not None:
            raise _AnotherPlan("another plan was asked for")

    # --- work ------------------------------------------------------------------------------------------------

    async def _recover(self) -> ReshardResult:
        begun, roster = await self.begin(all_active=True)
        active = by_purpose(begun.active)
        damaged = active.get(self._request.purpose)
        if damaged is None:
            raise NotKnown(
                f"{self.master_key} has no active {self._request.purpose} protection",
                next_step="make one with `masterkey reshard`",
            )
        self._assessment = Assessment(begun.proofs)
        in_force = list(active.values())
        while True:
            try:
                wanted, quorum = await self._plan(begun, in_force, damaged, roster)
                await self.ask(quorum)
                stored, proofs = await self.carry_out(wanted)
                self.check_course()
            except _AnotherPlan:
                self._take_changed_plan()
                continue
            await self.enter("committing", flush=True)
            return await self.to_its_end(self.complete(wanted, stored, proofs, in_force))

    def _take_changed_plan(self) -> None:
        self._requested, self._changed = self._changed or self._requested, None
        self.quorum, self.plan = None, None
        self.event(
            f"replanned.{self.attempt}.{self._changes}", "plan-withdrawn", wish=self._requested.model_dump_json()
        )

    async def _plan(
        self, begun: Begun, active: list[StoredManifest], damaged: StoredManifest, roster: Roster
    ) -> tuple[Replacement, Quorum]:
        strongroom = choose_strongroom(roster, self._request.strongroom)
        await self._assess(active, damaged, roster)
        requested, found = self._requested, self._assessment
        in_use = [name for one in active for name in one.keystores]
        await self.enter("planning")
        source = best_source(active, damaged, requested, found)
        mode, threshold, shards = propose(damaged, requested, roster, found, in_use)
        topology = Topology(
            mode=mode,
            threshold=threshold,
            shards=shards,
            purpose=damaged.manifest.purpose,
            epoch=begun.next_epoch,
            predecessor=damaged.digest,
        )
        # A keystore that is away, and stays, is taken at its last word: the ceremony then waits for it.
        known = {shard.binding.keystore: shard.binding.key_id for shard in damaged.manifest.shards}
        target = await self.plan_target(topology, roster, known)
        seconds = self._request.quorum_timeout_seconds
        plan = make_plan(self, roster, strongroom.fingerprint, seconds, source=source, target=target)
        wanted = Replacement(plan, target, source, damaged, roster, strongroom)
        quorum = self.propose(wanted)
        # Whose shard is gone for good cannot be one of those who release enough of them.
        health = found.of(source)
        for row in source.stored.shards:
            one = health[row.keystore]
            if one.state in GONE:
                self.excluded.add(row.index)
            elif one.state not in USABLE:
                self.ask_last(row.index, KeystoreUnavailable(f"{row.keystore} was {one.state}", subject=row.keystore))
        return wanted, quorum

    async def _assess(self, active: list[StoredManifest], damaged: StoredManifest, roster: Roster) -> None:
        """Ask all keystores how they are; again and again while too few answer, and nothing is known to be lost.

        Raises:
            QuorumUnreachable: it stayed like that until the time was over.
        """
        candidates = [one.name for one in roster.keystores if one.offline is None]
        until = self.now() + timedelta(seconds=self._request.quorum_timeout_seconds)
        for waits in itertools.count():
            await self.enter("assessing", flush=True)
            found, now = self._assessment, self.now()
            await gather([found.assess(active, roster, now), found.describe(candidates, roster, now)])
            self._report(active)
            if not self._outage(active, damaged):
                return
            if self.now() >= until:
                raise QuorumUnreachable(f"the deadline passed; {self.detail}")
            await self.enter("waiting", flush=True)
            await self.sleep_until_change(min(until, self.now() + backoff(waits, _FIRST_WAIT, _LONGEST_WAIT)))
            self.check_course()

    def _outage(self, active: list[StoredManifest], damaged: StoredManifest) -> bool:
        """Whether nothing opens now, and nothing tells that it will not by itself: then there is nothing to propose."""
        if self._requested.shards or self._requested.replacements:
            return False
        lost = any(one.state in LOST for one in self._assessment.of(damaged).values())
        return not lost and all(self._assessment.usable(one) < one.manifest.threshold for one in active)

    def _report(self, active: list[StoredManifest]) -> None:
        self._assessments += 1
        for health in self._assessment.all():
            if self._reported.get(health.keystore) != health.state:
                self._reported[health.keystore] = health.state
                self.event(
                    f"assessed.{self._assessments}.{health.keystore}",
                    "keystore-assessed",
                    keystore=health.keystore,
                    state=health.state,
                    detail=health.detail,
                )
        said = []
        for one in active:
            usable, manifest = self._assessment.usable(one), one.manifest
            answer = f"{manifest.purpose}: {usable} of {manifest.count} shards answer, {manifest.threshold} are needed"
            missing = [(name, h.state) for name, h in self._assessment.of(one).items() if h.state not in USABLE]
            said.append(", ".join([answer, *(f"{name} is {state}" for name, state in missing)]))
        self.detail = "; ".join(said)

    def target_failed(self, error: MasterKeyError) -> None:
        """A keystore that shall get a shard failed: wait, for it or for another plan."""
        if isinstance(error, Stopped):
            # Every keystore hears of it, and none serves until it is lifted.
            raise error
        key = f"target-failed.{self.attempt}.{error.subject or 'target'}"
        self.failed(key, "keystore-failed", error, keystore=error.subject)
        self.detail = (
            f"{error.diagnostics}; or choose another plan: `masterkey recover {self.master_key} --ceremony ...`"
        )


class _AnotherPlan(Exception):
    """People asked for another plan. None of our errors: it must not pass for a failure of whoever was waited for."""


def _as_changed_plan(value: Any, extra: tuple[Any, ...]) -> ChangedPlan:
    try:
        if extra:
            raise DocumentInvalid("one plan is expected, not several values")
        requested = ChangedPlan.model_validate(value)
        if not requested.model_fields_set:
            raise PlanInvalid(_NO_PLAN)
    except ValidationError:
        raise PlanInvalid(_NO_PLAN) from None
    return requested
