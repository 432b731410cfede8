"""`UnsealWorkflow`: release a MasterKey to a recipient.

Phases: planning, quorum (`sss` only), releasing, waiting (too few keystores answer: it tries again, and
again with every new approval), done; or refused, failed, expired.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows.contracts import names
    from workflows.contracts.authority import check_request, custodians_of
    from workflows.contracts.documents import Manifest, Plan, PlanRecipient, RecipientRequest, Source
    from workflows.contracts.errors import (
        ApprovalInvalid,
        CiphertextInvalid,
        MasterKeyError,
        QuorumUnreachable,
        SessionLost,
    )
    from workflows.contracts.messages import (
        DekAnswer,
        Delivered,
        Release,
        SessionOpened,
        StoredProtection,
        UnsealRequest,
        UnsealResult,
        UnwrapDataKey,
    )
    from workflows.contracts.roster import Roster

from workflows.ceremony import Ceremony, parse_request
from workflows.keystore_calls import call_keystore, hedged
from workflows.quorum import Quorum
from workflows.sessions import use_session, with_session

_PATIENCE = timedelta(seconds=25)
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=1), timedelta(seconds=60)
# Temporal ends a workflow for good at 51,200 events or 50 MiB of history; an attempt costs some 50 and 100 KiB.
_MOST_EVENTS, _MOST_BYTES = 40_000, 40 * 2**20


@workflow.defn
class UnsealWorkflow(Ceremony):
    """One release of one MasterKey to one recipient."""

    @workflow.init
    def __init__(self, request: UnsealRequest) -> None:
        super().__init__(request.ceremony, "unseal", request.master_key)
        self._request = request
        self._errors: dict[int, MasterKeyError] = {}
        self._rows: dict[int, str] = {}
        self._threshold = 1

    @workflow.run
    async def run(self, request: UnsealRequest) -> UnsealResult:
        """Plan, gather the quorum, release; fails with the type of one of our errors."""
        return await self.run_to_the_end(self._work)

    async def _work(self) -> UnsealResult:
        wanted = parse_request(self._request.request)
        begun = await self.begin(wanted.manifest, self._request.request)
        roster, stored = Roster.parse(begun.roster.encode()), begun.protection
        if stored is None:
            raise ApprovalInvalid("the ledger gave no protection to open")
        # Not verified here, where it would prove nothing: every keystore and the session verify it.
        manifest = Manifest.parse(stored.manifest.document.encode())
        plan = self._make_plan(manifest, stored, wanted, roster, begun.roster_digest)
        self.plan = plan
        check_request(roster, self._request.request, plan, self.now())
        self._rows = {shard.binding.index: shard.binding.keystore for shard in manifest.shards}
        self._threshold = manifest.threshold
        for name in self._rows.values():
            self.progress(name, "waiting")
        if manifest.mode == "sss":
            custody = custodians_of(plan, manifest)
            self.quorum = Quorum(plan, roster, custody, manifest.threshold)
            await self.record_plan(plan, "quorum")
            await self.wait_for_quorum("quorum")
        delivered, served = await self._release_until_done(plan, manifest, stored, roster)
        failed = tuple(sorted({self._rows[index] for index in self._errors} - set(served)))
        approved_by = self.quorum.approved_by if self.quorum else ()
        self.event(
            "delivered",
            "masterkey-delivered",
            plan=plan.canonical().decode(),
            delivery=delivered.delivery.document,
            signature=delivered.delivery.signature,
            served_by=list(served),
            approved_by=list(approved_by),
        )
        outcome = f"delivered to {plan.recipient.name}" if plan.recipient else "delivered"
        await self.to_its_end(self.close("done", outcome))
        return UnsealResult(
            ceremony=self.ceremony,
            master_key=self.master_key,
            delivered=delivered,
            approved_by=approved_by,
            served_by=served,
            failed=failed,
        )

    def _make_plan(
        self, manifest: Manifest, stored: StoredProtection, wanted: RecipientRequest, roster: Roster, roster_digest: str
    ) -> Plan:
        recipient = roster.recipient(wanted.recipient)
        if recipient is None:
            raise ApprovalInvalid(f"the key {wanted.recipient} is no recipient's in the roster")
        limit = self.now() + timedelta(seconds=self._request.quorum_timeout_seconds)
        return Plan(
            action="unseal",
            master_key=self.master_key,
            ceremony=self.ceremony,
            governance_quorum=max(manifest.governance_quorum, roster.governance_of(self.master_key).quorum),
            source=Source(
                manifest=stored.manifest.digest,
                epoch=manifest.epoch,
                mode=manifest.mode,
                threshold=manifest.threshold,
                count=manifest.count,
            ),
            target=None,
            recipient=PlanRecipient(name=recipient.name, fingerprint=recipient.fingerprint, hpke_key=wanted.hpke_key),
            strongroom=wanted.strongroom,
            roster=roster_digest,
            created=self.now(),
            expires=min(limit, wanted.expires),
        )

    async def _release_until_done(
        self, plan: Plan, manifest: Manifest, stored: StoredProtection, roster: Roster
    ) -> tuple[Delivered, tuple[str, ...]]:
        strongroom = roster.strongroom(plan.strongroom)
        if strongroom is None:
            raise ApprovalInvalid("the request names a strongroom that is not in the roster")
        pause = _FIRST_PAUSE
        while True:
            if self.quorum is not None:
                # Approvals may have expired, or shards dropped out, since the quorum stood.
                await self.wait_for_quorum("quorum" if self.attempt == 0 else "waiting")
            self.attempt += 1
            await self.enter("releasing")
            try:
                return await with_session(
                    plan, strongroom.name, "release", self.attempt, lambda s: self._attempt(s, manifest, stored)
                )
            except _TooFewAnswers:
                self._check_hope(manifest)
            except SessionLost as error:
                self.event(f"session-lost.{self.attempt}", "session-lost", reason=error.message)
            except (CiphertextInvalid, ApprovalInvalid) as error:
                self._blame(error)
            if self.now() >= plan.expires:
                raise QuorumUnreachable(f"the deadline passed; {self._complaints()}")
            await self.enter("waiting", flush=True)
            await self.sleep_until_change(min(plan.expires, self.now() + max(pause, self._thrift(plan))))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _thrift(self, plan: Plan) -> timedelta:
        """The pause with which the history lasts until the deadline; none while a quarter of it is not used."""
        info = workflow.info()
        used = max(info.get_current_history_length() / _MOST_EVENTS, info.get_current_history_size() / _MOST_BYTES)
        if used < 0.25:
            return timedelta(0)
        attempts_left = max(1.0, self.attempt * (1 - used) / used)
        return (plan.expires - self.now()) / attempts_left

    async def _attempt(
        self, opened: SessionOpened, manifest: Manifest, stored: StoredProtection
    ) -> tuple[Delivered, tuple[str, ...]]:
        authority, rows = self.authority(self._request.request), {row.index: row for row in stored.shards}
        candidates = self._candidates()

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
            return asyncio.create_task(
                call_keystore(names.UNWRAP_DATA_KEY, keystore, request, DekAnswer, patience=_PATIENCE)
            )

        answers = await hedged(candidates, manifest.threshold, ask, self._failed)
        for index in answers:
            self.progress(self._rows[index], "answered")
            self._errors.pop(index, None)
        if len(answers) < manifest.threshold:
            raise _TooFewAnswers(f"{len(answers)} of {manifest.threshold} keystores answered")
        release = Release(
            session=opened.session,
            authority=authority,
            protection=stored,
            deks=tuple(answers[index] for index in sorted(answers)),
        )
        delivered = await use_session(opened, names.RELEASE, release, Delivered)
        return delivered, tuple(self._rows[index] for index in sorted(answers))

    def _candidates(self) -> list[int]:
        if self.quorum is not None:
            indexes = self.quorum.releasable(self.now(), self._excluded)
        else:
            indexes = [index for index in self._rows if index not in self._excluded]
        # Those that failed before come last, so that a dead cloud costs its delay once.
        return sorted(indexes, key=lambda index: (index in self._errors, index))

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
        if len(self._rows) - len(self._excluded) < (
            self.plan.source.threshold if self.plan and self.plan.source else 1
        ):
            raise error

    def _check_hope(self, manifest: Manifest) -> None:
        """Give up when waiting cannot help: data that will never open, or an answer that will not change."""
        usable = [index for index in self._rows if index not in self._excluded]
        if len(usable) < manifest.threshold:
            refusals = [e for e in self._errors.values() if isinstance(e, (ApprovalInvalid, CiphertextInvalid))]
            if len({type(error) for error in refusals}) == 1:
                raise refusals[0]
            raise QuorumUnreachable(f"too few shards can ever be released; {self._complaints()}")
        if manifest.mode == "seal" and not any(error.retryable for error in self._errors.values()):
            raise QuorumUnreachable(f"no keystore can release its shard; {self._complaints()}")

    def _complaints(self) -> str:
        said = [f"{self._rows[i]}: {type(e).__name__} ({e.diagnostics})" for i, e in sorted(self._errors.items())]
        return "; ".join(said) or "no keystore answered"


class _TooFewAnswers(MasterKeyError):
    """Fewer keystores answered than the threshold; another attempt may do better."""
