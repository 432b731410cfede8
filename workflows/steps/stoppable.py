"""A ceremony that a custodian's stop ends: it verifies the order, ends, and tells the ceremony that sent it."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from temporalio import workflow

from workflows.contracts import names
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import AuthorityInvalid, DocumentInvalid, MasterKeyError
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.service_errors import Stopped
from workflows.contracts.trust.stop import Stop, check_stop
from workflows.steps.ceremony import Ceremony


class Stoppable(Ceremony):
    """What a release needs to hear of a stop. The ledger refuses ceremonies that begin after it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._roster: Roster | None = None
        self._stops: list[Signed] = []
        self._heeded: dict[str, Stop] = {}

    @workflow.signal(name="stop")
    def stop(self, signed: Any = None, *extra: Any) -> None:
        """A custodian's signed stop; anything else is counted and ignored."""
        try:
            self._stops.append(Signed.model_validate(signed))
        except ValidationError:
            self.refuse_message(DocumentInvalid("a stop has the text fields `document` and `signature`"))
            return
        self._heed()

    def know_roster(self, roster: Roster) -> None:
        """Take the roster by which stops are judged; those that came before are judged now."""
        self._roster = roster
        self._heed()

    def _heed(self) -> None:
        if self._roster is None:
            return
        stops, self._stops = self._stops, []
        for signed in stops:
            try:
                stop, who = check_stop(self._roster, signed, self.now())
                if stop.master_key != self.master_key:
                    raise AuthorityInvalid(
                        "the stop is of another MasterKey", next_step="sign one that names this MasterKey"
                    )
            except MasterKeyError as error:
                self.refuse_message(error)
                continue
            if signed.digest in self._heeded:
                continue
            self._heeded[signed.digest] = stop
            # Two custodians may stop it at the same moment.
            self.signed(f"stopped.{signed.digest[7:19]}", "stop-heeded", signed)
            self.interrupt(Stopped(f"{who} ordered to stop serving {self.master_key} ({stop.reason or 'no reason'})"))

    async def acknowledge_stop(self) -> None:
        """Tell the ceremonies that sent a stop that this one has ended; one may be over, and need not know any more."""
        for stop in self._heeded.values():
            try:
                order = workflow.get_external_workflow_handle(names.workflow_id(stop.ceremony))
                await order.signal("acknowledge", {"workflow": workflow.info().workflow_id})
            except Exception as error:  # noqa: BLE001 - whatever keeps the signal from arriving
                workflow.logger.info("the stop's own ceremony did not hear that this one has ended: %s", error)
