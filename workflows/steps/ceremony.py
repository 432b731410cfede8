"""A ceremony that asks people: messages from custodians, the wait for a quorum, and what it says of itself.

A ceremony is a state machine with named phases; the query `status` answers in every one of them. Handlers
take whatever is sent and never raise (a handler that raises fails the workflow task for ever); only the
update's validator refuses, and that answer reaches the sender.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError
from temporalio import workflow

from workflows.calls.failures import as_failure
from workflows.calls.ledger import call_ledger
from workflows.contracts import names
from workflows.contracts.messages.ledger import ENDS, PlanMade
from workflows.contracts.messages.status import CeremonyStatus, KeystoreHealth, SubmitOutcome
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import DocumentInvalid, MasterKeyError
from workflows.contracts.trust.fields import Action
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.service_errors import CeremonyEnded, DeadlinePassed
from workflows.steps.quorum import Quorum
from workflows.steps.record import RecordedWorkflow

_REMEMBERED_REFUSALS = 20


class Ceremony(RecordedWorkflow):
    """State and messages of a running ceremony."""

    def __init__(self, ceremony: str, action: Action, master_key: str) -> None:
        super().__init__(ceremony, action, master_key)
        self.attempt = 0
        self.plan: Plan | None = None
        self.quorum: Quorum | None = None
        self.changes: tuple[str, ...] = ()
        """What the plan changes, in words."""
        self._refusals = 0
        self._changes = 0

    # --- messages --------------------------------------------------------------------------------------------

    @workflow.signal(name="approve")
    def approve(self, signed: Any = None, *extra: Any) -> None:
        """A custodian's signed approval or rejection; anything else is counted and ignored."""
        try:
            self._accept(_as_signed(signed, extra))
        except MasterKeyError as error:
            self.refuse_message(error)

    @workflow.update(name="submit")
    def submit(self, signed: Any = None, *extra: Any) -> SubmitOutcome:
        """As the signal, but the sender gets an answer."""
        return self._accept(_as_signed(signed, extra))

    @submit.validator
    def check_submission(self, signed: Any = None, *extra: Any) -> None:
        """Refuse, before it is written to the history, what is not a valid decision on this plan."""
        try:
            self._open_quorum().check(_as_signed(signed, extra), self.now())
        except MasterKeyError as error:
            raise as_failure(error) from None

    @workflow.query(name="status")
    def status(self) -> CeremonyStatus:
        """What this ceremony is doing and what it waits for."""
        quorum, now = self.quorum, self.now()
        return CeremonyStatus(
            ceremony=self.ceremony,
            action=self.action,
            master_key=self.master_key,
            phase=self.phase,
            plan=self.plan.canonical().decode() if self.plan else None,
            deadline=self.plan.expires if self.plan else None,
            approved_by=self.approved_by,
            rejected_by=quorum.rejected_by if quorum else (),
            needed=quorum.needed(now) if quorum else "",
            missing=quorum.missing(now) if quorum else (),
            keystores=tuple(self.keystores.values()),
            attempt=self.attempt,
            refused_messages=self._refusals,
            detail=self.detail,
            wanted=self.wanted_of(),
            health=self.health(),
            changes=self.changes,
            build=self.build,
        )

    @property
    def approved_by(self) -> tuple[str, ...]:
        """Names of those who approved the plan."""
        return self.quorum.approved_by if self.quorum else ()

    def wanted_of(self) -> tuple[str, ...]:
        """Offline keystores whose custodians could contribute something."""
        return ()

    def health(self) -> tuple[KeystoreHealth, ...]:
        """How the keystores are, as far as this ceremony has assessed it."""
        return ()

    def check_open(self) -> None:
        """Raise CeremonyEnded when this ceremony is over."""
        if self.phase in ENDS:
            raise CeremonyEnded(f"this ceremony is over ({self.phase}); nothing was changed")

    def refuse_message(self, error: MasterKeyError) -> None:
        """Count a message that is refused; the first of them are recorded."""
        self._refusals += 1
        if self._refusals <= _REMEMBERED_REFUSALS:
            self.failed(f"refused.{self._refusals}", "message-refused", error)

    def _open_quorum(self) -> Quorum:
        if self.quorum is None:
            raise CeremonyEnded("this ceremony asks nobody, or not yet", next_step="look at `masterkey ceremony show`")
        self.check_open()
        return self.quorum

    def _accept(self, signed: Signed) -> SubmitOutcome:
        outcome = self._open_quorum().add(signed, self.now())
        if outcome.state == "accepted":
            self.changed()
            self.signed(
                f"{outcome.decision}.{outcome.custodian}.{signed.digest[7:19]}",
                "approval-recorded" if outcome.decision == "approve" else "rejection-recorded",
                signed,
                custodian=outcome.custodian,
            )
        return outcome

    # --- the quorum ------------------------------------------------------------------------------------------

    async def ask(self, quorum: Quorum) -> None:
        """Write the plan to the ledger, and wait until enough custodians have approved it; raises as the wait does."""
        self.quorum, self.plan = quorum, quorum.plan
        await self.enter("quorum")
        plan = self.plan.canonical().decode()
        await call_ledger(
            names.RECORD_PLAN,
            PlanMade(ceremony=self.ceremony, master_key=self.master_key, phase=self.phase, plan=plan),
        )
        await self.wait_for_quorum("quorum")

    async def wait_for_quorum(self, phase: str) -> None:
        """Wait until enough custodians have approved.

        Raises:
            CeremonyEnded: so many refused that it can never be reached.
            DeadlinePassed: it was not reached in time.
        """
        quorum = self._open_quorum()
        await self.enter(phase, flush=True)
        self.check_course()
        while not quorum.reached(self.now()):
            if quorum.unreachable():
                who = ", ".join(quorum.rejected_by)
                raise CeremonyEnded(f"refused by {who}: the quorum can no longer be reached")
            if self.now() >= quorum.plan.expires:
                silent, needed = ", ".join(quorum.missing(self.now())), quorum.needed(self.now())
                raise DeadlinePassed(f"the deadline passed; still needed: {needed}; no decision in force of: {silent}")
            await self.sleep_until_change(quorum.plan.expires)
            self.check_course()
        await self.enter(phase, flush=True)

    def check_course(self) -> None:
        """Called around every wait; raises what makes this ceremony go another way."""

    def changed(self) -> None:
        """Wake whoever sleeps until something changes."""
        self._changes += 1

    async def sleep_until_change(self, until: datetime) -> None:
        """Sleep until a decision arrives, an approval expires, or `until`."""
        seen, ends = self._changes, [until]
        if self.quorum is not None and (expiry := self.quorum.next_expiry(self.now())) is not None:
            # A second later it has expired for certain.
            ends.append(expiry + timedelta(seconds=1))
        timeout = max(min(ends) - workflow.now(), timedelta(seconds=1))
        try:
            await workflow.wait_condition(lambda: self._changes != seen, timeout=timeout)
        except TimeoutError:
            return

    def authority(self, plan: Plan, request: Signed | None = None) -> Authority:
        """What is shown to keystores and strongroom: the plan, approvals in force, the recipient's request."""
        approvals = tuple(self.quorum.approvals(self.now()).values()) if self.quorum else ()
        return Authority(plan=plan.canonical().decode(), approvals=approvals, request=request)


def _as_signed(value: Any, extra: tuple[Any, ...]) -> Signed:
    try:
        if extra:
            raise DocumentInvalid("one signed document is expected, not several values")
        return Signed.model_validate(value)
    except ValidationError:
        raise DocumentInvalid("a signed document has the text fields `document` and `signature`") from None
