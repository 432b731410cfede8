"""`DrillWorkflow`: prove that every shard still opens, without opening one. Needs no human.

Every keystore is asked whether it can give back its data key (`check_data_key`, signed over this drill's
nonce), and every stored ciphertext is compared with the hash in the manifest, whose signature the keystore
workers verify. Runs on demand and on a Temporal Schedule; its result is an event, a metric, and a part of
`masterkey status`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from temporalio import workflow

from workflows.calls.concurrency import gather
from workflows.contracts import names
from workflows.contracts.messages.keystore import CheckDataKey
from workflows.contracts.messages.protection import StoredProtection, StoredShard
from workflows.contracts.messages.requests import DrillRequest
from workflows.contracts.messages.results import DrillResult, ProtectionHealth, ShardHealth
from workflows.contracts.trust.canonical import Signed, decode64, digest
from workflows.contracts.trust.errors import CiphertextInvalid, KeystoreUnavailable, MasterKeyError
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.roster import Roster
from workflows.steps.protect import Protecting
from workflows.steps.prove import prove_data_key

_PATIENCE = timedelta(seconds=60)
_ATTEMPTS = 3


@workflow.defn
class DrillWorkflow(Protecting):
    """One drill of all active protections of one MasterKey."""

    @workflow.init
    def __init__(self, request: DrillRequest) -> None:
        own = f"{request.master_key}.drill.{workflow.info().run_id.replace('-', '')[:12]}"
        super().__init__(request.ceremony or own, "drill", request.master_key)
        self._offline_patience = timedelta(0)
        self._proven: dict[tuple[str, int], datetime] = {}
        self._words: dict[tuple[str, int], Signed] = {}

    @workflow.run
    async def run(self, request: DrillRequest) -> DrillResult:
        """Ask every keystore and report; a shard that does not open is a result, not a failure."""
        self._offline_patience = timedelta(seconds=request.offline_seconds)
        return await self.run_to_the_end(self._drill)

    async def _drill(self) -> DrillResult:
        begun = await self.begin(all_active=True)
        roster = Roster.parse(begun.roster.encode())
        for one in begun.proofs:
            self._proven[one.manifest, one.index] = one.at
            if one.proof is not None:
                self._words[one.manifest, one.index] = one.proof
        for stored in begun.active:
            self.know_offline(roster, [row.keystore for row in stored.shards])
        await self.enter("drilling")
        protections = await gather([self._protection(stored, roster) for stored in begun.active])
        result = DrillResult(
            ceremony=self.ceremony,
            master_key=self.master_key,
            at=self.now(),
            healthy=all(shard.opens for protection in protections for shard in protection.shards),
            spare=max(protection.spare for protection in protections),
            protections=tuple(protections),
        )
        self.event("finished", names.DRILL_FINISHED, healthy=result.healthy, result=result.model_dump_json())
        self._measure(result)
        await self.close("done", summary(result))
        return result

    async def _protection(self, stored: StoredProtection, roster: Roster) -> ProtectionHealth:
        manifest = Manifest.parse(stored.manifest.document.encode())
        shards = await gather([self._shard(stored, manifest, row.index, roster) for row in stored.shards])
        not_told = await self._tell_again(stored, [shard.keystore for shard in shards if not shard.opens], roster)
        return ProtectionHealth(
            manifest=stored.manifest.digest,
            purpose=manifest.purpose,
            mode=manifest.mode,
            threshold=manifest.threshold,
            shards=tuple(shards),
            spare=sum(shard.opens for shard in shards) - manifest.threshold,
            not_told=not_told,
        )

    async def _tell_again(self, stored: StoredProtection, away: list[str], roster: Roster) -> tuple[str, ...]:
        """Tell every keystore worker of the roster what is in force: one that missed it serves an older one still."""
        places = [(stored.manifest.digest, row.index) for row in stored.shards]
        if any(place not in self._words for place in places):
            return ()
        proofs = tuple(self._words[place] for place in places)
        everybody = [one.name for one in roster.keystores]
        return await self.tell_of_commit(stored, proofs, everybody, roster, away)

    async def _shard(self, stored: StoredProtection, manifest: Manifest, index: int, roster: Roster) -> ShardHealth:
        row, described = stored.shards[index - 1], manifest.shards[index - 1]
        proven = self._proven.get((stored.manifest.digest, index))
        offline = self.is_offline(row.keystore)
        self.progress(row.keystore, "asked")
        try:
            if digest(decode64(row.nonce) + decode64(row.ciphertext)) != described.ciphertext_hash:
                raise CiphertextInvalid(f"the stored shard {index} was altered or swapped", subject=row.keystore)
            if offline and not self._offline_patience:
                # It opens as far as is known: it was proven before it was committed.
                self.progress(row.keystore, "waiting")
                return _health(row, opens=True, offline=True, proven=proven)
            signed = await prove_data_key(
                stored,
                index,
                roster,
                patience=_PATIENCE,
                attempts=_ATTEMPTS,
                ask=self._custodian if offline else None,
            )
        except MasterKeyError as error:
            self.progress(row.keystore, "failed", error)
            if offline and isinstance(error, KeystoreUnavailable):
                return _health(row, opens=True, offline=True, proven=proven, detail=error.diagnostics)
            return _health(row, opens=False, error=type(error).__name__, detail=error.diagnostics, proven=proven)
        self.progress(row.keystore, "answered")
        self._words[stored.manifest.digest, index] = signed
        self.event(
            f"proven.{stored.manifest.digest[7:19]}.{index}",
            "data-key-proven",
            keystore=row.keystore,
            document=signed.document,
            signature=signed.signature,
        )
        return _health(row, opens=True, proven=self.now())

    async def _custodian(self, request: CheckDataKey) -> Signed:
        return await self.ask_for_proof(request, self.now() + self._offline_patience)

    def _measure(self, result: DrillResult) -> None:
        meter = workflow.metric_meter().with_additional_attributes({"master_key": self.master_key})
        closed = sum(not shard.opens for protection in result.protections for shard in protection.shards)
        meter.create_gauge("masterkey_shards_at_risk", "Shards that the last drill could not prove.").set(closed)
        meter.create_gauge(
            "masterkey_spare_keystores", "How many more keystores may fail before the MasterKey is lost."
        ).set(max(result.spare, 0))


def _health(row: StoredShard, *, opens: bool, **more: Any) -> ShardHealth:
    return ShardHealth(index=row.index, keystore=row.keystore, key_id=row.key_id, opens=opens, **more)


def summary(result: DrillResult) -> str:
    """A drill's result in one line."""
    shards = [shard for protection in result.protections for shard in protection.shards]
    closed = [shard.keystore for shard in shards if not shard.opens]
    if result.spare < 0:
        outlook = "the MasterKey cannot be recovered at this moment"
    else:
        outlook = f"{result.spare} more keystores may fail before the MasterKey is unrecoverable"
    if offline := sum(shard.offline for shard in shards):
        outlook += f" ({offline} offline, at their custodians' last word)"
    if not closed:
        return f"all {len(shards)} shards open; {outlook}"
    return f"{len(closed)} of {len(shards)} shards do not open ({', '.join(closed)}); {outlook}"
