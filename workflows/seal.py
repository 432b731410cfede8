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
from workflows.contracts import names
from workflows.contracts.messages.keystore import StopServing
from workflows.contracts.messages.ledger import HoldingRecorded, RecordHolding
from workflows.contracts.messages.requests import HoldRequest, SealRequest
from workflows.contracts.messages.results import HolderTold, HoldResult, SealResult
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import ApprovalInvalid, MasterKeyError
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.signatures import open_signed
from workflows.contracts.trust.stop import Ended, check_stop
from workflows.steps.ceremony import Ceremony
from workflows.steps.notify import keys_of, tell_keystores
from workflows.steps.protect import Protecting


@workflow.defn
class SealWorkflow(Protecting):
    """One stop of one MasterKey."""

    @workflow.init
    def __init__(self, request: SealRequest) -> None:
        super().__init__(request.ceremony, "seal", request.master_key)
        self._request = request
        self._acknowledged: dict[str, dict[str, Any]] = {}

    @workflow.signal(name="acknowledge")
    def acknowledge(self, told: Any = None, *extra: Any) -> None:
        """A running unseal, or a recipient's program, has ended; anything else is counted and ignored."""
        known = isinstance(told, dict) and isinstance(told.get("workflow"), str)
        if not known or len(self._acknowledged) >= 10_000:
            self._refuse(ApprovalInvalid("an acknowledgement names the workflow that ended"))
            return
        self._acknowledged[told["workflow"]] = told
        self.changed()

    @workflow.run
    async def run(self, request: SealRequest) -> SealResult:
        """Record the stop, tell everybody, and report who has heard of it."""
        return await self.run_to_the_end(self._seal)

    async def _seal(self) -> SealResult:
        request = self._request
        begun = await self.begin(stop=request.stop)
        roster = Roster.parse(begun.roster.encode())
        stop, who = check_stop(roster, request.stop, self.now())
        if (stop.master_key, stop.ceremony) != (self.master_key, self.ceremony):
            raise ApprovalInvalid("the stop is of another MasterKey or ceremony")
        await self.enter("stopping")
        patience, digest = timedelta(seconds=request.patience_seconds), request.stop.digest
        told_releases = asyncio.create_task(self._tell_releases(begun.releases, roster, patience))
        keystores = await tell_keystores(
            names.STOP_SERVING,
            lambda name: StopServing(keystore=name, stop=request.stop),
            roster,
            about=digest,
            patience=patience,
            keys=keys_of(begun.active),
            heard=lambda state: state is not None and digest in state.stops,
            master_key=self.master_key,
        )
        holders = await told_releases
        for one in keystores:
            self.event(
                f"told.{one.keystore}",
                "keystore-stopped" if one.acknowledged else "keystore-not-told",
                keystore=one.keystore,
                error=one.error,
            )
        deaf = [one.keystore for one in keystores if not one.acknowledged]
        silent = [one.workflow for one in holders if one.state != "ended"]
        detail = f"stopped by {who}"
        detail += f"; not told: {', '.join(deaf)}" if deaf else "; every keystore refuses"
        detail += f"; {len(silent)} recipients did not answer" if silent else ""
        await self.close("done", detail)
        # A ledger that is made from a bundle shall know of this stop.
        await self.export_bundle(final=True)
        return SealResult(
            ceremony=self.ceremony,
            master_key=self.master_key,
            stop=digest,
            ordered_by=who,
            keystores=keystores,
            holders=holders,
        )

    async def _tell_releases(
        self, releases: tuple[str, ...], roster: Roster, patience: timedelta
    ) -> tuple[HolderTold, ...]:
        async def tell(workflow_id: str) -> HolderTold:
            try:
                await workflow.get_external_workflow_handle(workflow_id).signal("stop", self._request.stop)
            except Exception:  # noqa: BLE001 - whatever keeps it from arriving: it is over, or nobody knows it any more
                return HolderTold(workflow=workflow_id, state="ended", detail="it was over before the stop came")
            try:
                await workflow.wait_condition(lambda: workflow_id in self._acknowledged, timeout=patience)
            except TimeoutError:
                return HolderTold(workflow=workflow_id, state="silent", detail="it did not say that it has ended")
            return self._judge(workflow_id, roster)

        return tuple(await gather([tell(one) for one in releases]))

    def _judge(self, workflow_id: str, roster: Roster) -> HolderTold:
        """An unseal's own word is enough: it holds nothing. A recipient signs that its program has ended."""
        if names.held_since(workflow_id) is None:
            return HolderTold(workflow=workflow_id, state="ended")
        try:
            signed = Signed.model_validate(self._acknowledged[workflow_id].get("ended"))
            ended, signer = open_signed(Ended, signed)
            recipient = roster.recipient(signer)
            ours = (names.held_since(workflow_id), self.master_key)
            enrolled = recipient is not None and self.master_key in recipient.master_keys
            if recipient is None or not enrolled or ours != (ended.ceremony, ended.master_key):
                raise ApprovalInvalid("the acknowledgement is not that recipient's")
            if ended.stop != self._request.stop.digest:
                raise ApprovalInvalid("the acknowledgement is of another stop")
        except (MasterKeyError, ValidationError) as error:
            reason = error.message if isinstance(error, MasterKeyError) else "the acknowledgement is not signed"
            return HolderTold(workflow=workflow_id, state="refused", detail=reason)
        self.event(f"ended.{signed.digest[7:19]}", "holder-ended", document=signed.document, signature=signed.signature)
        return HolderTold(workflow=workflow_id, state="ended", detail=recipient.name)


@workflow.defn
class HoldWorkflow(Ceremony):
    """A recipient holds a MasterKey, and wants to hear of a stop. Runs for as long as the program that has it."""

    @workflow.init
    def __init__(self, request: HoldRequest) -> None:
        super().__init__(request.ceremony, "unseal", request.master_key)
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
        recorded = await self.ledger(
            names.RECORD_HOLDING,
            RecordHolding(
                ceremony=self.ceremony,
                master_key=self.master_key,
                workflow_id=workflow.info().workflow_id,
                state=state,
            ),
            HoldingRecorded,
        )
        return recorded.stops
