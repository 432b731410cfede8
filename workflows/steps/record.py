"""A workflow whose steps stand in the ledger: opened, recorded event by event, and closed whatever ends it.

What every ceremony is: those that ask people, and those that do not. Its work may be cancelled or interrupted at any
point but where something must not be left half done; the record is closed all the same.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio import workflow

from workflows.calls.failures import as_failure
from workflows.calls.ledger import call_ledger
from workflows.contracts import names
from workflows.contracts.messages.ledger import (
    BeginCeremony,
    Begun,
    BundleExported,
    CloseCeremony,
    Event,
    ExportBundle,
    Outcome,
    RecordEvents,
)
from workflows.contracts.messages.status import KeystoreProgress
from workflows.contracts.trust.canonical import Message, Signed, digest
from workflows.contracts.trust.errors import MasterKeyError, RosterInvalid
from workflows.contracts.trust.fields import Action
from workflows.contracts.trust.roster import Roster

M = TypeVar("M", bound=Message)
T = TypeVar("T")

_EXPORT_TIMEOUT = timedelta(minutes=2)
_OUTCOMES: dict[str, Outcome] = {
    "CeremonyEnded": "refused",
    "DeadlinePassed": "expired",
    "ApprovalInvalid": "refused",
    "ManifestInvalid": "refused",
    "PlanInvalid": "refused",
    "NameTaken": "refused",
    "Stopped": "refused",
}
"""How a ceremony ends that fails, by the type of the error; `failed` for any other."""
_BUILD = re.compile(r"[0-9][^ ]*-[0-9a-f]{12}")


def build_of_this_task() -> str:
    """The orchestrator's build that does, or did, the present workflow task; empty if its worker named none."""
    build = workflow.info().get_current_build_id()
    return build if _BUILD.fullmatch(build) else ""


class RecordedWorkflow:
    """State and record of a running ceremony."""

    def __init__(self, ceremony: str, action: Action, master_key: str) -> None:
        self.ceremony = ceremony
        self.action = action
        self.master_key = master_key
        self.phase = "planning"
        self.build = build_of_this_task()
        self.detail = ""
        self.keystores: dict[str, KeystoreProgress] = {}
        self._events: list[Event] = []
        self._working: asyncio.Future[Any] | None = None
        self._interruption: MasterKeyError | None = None

    # --- the record ------------------------------------------------------------------------------------------

    def event(self, key: str, type_: str, **body: str | int | bool | list[str] | None) -> None:
        """Remember an event; it is written with the next record."""
        self._events.append(Event(key=key, type=type_, body=body))

    def failed(self, key: str, type_: str, error: MasterKeyError, **body: str) -> None:
        """Remember an event that says what went wrong."""
        self.event(key, type_, **body, error=error.failure_type, reason=error.message)

    def signed(self, key: str, type_: str, words: Signed, **body: str) -> None:
        """Remember an event that holds what somebody signed."""
        self.event(key, type_, **body, document=words.document, signature=words.signature)

    async def enter(self, phase: str, *, flush: bool = False) -> None:
        """Enter a phase, and write the events so far if asked to."""
        if phase != self.phase:
            self.phase = phase
            workflow.upsert_search_attributes([names.PHASE.value_set(phase)])
        if flush and self._events:
            await call_ledger(
                names.RECORD_EVENTS,
                RecordEvents(ceremony=self.ceremony, master_key=self.master_key, phase=phase, events=self._unwritten()),
            )

    async def begin(
        self,
        manifest: str | None = None,
        request: Signed | None = None,
        *,
        all_active: bool = False,
        stop: Signed | None = None,
    ) -> tuple[Begun, Roster]:
        """Open this ceremony in the ledger, and get what its plan is made from, and who everybody is."""
        begun = await call_ledger(
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
                build=self.build or None,
            ),
            Begun,
        )
        if digest(begun.roster.encode()) != begun.roster_digest:
            raise RosterInvalid("the orchestrator's roster is not the one of its digest")
        return begun, Roster.parse(begun.roster.encode())

    async def close(self, outcome: Outcome, detail: str) -> None:
        """Enter the last phase and close the ceremony in the ledger; discards what is staged still."""
        self.detail = detail
        await self.enter(outcome)
        await call_ledger(
            names.CLOSE_CEREMONY,
            CloseCeremony(
                ceremony=self.ceremony,
                master_key=self.master_key,
                outcome=outcome,
                detail=detail,
                events=self._unwritten(),
            ),
        )

    def _unwritten(self) -> tuple[Event, ...]:
        events, self._events = tuple(self._events), []
        return events

    async def export_bundle(self) -> tuple[str, ...]:
        """Write the bundle to its configured places; one that cannot be written is an event, and no reason to fail."""
        try:
            exported = await self._export()
        except MasterKeyError as error:
            self.event("bundle", "bundle-not-exported", error=error.failure_type, reason=error.diagnostics)
            return ()
        if exported.places:
            self.event("bundle", "bundle-exported", places=list(exported.places), head=exported.digest)
        return exported.places

    async def finish(self, detail: str) -> tuple[str, ...]:
        """Close the ceremony as done, and write the bundle once more: one that knows of its end.

        Returns:
            Where the bundle was written; nowhere is no reason to fail, and cannot be recorded any more.
        """
        await self.close("done", detail)
        try:
            return (await self._export()).places
        except MasterKeyError as error:
            workflow.logger.warning("the bundle was not exported: %s", error.diagnostics)
            return ()

    async def _export(self) -> BundleExported:
        request = ExportBundle(ceremony=self.ceremony, master_key=self.master_key)
        return await call_ledger(names.EXPORT_BUNDLE, request, BundleExported, within=_EXPORT_TIMEOUT)

    # --- the work --------------------------------------------------------------------------------------------

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

    async def to_its_end(self, tail: Awaitable[T]) -> T:
        """Do what must not be left half done: a cancellation comes too late by now, and changes nothing."""
        task = asyncio.ensure_future(tail)
        while True:
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise

    async def _fail(self, error: MasterKeyError) -> None:
        self.failed("ended", "ceremony-failed", error)
        await self._close_if_possible(_OUTCOMES.get(error.failure_type, "failed"), error.diagnostics)

    async def _close_if_possible(self, outcome: Outcome, detail: str) -> None:
        # A ledger that refuses the record must not hide what ended the ceremony, nor hang it for ever.
        try:
            await self.close(outcome, detail)
        except MasterKeyError as error:
            workflow.logger.error("the ledger refused the record of %s: %s", self.ceremony, error.message)

    # --- for whoever watches ---------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The workflow's time, whole seconds."""
        return workflow.now().replace(microsecond=0)

    def progress(self, keystore: str, state: str, error: MasterKeyError | None = None) -> None:
        """Remember how far a keystore is, for whoever watches."""
        self.keystores[keystore] = KeystoreProgress(
            keystore=keystore,
            state=state,
            error=error.failure_type if error else "",
            detail=error.diagnostics if error else "",
        )

    @contextmanager
    def asking(self, keystore: str, *, then: str = "answered") -> Iterator[None]:
        """While a keystore is asked, whoever watches sees so; and afterwards that it answered, or failed and how."""
        self.progress(keystore, "asked")
        try:
            yield
        except MasterKeyError as error:
            self.progress(keystore, "failed", error)
            raise
        self.progress(keystore, then)
