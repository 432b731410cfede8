"""What all ceremonies share: messages from custodians, the wait for a quorum, progress, and the record.

A ceremony is a state machine with named phases; the query `status` answers in every one of them. Handlers
take whatever is sent and never raise (a handler that raises fails the workflow task for ever); only the
update's validator refuses, and that answer reaches the sender.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import ValidationError
from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

from workflows.calls.failures import as_failure, from_failure
from workflows.contracts import names
from workflows.contracts.messages.ledger import BeginCeremony, Begun, CloseCeremony, Event, PlanMade, RecordEvents
from workflows.contracts.messages.status import CeremonyStatus, KeystoreHealth, KeystoreProgress, SubmitOutcome
from workflows.contracts.trust.canonical import Message, Signed, digest
from workflows.contracts.trust.errors import (
    ApprovalInvalid,
    CeremonyEnded,
    DeadlinePassed,
    MasterKeyError,
    RosterInvalid,
)
from workflows.contracts.trust.plan import Plan, RecipientRequest
from workflows.contracts.trust.quorum import Authority
from workflows.steps.quorum import Quorum

M = TypeVar("M", bound=Message)
T = TypeVar("T")

_LEDGER_TIMEOUT = timedelta(seconds=30)
_LEDGER_RETRY = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30))
"""The ledger may be away for hours: its activities are retried until it is back."""
_REMEMBERED_REFUSALS = 20


class Ceremony:
    """State and messages of a running ceremony."""

    def __init__(self, ceremony: str, action: str, master_key: str) -> None:
        self.ceremony = ceremony
        self.action = action
        self.master_key = master_key
        self.phase = "planning"
        self.detail = ""
        self.attempt = 0
        self.plan: Plan | None = None
        self.quorum: Quorum | None = None
        self.keystores: dict[str, KeystoreProgress] = {}
        self.changes: tuple[str, ...] = ()
        """What the plan changes, in words."""
        self._excluded: set[int] = set()
        self._events: list[Event] = []
        self._refusals = 0
        self._changes = 0
        self._working: asyncio.Future[Any] | None = None
        self._interruption: MasterKeyError | None = None

    # --- messages ------------------------------------------------------------------------------------

    @workflow.signal(name="approve")
    def approve(self, signed: Any = None, *extra: Any) -> None:
        """A custodian's signed approval or rejection; anything else is counted and ignored."""
        try:
            self._accept(_as_signed(signed, extra))
        except MasterKeyError as error:
            self._refuse(error)

    @workflow.update(name="submit")
    def submit(self, signed: Any = None, *extra: Any) -> SubmitOutcome:
        """As the signal, but the sender is told what came of it."""
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
            approved_by=quorum.approved_by if quorum else (),
            rejected_by=quorum.rejected_by if quorum else (),
            needed=quorum.needed(now, self._excluded) if quorum else "",
            missing=quorum.missing(now) if quorum else (),
            keystores=tuple(self.keystores.values()),
            attempt=self.attempt,
            refused_messages=self._refusals,
            detail=self.detail,
            wanted=self.wanted_of(),
            health=self.health(),
            changes=self.changes,
        )

    def wanted_of(self) -> tuple[str, ...]:
        """Offline keystores whose custodians could contribute something."""
        return ()

    def health(self) -> tuple[KeystoreHealth, ...]:
        """How the keystores are, as far as this ceremony has assessed it."""
        return ()

    def _open_quorum(self) -> Quorum:
        if self.quorum is None:
            raise CeremonyEnded("this ceremony asks nobody, or not yet", next_step="look at `masterkey ceremony show`")
        self.check_open()
        return self.quorum

    def check_open(self) -> None:
        """Raise CeremonyEnded when this ceremony is over."""
        if self.phase in ENDS:
            raise CeremonyEnded(f"this ceremony is over ({self.phase}); nothing was changed")

    def _accept(self, signed: Signed) -> SubmitOutcome:
        outcome = self._open_quorum().add(signed, self.now())
        if outcome.state == "accepted":
            self._changes += 1
            self.event(
                f"{outcome.decision}.{outcome.custodian}.{signed.digest[7:19]}",
                "approval-recorded" if outcome.decision == "approve" else "rejection-recorded",
                custodian=outcome.custodian,
                document=signed.document,
                signature=signed.signature,
            )
        return outcome

    def _refuse(self, error: MasterKeyError) -> None:
        self._refusals += 1
        if self._refusals <= _REMEMBERED_REFUSALS:
            self.event(
                f"refused.{self._refusals}",
                "message-refused",
                error=type(error).__name__,
                reason=error.message,
            )

    # --- the record ----------------------------------------------------------------------------------

    def event(self, key: str, type_: str, **body: str | int | bool | list[str] | None) -> None:
        """Remember an event; it is written with the next record."""
        self._events.append(Event(key=key, type=type_, body=body))

    async def enter(self, phase: str, *, flush: bool = False) -> None:
        """Enter a phase, and write the events so far if asked to."""
        if phase != self.phase:
            self.phase = phase
            workflow.upsert_search_attributes([names.PHASE.value_set(phase)])
        if flush and self._events:
            events, self._events = tuple(self._events), []
            await self.ledger(
                names.RECORD_EVENTS,
                RecordEvents(ceremony=self.ceremony, master_key=self.master_key, phase=phase, events=events),
            )

    async def ledger(
        self, activity: str, request: Message, result: type[M] | None = None, *, patience: timedelta | None = None
    ) -> M:
        """An activity of the orchestrator over the ledger; retried until the ledger is back, or patience is over.

        Raises:
            MasterKeyError: the ledger refused.
        """
        try:
            answer: M = await workflow.execute_activity(
                activity,
                request,
                result_type=result,
                start_to_close_timeout=_LEDGER_TIMEOUT,
                schedule_to_close_timeout=patience,
                retry_policy=_LEDGER_RETRY,
            )
        except ActivityError as error:
            raise from_failure(error) from None
        return answer

    async def begin(
        self,
        manifest: str | None = None,
        request: Signed | None = None,
        *,
        all_active: bool = False,
        stop: Signed | None = None,
    ) -> Begun:
        """Open this ceremony in the ledger, and get what its plan is made from."""
        begun = await self.ledger(
            names.BEGIN_CEREMONY,
            BeginCeremony(
                ceremony=self.ceremony,
                workflow_id=workflow.info().workflow_id,
                action=self.action,
                master_key=self.master_key,
                manifest=manifest,
                all_active=all_active,
                request=request,
                stop=stop,
                opened_at=self.now(),
            ),
            Begun,
        )
        if digest(begun.roster.encode()) != begun.roster_digest:
            raise RosterInvalid("the orchestrator's roster is not the one of its digest")
        return begun

    async def record_plan(self, plan: Plan, phase: str) -> None:
        """Write the plan to the ledger and enter the phase in which it is decided."""
        self.plan = plan
        await self.enter(phase)
        await self.ledger(
            names.RECORD_PLAN,
            PlanMade(
                ceremony=self.ceremony,
                master_key=self.master_key,
                phase=phase,
                plan=plan.canonical().decode(),
            ),
        )

    async def close(self, outcome: str, detail: str) -> None:
        """Enter the last phase and close the ceremony in the ledger; discards what is staged still."""
        self.detail = detail
        await self.enter(outcome)
        events, self._events = tuple(self._events), []
        await self.ledger(
            names.CLOSE_CEREMONY,
            CloseCeremony(
                ceremony=self.ceremony,
                master_key=self.master_key,
                outcome=outcome,
                detail=detail,
                events=events,
            ),
        )

    async def run_to_the_end(self, work: Callable[[], Awaitable[M]]) -> M:
        """Do the ceremony's work; whatever ends it, the ledger learns of it.

        Raises:
            ApplicationError: the failure, with the type of our error.
        """
        workflow.upsert_search_attributes(
            [
                names.MASTER_KEY.value_set(self.master_key),
                names.ACTION.value_set(self.action),
                names.CEREMONY.value_set(self.ceremony),
                names.PHASE.value_set(self.phase),
            ]
        )
        self._working = working = asyncio.ensure_future(work())
        if self._interruption is not None:
            working.cancel()
        try:
            return await working
        except MasterKeyError as error:
            # A cancellation comes too late by now: it must not leave the record open, and what is staged behind.
            await self.to_its_end(self._fail(error))
            raise as_failure(error) from None
        except asyncio.CancelledError:
            if self._interruption is not None:
                await self.to_its_end(self._fail(self._interruption))
                raise as_failure(self._interruption) from None
            # Cleaning up is shielded: the cancellation has done its work by ending `work`.
            self.event("ended", "ceremony-cancelled")
            await asyncio.shield(asyncio.ensure_future(self._close_if_possible("refused", "cancelled by an operator")))
            raise

    def interrupt(self, error: MasterKeyError) -> None:
        """End the ceremony's work with an error, wherever it is; too late where nothing may be left half done."""
        self._interruption = self._interruption or error
        if self._working is not None:
            self._working.cancel()

    async def _fail(self, error: MasterKeyError) -> None:
        self.event("ended", "ceremony-failed", error=type(error).__name__, reason=error.message)
        await self._close_if_possible(_OUTCOMES.get(type(error).__name__, "failed"), error.diagnostics)

    async def to_its_end(self, tail: Awaitable[T]) -> T:
        """Do what must not be left half done: a cancellation comes too late by now, and changes nothing."""
        task = asyncio.ensure_future(tail)
        while True:
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise

    async def _close_if_possible(self, outcome: str, detail: str) -> None:
        # A ledger that refuses the record must not hide what ended the ceremony, nor hang it for ever.
        try:
            await self.close(outcome, detail)
        except MasterKeyError as error:
            workflow.logger.error("the ledger refused the record of %s: %s", self.ceremony, error.message)

    # --- the quorum ----------------------------------------------------------------------------------

    async def wait_for_quorum(self, phase: str) -> None:
        """Wait until enough custodians have approved.

        Raises:
            CeremonyEnded: so many refused that it can never be reached, or the deadline passed.
        """
        quorum, plan = self._open_quorum(), self.plan
        assert plan is not None  # noqa: S101 - there is no quorum without a plan
        await self.enter(phase, flush=True)
        self.check_course()
        while not quorum.reached(self.now(), self._excluded):
            if quorum.unreachable(self._excluded):
                who = ", ".join(quorum.rejected_by)
                raise CeremonyEnded(f"refused by {who}: the quorum can no longer be reached")
            if self.now() >= plan.expires:
                silent = ", ".join(quorum.missing(self.now()))
                needed = quorum.needed(self.now(), self._excluded)
                raise DeadlinePassed(f"the deadline passed; still needed: {needed}; no decision in force of: {silent}")
            await self.sleep_until_change(plan.expires)
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

    def authority(self, request: Signed | None = None) -> Authority:
        """What is shown to keystores and strongroom: the plan, approvals in force, the recipient's request."""
        assert self.plan is not None  # noqa: S101 - asked for only once the plan is made
        approvals: Iterable[Signed] = self.quorum.approvals(self.now()).values() if self.quorum else ()
        return Authority(plan=self.plan.canonical().decode(), approvals=tuple(approvals), request=request)

    def exclude(self, indexes: Collection[int]) -> None:
        """Shards that cannot be used in this ceremony any more."""
        self._excluded |= set(indexes)

    # --- small things --------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The workflow's time, whole seconds."""
        return workflow.now().replace(microsecond=0)

    def progress(self, keystore: str, state: str, error: MasterKeyError | None = None) -> None:
        """Remember how far a keystore is, for whoever watches."""
        self.keystores[keystore] = KeystoreProgress(
            keystore=keystore,
            state=state,
            error=type(error).__name__ if error else "",
            detail=error.diagnostics if error else "",
        )


_OUTCOMES = {
    "CeremonyEnded": "refused",
    "DeadlinePassed": "expired",
    "ApprovalInvalid": "refused",
    "ManifestInvalid": "refused",
    "PlanInvalid": "refused",
    "NameTaken": "refused",
    "Stopped": "refused",
}
ENDS = ("done", "refused", "failed", "expired")
"""The phases in which a ceremony is over."""


def parse_request(signed: Signed) -> RecipientRequest:
    """The recipient's request, unverified: `check_request` verifies it against the plan made from it."""
    return RecipientRequest.parse(signed.document.encode())


def _as_signed(value: Any, extra: tuple[Any, ...]) -> Signed:
    try:
        if extra:
            raise ApprovalInvalid("one signed document is expected, not several values")
        return Signed.model_validate(value)
    except ValidationError:
        raise ApprovalInvalid("a signed document has the text fields `document` and `signature`") from None
