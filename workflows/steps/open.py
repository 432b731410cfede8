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
from workflows.contracts.messages.protection import DekAnswer, StoredProtection
from workflows.contracts.messages.strongroom import SessionOpened
from workflows.contracts.trust.errors import (
    ApprovalInvalid,
    CiphertextInvalid,
    MasterKeyError,
    QuorumUnreachable,
    SessionLost,
    Stopped,
)
from workflows.contracts.trust.fields import Work
from workflows.contracts.trust.plan import Plan, Source
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.roster import Roster, Strongroom
from workflows.steps.contribute import Contributing

R = TypeVar("R")

_PATIENCE = timedelta(seconds=25)
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=1), timedelta(seconds=60)
# Temporal ends a workflow for good at 51,200 events or 50 MiB of history; an attempt costs some 50 and 100 KiB.
_MOST_EVENTS, _MOST_BYTES = 40_000, 40 * 2**20


class Opening(Contributing):
    """A ceremony that opens a protection."""

    def __init__(self, ceremony: str, action: str, master_key: str) -> None:
        super().__init__(ceremony, action, master_key)
        self._errors: dict[int, MasterKeyError] = {}
        self._rows: dict[int, str] = {}
        self._threshold = 1
        self._pause = _FIRST_PAUSE

    def open_what(self, manifest: Manifest, roster: Roster) -> None:
        """Remember the shards of the protection that this ceremony opens."""
        self._errors, self._excluded, self._pause = {}, set(), _FIRST_PAUSE
        self._rows = {shard.binding.index: shard.binding.keystore for shard in manifest.shards}
        self._threshold = manifest.threshold
        self.know_offline(roster, self._rows.values())
        for name in self._rows.values():
            self.progress(name, "waiting")

    async def open_until_done(
        self,
        plan: Plan,
        manifest: Manifest,
        strongroom: Strongroom,
        purpose: Work,
        phase: str,
        work: Callable[[SessionOpened], Awaitable[R]],
    ) -> R:
        """Open sessions and do `work` in them until it succeeds.

        Args:
            plan: what is done, and until when.
            manifest: of the protection that is opened.
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
                    self._check_hope(manifest)
                except SessionLost as error:
                    self.event(f"session-lost.{self.attempt}", "session-lost", reason=error.message)
                except (CiphertextInvalid, ApprovalInvalid) as error:
                    self._blame(error)
                except TargetFailed as error:
                    self.target_failed(error.cause)
            else:
                self._check_hope(manifest)
            if self.now() >= plan.expires:
                raise QuorumUnreachable(f"the deadline passed; {self.complaints()}")
            await self.rest(plan, enough=enough)

    async def rest(self, plan: Plan, *, enough: bool = True) -> None:
        """Wait before the next attempt, longer every time, until something changes or the plan expires.

        Args:
            plan: until when.
            enough: whether another attempt may succeed by itself; else only a change can help.
        """
        await self.enter("waiting", flush=True)
        longest = max(self._pause, self._thrift(plan)) if enough else plan.expires - self.now()
        await self.sleep_until_change(min(plan.expires, self.now() + longest))
        self.check_course()
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    async def ask_for_data_keys(
        self, opened: SessionOpened, manifest: Manifest, stored: StoredProtection, authority: Authority
    ) -> tuple[DekAnswer, ...]:
        """Data keys of M shards, for an open session.

        Raises:
            TooFewAnswers: fewer keystores answered.
        """
        rows = {row.index: row for row in stored.shards}

        def ask(index: int) -> asyncio.Task[DekAnswer]:
            keystore, row = self._rows[index], rows.get(index)
            self.progress(keystore, "asked")
            request = UnwrapDataKey(
                keystore=keystore,
                index=index,
                authority=authority,
                session=opened.announcement,
                manifest=stored.manifest,
                wrapped_dek=row.wrapped_dek if row else "",
            )
            if self.is_offline(keystore):
                return asyncio.create_task(self.ask_for_data_key(request))
            return asyncio.create_task(
                call_keystore(names.UNWRAP_DATA_KEY, keystore, request, DekAnswer, patience=_PATIENCE)
            )

        answers = await hedged(self._candidates(), manifest.threshold, ask, self._failed)
        for index in answers:
            self.progress(self._rows[index], "answered")
            self._errors.pop(index, None)
        self.served_by = tuple(self._rows[index] for index in sorted(answers))
        if len(answers) < manifest.threshold:
            raise TooFewAnswers(f"{len(answers)} of {manifest.threshold} keystores answered")
        return tuple(answers[index] for index in sorted(answers))

    served_by: tuple[str, ...] = ()
    """The keystores that gave back data keys at the last attempt."""

    @property
    def failed_keystores(self) -> tuple[str, ...]:
        """The keystores that failed and did not serve in the end."""
        return tuple(sorted({self._rows[index] for index in self._errors} - set(self.served_by)))

    def doubt(self, index: int, error: MasterKeyError) -> None:
        """Ask a shard's keystore last: it did not answer when it was asked before."""
        self._errors[index] = error

    def target_failed(self, error: MasterKeyError) -> None:
        """A keystore failed that is not one of those that are opened; raises it where that cannot pass."""
        raise error

    def wanted_of(self) -> tuple[str, ...]:
        """Also the offline keystores whose shard may be released, as long as it could still be of use."""
        if self.phase in ("planning", "proving", "committing", "done", "refused", "failed", "expired"):
            return super().wanted_of()
        releasable = {self._rows[index] for index in self._releasable()}
        return tuple(sorted({*super().wanted_of(), *(releasable & set(self._offline))}))

    # --- which shards ----------------------------------------------------------------------------------------

    def _releasable(self) -> list[int]:
        if self.quorum is not None and self._rows and self.quorum.opens_shards:
            return self.quorum.releasable(self.now(), self._excluded)
        return [index for index in self._rows if index not in self._excluded]

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
            self.exclude([index])
        self.progress(self._rows[index], "quarantined" if permanent else "failed", error)
        self.event(
            f"keystore-failed.{self.attempt}.{index}",
            "shard-quarantined" if isinstance(error, CiphertextInvalid) else "keystore-failed",
            keystore=self._rows[index],
            error=type(error).__name__,
            reason=error.message,
        )

    def _blame(self, error: MasterKeyError) -> None:
        """The session refused: because of one keystore's answer or row, or altogether."""
        guilty = [index for index, name in self._rows.items() if name == error.subject]
        if not guilty:
            raise error
        self._failed(guilty[0], error)
        if len(self._rows) - len(self._excluded) < self._threshold:
            raise error

    def _check_hope(self, manifest: Manifest) -> None:
        """Give up when waiting cannot help: data that will never open, or an answer that will not change."""
        usable = [index for index in self._rows if index not in self._excluded]
        if len(usable) < manifest.threshold:
            refusals = [e for e in self._errors.values() if isinstance(e, (ApprovalInvalid, CiphertextInvalid))]
            if len({type(error) for error in refusals}) == 1:
                raise refusals[0]
            raise QuorumUnreachable(f"too few shards can ever be released; {self.complaints()}")
        if stopped := next((error for error in self._errors.values() if isinstance(error, Stopped)), None):
            # Every keystore hears of it, and none serves until it is lifted.
            raise stopped
        if self.gives_up and self._errors and not any(error.retryable for error in self._errors.values()):
            raise QuorumUnreachable(f"no keystore can release its shard; {self.complaints()}")

    gives_up = False
    """Whether to end, rather than to wait, when no keystore's answer can change by itself."""

    def complaints(self) -> str:
        """What keystores have said against it, in one line."""
        said = [f"{self._rows[i]}: {type(e).__name__} ({e.diagnostics})" for i, e in sorted(self._errors.items())]
        away = [self._rows[i] for i in self._releasable() if i not in self._errors]
        said += [f"{name}: its custodian did not contribute" for name in away if self.is_offline(name)]
        return "; ".join(said) or "no keystore answered"

    def _thrift(self, plan: Plan) -> timedelta:
        """The pause with which the history lasts until the deadline; none while a quarter of it is not used."""
        info = workflow.info()
        used = max(info.get_current_history_length() / _MOST_EVENTS, info.get_current_history_size() / _MOST_BYTES)
        if used < 0.25:
            return timedelta(0)
        attempts_left = max(1.0, self.attempt * (1 - used) / used)
        return (plan.expires - self.now()) / attempts_left


def source_of(manifest: Manifest, manifest_digest: str) -> Source:
    """A manifest as a plan names it."""
    return Source(
        manifest=manifest_digest,
        epoch=manifest.epoch,
        mode=manifest.mode,
        threshold=manifest.threshold,
        count=manifest.count,
    )


class TooFewAnswers(MasterKeyError):
    """Fewer keystores answered than the threshold; another attempt may do better."""


class TargetFailed(MasterKeyError):
    """A keystore failed that shall get something, not one that is opened."""

    def __init__(self, cause: MasterKeyError) -> None:
        super().__init__(cause.message, next_step=cause.next_step, subject=cause.subject)
        self.cause = cause
