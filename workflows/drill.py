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
from workflows.contracts.messages.protection import StoredProtection, StoredShard
from workflows.contracts.messages.requests import DrillRequest
from workflows.contracts.messages.results import DrillResult, ProtectionHealth, ShardHealth
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import MasterKeyError
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.service_errors import KeystoreUnavailable
from workflows.steps.contribute import Contributing
from workflows.steps.notify import notify_of_commit
from workflows.steps.protections import StoredManifest
from workflows.steps.prove import worker

_TIMEOUT = timedelta(seconds=60)
_ATTEMPTS = 3


@workflow.defn
class DrillWorkflow(Contributing):
    """One drill of all active protections of one MasterKey."""

    @workflow.init
    def __init__(self, request: DrillRequest) -> None:
        own = f"{request.master_key}.drill.{workflow.info().run_id.replace('-', '')[:12]}"
        super().__init__(request.ceremony or own, "drill", request.master_key)
        self._offline_timeout = timedelta(0)
        self._proven: dict[tuple[str, int], datetime] = {}
        self._words: dict[tuple[str, int], Signed] = {}

    @workflow.run
    async def run(self, request: DrillRequest) -> DrillResult:
        """Ask every keystore and report; a shard that does not open is a result, not a failure."""
        self._offline_timeout = timedelta(seconds=request.offline_seconds)
        return await self.run_to_the_end(self._drill)

    async def _drill(self) -> DrillResult:
        begun, roster = await self.begin(all_active=True)
        for one in begun.proofs:
            self._proven[one.manifest, one.index] = one.at
            if one.proof is not None:
                self._words[one.manifest, one.index] = one.proof
        active = [StoredManifest.read(stored) for stored in begun.active]
        for held in active:
            self.know_offline(roster, held.keystores)
        await self.enter("drilling")
        protections = await gather([self._protection(held, roster) for held in active])
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

    async def _protection(self, held: StoredManifest, roster: Roster) -> ProtectionHealth:
        manifest = held.manifest
        shards = await gather([self._shard(held, row, roster) for row in held.stored.shards])
        away = [shard.keystore for shard in shards if not shard.opens]
        not_told = await self._notify_again(held.stored, away, roster)
        return ProtectionHealth(
            manifest=held.digest,
            purpose=manifest.purpose,
            mode=manifest.mode,
            threshold=manifest.threshold,
            shards=tuple(shards),
            spare=sum(shard.opens for shard in shards) - manifest.threshold,
            not_told=not_told,
        )

    async def _notify_again(self, stored: StoredProtection, away: list[str], roster: Roster) -> tuple[str, ...]:
        """Notify every keystore worker of the roster what is in force: one that missed it serves an older one still."""
        places = [(stored.manifest.digest, row.index) for row in stored.shards]
        if any(place not in self._words for place in places):
            return ()
        proofs = tuple(self._words[place] for place in places)
        everybody = [one.name for one in roster.keystores]
        return await notify_of_commit(self, stored, proofs, everybody, roster, away)

    async def _shard(self, held: StoredManifest, row: StoredShard, roster: Roster) -> ShardHealth:
        place = held.digest, row.index
        proven, offline = self._proven.get(place), self.is_offline(row.keystore)
        self.progress(row.keystore, "asked")
        try:
            held.check_ciphertext(row.index)
            if offline and not self._offline_timeout:
                # It opens as far as is known: it was proven before it was committed.
                self.progress(row.keystore, "waiting")
                return _health(row, opens=True, offline=True, proven=proven)
            key, ask, until = held.digest[7:19], worker(_TIMEOUT, _ATTEMPTS), self.now() + self._offline_timeout
            self._words[place] = await self.prove_shard(held.stored, row.index, roster, key, ask, until)
        except MasterKeyError as error:
            self.progress(row.keystore, "failed", error)
            if offline and isinstance(error, KeystoreUnavailable):
                return _health(row, opens=True, offline=True, proven=proven, detail=error.diagnostics)
            return _health(row, opens=False, error=error.failure_type, detail=error.diagnostics, proven=proven)
        self.progress(row.keystore, "answered")
        return _health(row, opens=True, proven=self.now())

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
