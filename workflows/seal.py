"""`SealWorkflow`: the emergency stop; and `HoldWorkflow`, by which whoever holds a MasterKey hears of it.

Any one custodian may order a stop. The ledger refuses new releases, running unseals end, keystore workers verify the
order, remember it and refuse by themselves, and recipients end the programs that hold the MasterKey and say so. The
report says who has and who has not, and which keys to disable by hand. A stop that a hostile orchestrator withholds
never arrives: disabling the KMS keys always works.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from pydantic import ValidationError
from temporalio import workflow

from workflows.calls.concurrency import gather
from workflows.calls.failures import as_failure
from workflows.calls.ledger import call_ledger
from workflows.contracts import names
from workflows.contracts.messages.keystore import StopServing
from workflows.contracts.messages.ledger import HoldingRecorded, RecordHolding
from workflows.contracts.messages.requests import HoldRequest, SealRequest
from workflows.contracts.messages.results import HolderTold, HoldResult, SealResult
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import AuthorityInvalid, DocumentInvalid, MasterKeyError
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.stop import Ended, check_stop
from workflows.steps.ceremony import Ceremony
from workflows.steps.notify import notify_keystores, record_notified
from workflows.steps.protections import StoredManifest, keys_of

_MOST_ACKNOWLEDGEMENTS = 10_000


@workflow.defn
class SealWorkflow(Ceremony):
    """One stop of one MasterKey."""

    @workflow.init
    def __init__(self, request: SealRequest) -> None:
        super().__init__(request.ceremony, "seal", request.master_key)
        self._request = request
        self._acknowledged: dict[str, dict[str, Any]] = {}

    @workflow.signal(name="acknowledge")
    def acknowledge(self, ended: Any = None, *extra: Any) -> None:
        """A running unseal, or a recipient's program, has ended; anything else is counted and ignored."""
        known = isinstance(ended, dict) and isinstance(ended.get("workflow"), str)
        if not known or len(self._acknowledged) >= _MOST_ACKNOWLEDGEMENTS:
            self.refuse_message(DocumentInvalid("an acknowledgement names the workflow that ended"))
            return
        self._acknowledged[ended["workflow"]] = ended
        self.changed()

    @workflow.run
    async def run(self, request: SealRequest) -> SealResult:
        """Record the stop, notify everybody, and report who has acknowledged it."""
        return await self.run_to_the_end(self._seal)

    async def _seal(self) -> SealResult:
        request = self._request
        begun, roster = await self.begin(stop=request.stop)
        stop, who = check_stop(roster, request.stop, self.now())
        if (stop.master_key, stop.ceremony) != (self.master_key, self.ceremony):
            raise AuthorityInvalid(
                "the stop is of another MasterKey or ceremony", next_step="order it again with `masterkey seal`"
            )
        await self.enter("stopping")
        within, digest = timedelta(seconds=request.patience_seconds), request.stop.digest
        stopped = asyncio.create_task(self._stop_holders(begun.releases, roster, within))
        keystores = await notify_keystores(
            names.STOP_SERVING,
            lambda name: StopServing(keystore=name, stop=request.stop),
            roster,
            about=digest,
            within=within,
            keys=keys_of([StoredManifest.read(stored) for stored in begun.active]),
            acknowledged=lambda state: state is not None and digest in state.stops,
            master_key=self.master_key,
        )
        holders = await stopped
        missed = record_notified(self, keystores, "keystore-stopped")
        silent = [one.workflow for one in holders if one.state != "ended"]
        detail = f"stopped by {who}"
        detail += f"; not told: {', '.join(missed)}" if missed else "; every keystore refuses"
        detail += f"; {len(silent)} recipients did not answer" if silent else ""
        # With a bundle, too: a ledger that is made from one shall know of this stop.
        await self.finish(detail)
        return SealResult(
            ceremony=self.ceremony,
            master_key=self.master_key,
            stop=digest,
            ordered_by=who,
            keystores=keystores,
            holders=holders,
        )

    async def _stop_holders(
        self, holders: tuple[str, ...], roster: Roster, within: timedelta
    ) -> tuple[HolderTold, ...]:
        async def notify(workflow_id: str) -> HolderTold:
            try:
                await workflow.get_external_workflow_handle(workflow_id).signal("stop", self._request.stop)
            except Exception:  # noqa: BLE001 - whatever keeps it from arriving: it is over, or nobody knows it any more
                return HolderTold(workflow=workflow_id, state="ended", detail="it was over before the stop came")
            try:
                await workflow.wait_condition(lambda: workflow_id in self._acknowledged, timeout=within)
            except TimeoutError:
                return HolderTold(workflow=workflow_id, state="silent", detail="it did not say that it has ended")
            return self._judge(workflow_id, roster)

        return tuple(await gather([notify(one) for one in holders]))

    def _judge(self, workflow_id: str, roster: Roster) -> HolderTold:
        """An unseal's own word is enough: it holds nothing. A recipient signs that its program has ended."""
        if names.held_since(workflow_id) is None:
            return HolderTold(workflow=workflow_id, state="ended")
        try:
            signed = Signed.model_validate(self._acknowledged[workflow_id].get("ended"))
            ended, recipient = roster.open(Ended, signed)
            ours = (names.held_since(workflow_id), self.master_key)
            if not roster.receives(recipient, self.master_key) or ours != (ended.ceremony, ended.master_key):
                raise AuthorityInvalid("the acknowledgement is not that recipient's")
            if ended.stop != self._request.stop.digest:
                raise AuthorityInvalid("the acknowledgement is of another stop")
        except (MasterKeyError, ValidationError) as error:
            reason = error.message if isinstance(error, MasterKeyError) else "the acknowledgement is not signed"
            return HolderTold(workflow=workflow_id, state="refused", detail=reason)
        self.signed(f"ended.{signed.digest[7:19]}", "holder-ended", signed)
        return HolderTold(workflow=workflow_id, state="ended", detail=recipient)


@workflow.defn
class HoldWorkflow:
    """The lease of a recipient that holds a MasterKey: by it a stop is heard of. Runs for as long as its program."""

    @workflow.init
    def __init__(self, request: HoldRequest) -> None:
        self._request = request
        self._stop: Signed | None = None
        self._released = False

    @workflow.signal(name="stop")
    def stop(self, signed: Any = None, *extra: Any) -> None:
        """A stop, unverified: the recipient verifies it by the roster that it has pinned itself."""
        try:
            self._stop = Signed.model_validate(signed)
        except ValidationError:
            workflow.logger.warning("a stop that is no signed document was ignored")

    @workflow.signal(name="released")
    def released(self, *extra: Any) -> None:
        """The program that held the MasterKey has ended by itself."""
        self._released = True

    @workflow.run
    async def run(self, request: HoldRequest) -> HoldResult:
        """Wait for a stop or the program's end; fails with the type of one of our errors."""
        try:
            stops = await self._record("began")
            self._stop = self._stop or next(iter(stops), None)
            await workflow.wait_condition(lambda: self._stop is not None or self._released)
            await self._record("ended")
        except MasterKeyError as error:
            raise as_failure(error) from None
        return HoldResult(stop=self._stop)

    async def _record(self, state: str) -> tuple[Signed, ...]:
        recorded = await call_ledger(
            names.RECORD_HOLDING,
            RecordHolding(
                ceremony=self._request.ceremony,
                master_key=self._request.master_key,
                workflow_id=workflow.info().workflow_id,
                state=state,
            ),
            HoldingRecorded,
        )
        return recorded.stops
