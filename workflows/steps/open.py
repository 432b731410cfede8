"""Opening a protection: enough of its keystores are asked for their data keys, again and again until it works.

What an unseal, a reshard and a recovery share. Keystores are asked hedged; one that fails is asked last the next
time; a shard that can never open is left out. When too few answer, the ceremony waits, durably, and tries again:
after a pause that grows, with every new approval, and when the custodian of an offline keystore is present.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from temporalio import workflow

from workflows.calls.keystores import call_keystore, hedged
from workflows.calls.sessions import with_session
from workflows.contracts import names
from workflows.contracts.messages.keystore import UnwrapDataKey
from workflows.contracts.messages.ledger import ENDS
from workflows.contracts.messages.protection import DekAnswer
from workflows.contracts.messages.strongroom import SessionOpened
from workflows.contracts.trust.errors import ApprovalInvalid, CiphertextInvalid, MasterKeyError, SessionLost
from workflows.contracts.trust.fields import Action, Work
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.quorum import Authority, custodians_of
from workflows.contracts.trust.roster import Roster, Strongroom
from workflows.contracts.trust.service_errors import QuorumUnreachable, Stopped
from workflows.steps.backoff import backoff, history_budget
from workflows.steps.contribute import Contributing
from workflows.steps.protections import StoredManifest
from workflows.steps.quorum import Quorum

R = TypeVar("R")

_TIMEOUT = timedelta(seconds=25)
_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=1), timedelta(seconds=60)


class Opening(Contributing):
    """A ceremony that opens a protection."""

    def __init__(self, ceremony: str, action: Action, master_key: str) -> None:
        super().__init__(ceremony, action, master_key)
        self.excluded: set[int] = set()
        """Indexes of the shards that cannot be used in this ceremony any more."""
        self._errors: dict[int, MasterKeyError] = {}
        self._rows: dict[int, str] = {}
        self._threshold = 1
        self._waits = 0

    def open_what(self, source: StoredManifest, plan: Plan, roster: Roster) -> Quorum:
        """Remember the shards of the protection that this ceremony opens; returns the quorum that releases them."""
        manifest = source.manifest
        self._errors, self.excluded, self._waits = {}, set(), 0
        self._rows = {shard.binding.index: shard.binding.keystore for shard in manifest.shards}
        self._threshold = manifest.threshold
        self.know_offline(roster, self._rows.values())
        for name in self._rows.values():
            self.progress(name, "waiting")
        custody = custodians_of(plan, manifest)
        return Quorum(plan, roster, custody, manifest.threshold if custody else 0, self.excluded)

    async def open_until_done(
        self,
        plan: Plan,
        strongroom: Strongroom,
        purpose: Work,
        phase: str,
        work: Callable[[SessionOpened], Awaitable[R]],
    ) -> R:
        """Open sessions and do `work` in them until it succeeds.

        Args:
            plan: what is done, and until when.
            strongroom: where sessions are opened.
            purpose: of the sessions.
            phase: how the ceremony's phase is called meanwhile.
            work: one attempt: keystore calls and the one call of the session.

        Raises:
            QuorumUnreachable, ApprovalInvalid, CiphertextInvalid: it can never succeed, or the time is over.
        """
        while True:
            if self.quorum is not None:
                # Approvals may have expired, or shards dropped out, since the quorum stood.
                await self.wait_for_quorum("quorum" if self.attempt == 0 else "waiting")
            enough = len(self._candidates()) >= self._threshold
            if enough:
                self.attempt += 1
                await self.enter(phase)
                try:
                    return await with_session(plan, strongroom.name, purpose, self.attempt, work)
                except TooFewAnswers:
                    self._raise_if_unrecoverable()
                except SessionLost as error:
                    self.event(f"session-lost.{self.attempt}", "session-lost", reason=error.message)
                except (CiphertextInvalid, ApprovalInvalid) as error:
                    self._attribute_failure(error)
                except TargetFailed as error:
                    self.target_failed(error.cause)
            else:
                self._raise_if_unrecoverable()
            if self.now() >= plan.expires:
                raise QuorumUnreachable(f"the deadline passed; {self.failure_summary()}")
            await self.back_off(plan, enough=enough)

    async def back_off(self, plan: Plan, *, enough: bool = True) -> None:
        """Wait before the next attempt, longer every time, until something changes or the plan expires.

        Args:
            plan: until when.
            enough: whether another attempt may succeed by itself; else only a change can help.
        """
        await self.enter("waiting", flush=True)
        left, info = plan.expires - self.now(), workflow.info()
        events, size = info.get_current_history_length(), info.get_current_history_size()
        budget = history_budget(self.attempt, events, size, left)
        wait = max(backoff(self._waits, _FIRST_WAIT, _LONGEST_WAIT), budget) if enough else left
        await self.sleep_until_change(self.now() + min(wait, left))
        self.check_course()
        self._waits += 1

    async def ask_for_data_keys(
        self, opened: SessionOpened, source: StoredManifest, authority: Authority
    ) -> tuple[DekAnswer, ...]:
        """Data keys of M shards, for an open session.

        Raises:
            TooFewAnswers: fewer keystores answered.
        """
        rows = {row.index: row for row in source.stored.shards}

        def ask(index: int) -> asyncio.Task[DekAnswer]:
            keystore, row = self._rows[index], rows.get(index)
            self.progress(keystore, "asked")
            request = UnwrapDataKey(
                keystore=keystore,
                index=index,
                authority=authority,
                session=opened.announcement,
                manifest=source.stored.manifest,
                wrapped_dek=row.wrapped_dek if row else "",
            )
            if self.is_offline(keystore):
                return asyncio.create_task(self.ask_for_data_key(request))
            return asyncio.create_task(
                call_keystore(names.UNWRAP_DATA_KEY, keystore, request, DekAnswer, within=_TIMEOUT)
            )

        answers = await hedged(self._candidates(), self._threshold, ask, self._failed)
        for index in answers:
            self.progress(self._rows[index], "answered")
            self._errors.pop(index, None)
        self.served_by = tuple(self._rows[index] for index in sorted(answers))
        if len(answers) < self._threshold:
            raise TooFewAnswers(f"{len(answers)} of {self._threshold} keystores answered")
        return tuple(answers[index] for index in sorted(answers))

    served_by: tuple[str, ...] = ()
    """The keystores that gave back data keys at the last attempt."""

    @property
    def failed_keystores(self) -> tuple[str, ...]:
        """The keystores that failed and did not serve in the end."""
        return tuple(sorted({self._rows[index] for index in self._errors} - set(self.served_by)))

    def ask_last(self, index: int, error: MasterKeyError) -> None:
        """Ask a shard's keystore last: it did not answer when it was asked before."""
        self._errors[index] = error

    def target_failed(self, error: MasterKeyError) -> None:
        """A keystore failed that is not one of those that are opened; raises it where that cannot pass."""
        raise error

    def wanted_of(self) -> tuple[str, ...]:
        """Also the offline keystores whose shard may be released, as long as it could still be of use."""
        if self.phase in ("planning", "proving", "committing", *ENDS):
            return super().wanted_of()
        releasable = {self._rows[index] for index in self._releasable()}
        return tuple(sorted({*super().wanted_of(), *(releasable & set(self._offline))}))

    # --- which shards ----------------------------------------------------------------------------------------

    def _releasable(self) -> list[int]:
        if self.quorum is not None and self._rows and self.quorum.opens_shards:
            return self.quorum.releasable(self.now())
        return [index for index in self._rows if index not in self.excluded]

    def _candidates(self) -> list[int]:
        indexes = [
            i for i in self._releasable() if not self.is_offline(self._rows[i]) or self.is_present(self._rows[i])
        ]
        # Those that failed before come last, so that a dead cloud costs its delay once; people before them.
        return sorted(indexes, key=lambda index: (index in self._errors, self.is_offline(self._rows[index]), index))

    def _failed(self, index: int, error: MasterKeyError) -> None:
        self._errors[index] = error
        permanent = isinstance(error, (CiphertextInvalid, ApprovalInvalid))
        if permanent:
            self.excluded.add(index)
        self.progress(self._rows[index], "quarantined" if permanent else "failed", error)
        self.failed(
            f"keystore-failed.{self.attempt}.{index}",
            "shard-quarantined" if isinstance(error, CiphertextInvalid) else "keystore-failed",
            error,
            keystore=self._rows[index],
        )

    def _attribute_failure(self, error: MasterKeyError) -> None:
        """The session refused: because of one keystore's answer or row, or altogether."""
        guilty = [index for index, name in self._rows.items() if name == error.subject]
        if not guilty:
            raise error
        self._failed(guilty[0], error)
        if len(self._rows) - len(self.excluded) < self._threshold:
            raise error

    def _raise_if_unrecoverable(self) -> None:
        """Give up when waiting cannot help: data that will never open, or an answer that will not change."""
        usable = [index for index in self._rows if index not in self.excluded]
        if len(usable) < self._threshold:
            refusals = [e for e in self._errors.values() if isinstance(e, (ApprovalInvalid, CiphertextInvalid))]
            if len({error.failure_type for error in refusals}) == 1:
                raise refusals[0]
            raise QuorumUnreachable(f"too few shards can ever be released; {self.failure_summary()}")
        if stopped := next((error for error in self._errors.values() if isinstance(error, Stopped)), None):
            # Every keystore hears of it, and none serves until it is lifted.
            raise stopped
        if self.gives_up and self._errors and not any(error.retryable for error in self._errors.values()):
            raise QuorumUnreachable(f"no keystore can release its shard; {self.failure_summary()}")

    gives_up = False
    """Whether to end, rather than to wait, when no keystore's answer can change by itself."""

    def failure_summary(self) -> str:
        """What keystores have said against it, in one line."""
        said = [f"{self._rows[i]}: {e.failure_type} ({e.diagnostics})" for i, e in sorted(self._errors.items())]
        away = [self._rows[i] for i in self._releasable() if i not in self._errors]
        said += [f"{name}: its custodian did not contribute" for name in away if self.is_offline(name)]
        return "; ".join(said) or "no keystore answered"


class TooFewAnswers(MasterKeyError):
    """Fewer keystores answered than the threshold; another attempt may do better."""


class TargetFailed(MasterKeyError):
    """A keystore failed that shall get something, not one that is opened."""

    def __init__(self, cause: MasterKeyError) -> None:
        super().__init__(cause.message, next_step=cause.next_step, subject=cause.subject)
        self.cause = cause
