"""`InitWorkflow`: create a MasterKey and protect it.

Phases: planning, quorum, protecting, proving, committing, done; or refused, failed, expired. Before the
commit nothing but a record is left behind; after it the MasterKey is recoverable, because every keystore
has proven that it can give back its data key.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from workflows.contracts import names
    from workflows.contracts.authority import check_target
    from workflows.contracts.canonical import Message, Signed
    from workflows.contracts.documents import (
        KeyDescription,
        Manifest,
        Plan,
        Target,
        TargetShard,
    )
    from workflows.contracts.errors import ApprovalInvalid, KeystoreError, MasterKeyError, PlanInvalid, SessionLost
    from workflows.contracts.messages import (
        Commit,
        DekAnswer,
        DescribeKey,
        GenerateDataKey,
        InitRequest,
        InitResult,
        NoteCommit,
        Protect,
        SessionOpened,
        ShardRequest,
        Stage,
        StoredProtection,
    )
    from workflows.contracts.roster import Roster, Strongroom
    from workflows.contracts.signatures import open_signed

from workflows.ceremony import Ceremony
from workflows.concurrency import gather
from workflows.keystore_calls import call_keystore
from workflows.proof import prove_data_key
from workflows.quorum import Quorum
from workflows.sessions import use_session, with_session

_DESCRIBE_PATIENCE = timedelta(seconds=30)
_PROTECT_PATIENCE = timedelta(seconds=90)
_NOTE_PATIENCE = timedelta(seconds=60)
_ATTEMPTS = 5


@workflow.defn
class InitWorkflow(Ceremony):
    """The creation of one MasterKey."""

    @workflow.init
    def __init__(self, request: InitRequest) -> None:
        super().__init__(request.ceremony, "init", request.master_key)
        self._request = request

    @workflow.run
    async def run(self, request: InitRequest) -> InitResult:
        """Plan, gather the quorum, protect, prove, commit; fails with the type of one of our errors."""
        return await self.run_to_the_end(self._work)

    async def _work(self) -> InitResult:
        begun = await self.begin()
        roster = Roster.parse(begun.roster.encode())
        strongroom = self._strongroom(roster)
        target = await self._target(roster, begun.next_epoch)
        plan = Plan(
            action="init",
            master_key=self.master_key,
            ceremony=self.ceremony,
            governance_quorum=roster.governance_of(self.master_key).quorum,
            source=None,
            target=target,
            recipient=None,
            strongroom=strongroom.fingerprint,
            roster=begun.roster_digest,
            created=self.now(),
            expires=self.now() + timedelta(seconds=self._request.quorum_timeout_seconds),
        )
        self.quorum = Quorum(plan, roster, custody=(), threshold=0)
        await self.record_plan(plan, "quorum")
        await self.wait_for_quorum("quorum")
        stored = await self._protect_until_done(plan, target, strongroom)
        await self.enter("proving")
        await self._prove(stored, roster)
        await self.enter("committing", flush=True)
        return await self.to_its_end(self._commit(stored, self.quorum))

    async def _commit(self, stored: StoredProtection, quorum: Quorum) -> InitResult:
        await self.ledger(names.COMMIT_PROTECTION, Commit(ceremony=self.ceremony, attempt=self.attempt))
        await self._note_commit(stored)
        manifest = Manifest.parse(stored.manifest.document.encode())
        await self.close("done", f"{self.master_key} is protected; KCV {manifest.kcv}")
        return InitResult(
            ceremony=self.ceremony,
            master_key=self.master_key,
            kcv=manifest.kcv,
            manifest=stored.manifest,
            approved_by=quorum.approved_by,
            attempt=self.attempt,
        )

    def _strongroom(self, roster: Roster) -> Strongroom:
        wanted = self._request.strongroom or (roster.strongrooms[0].name if roster.strongrooms else "")
        strongroom = roster.strongroom(wanted)
        if strongroom is None:
            raise PlanInvalid(f"the roster has no strongroom {wanted!r}", next_step="see `masterkey roster show`")
        return strongroom

    async def _target(self, roster: Roster, epoch: int) -> Target:
        request = self._request
        for shard in request.shards:
            if roster.keystore(shard.keystore) is None:
                raise PlanInvalid(f"keystore {shard.keystore} is not in the roster", subject=shard.keystore)
        # The numbers are checked before anybody is asked, with stand-ins for the key ids to come.
        check_target(self._topology(roster, epoch, [s.keystore for s in request.shards]), self.master_key, roster)
        described = await gather([self._describe(shard, roster) for shard in request.shards])
        target = self._topology(roster, epoch, [key.key_id for key in described])
        check_target(target, self.master_key, roster)
        return target

    def _topology(self, roster: Roster, epoch: int, key_ids: list[str]) -> Target:
        request, shards = self._request, []
        if not 1 <= len(request.shards) <= 255 or not 1 <= request.threshold <= 255:
            raise PlanInvalid(f"{request.threshold} of {len(request.shards)} shards: both must be 1 to 255")
        for index, (wanted, key_id) in enumerate(zip(request.shards, key_ids, strict=True), start=1):
            usual = roster.keystore(wanted.keystore)
            custodians = wanted.custodians or (usual.custodians if usual else ())
            shards.append(
                TargetShard(
                    index=index,
                    keystore=wanted.keystore,
                    key_id=key_id,
                    custodians=custodians if request.mode == "sss" else (),
                )
            )
        return Target(
            purpose=request.purpose,
            mode=request.mode,
            epoch=epoch,
            threshold=request.threshold,
            count=len(shards),
            shards=tuple(shards),
        )

    async def _describe(self, shard: ShardRequest, roster: Roster) -> KeyDescription:
        name = shard.keystore
        self.progress(name, "asked")
        try:
            signed = await call_keystore(
                names.DESCRIBE_KEY, name, DescribeKey(keystore=name), Signed, patience=_DESCRIBE_PATIENCE, attempts=3
            )
        except MasterKeyError as error:
            self.progress(name, "failed", error)
            raise
        key, signer = open_signed(KeyDescription, signed)
        worker = roster.keystore(name)
        if worker is None or signer != worker.fingerprint or key.keystore != name:
            raise ApprovalInvalid(f"the key of {name} is not described by its worker", subject=name)
        if self._request.mode not in key.modes:
            raise PlanInvalid(f"{name} does not serve {self._request.mode} protections", subject=name)
        self.progress(name, "waiting")
        return key

    async def _protect_until_done(self, plan: Plan, target: Target, strongroom: Strongroom) -> StoredProtection:
        while True:
            self.attempt += 1
            await self.enter("protecting")
            try:
                return await with_session(
                    plan, strongroom.name, "protect", self.attempt, lambda s: self._protect(s, target)
                )
            except (SessionLost, KeystoreError) as error:
                self.event(
                    f"attempt-failed.{self.attempt}",
                    "attempt-failed",
                    error=type(error).__name__,
                    subject=error.subject,
                    reason=error.message,
                )
                if not error.retryable or self.attempt >= _ATTEMPTS:
                    raise
            await self.enter("protecting", flush=True)
            await workflow.sleep(timedelta(seconds=2**self.attempt))

    async def _protect(self, opened: SessionOpened, target: Target) -> StoredProtection:
        authority = self.authority()

        async def generate(place: TargetShard) -> DekAnswer:
            self.progress(place.keystore, "asked")
            request = GenerateDataKey(
                keystore=place.keystore, index=place.index, authority=authority, session=opened.announcement
            )
            try:
                answer = await call_keystore(
                    names.GENERATE_DATA_KEY,
                    place.keystore,
                    request,
                    DekAnswer,
                    patience=_PROTECT_PATIENCE,
                    attempts=4,
                )
            except MasterKeyError as error:
                self.progress(place.keystore, "failed", error)
                raise
            self.progress(place.keystore, "answered")
            return answer

        deks = await gather([generate(place) for place in target.shards])
        request = Protect(session=opened.session, authority=authority, deks=tuple(deks))
        stored = await use_session(opened, names.PROTECT, request, StoredProtection)
        await self.ledger(
            names.STAGE_PROTECTION, Stage(ceremony=self.ceremony, attempt=self.attempt, protection=stored)
        )
        return stored

    async def _prove(self, stored: StoredProtection, roster: Roster) -> None:
        async def prove(index: int) -> None:
            signed = await prove_data_key(stored, index, roster, patience=_PROTECT_PATIENCE, attempts=6)
            self.event(
                f"proven.{self.attempt}.{index}",
                "data-key-proven",
                keystore=stored.shards[index - 1].keystore,
                document=signed.document,
                signature=signed.signature,
            )

        await gather([prove(row.index) for row in stored.shards])

    async def _note_commit(self, stored: StoredProtection) -> None:
        """Tell every keystore worker; one that cannot be told now learns it when it next unwraps."""

        async def note(keystore: str) -> None:
            request = NoteCommit(keystore=keystore, manifest=stored.manifest)
            try:
                await call_keystore(names.NOTE_COMMIT, keystore, request, Message, patience=_NOTE_PATIENCE, attempts=20)
            except MasterKeyError as error:
                self.event(
                    f"not-noted.{keystore}",
                    "commit-not-noted",
                    keystore=keystore,
                    error=type(error).__name__,
                    reason=error.message,
                )

        await gather([note(row.keystore) for row in stored.shards])
