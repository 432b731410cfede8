"""`masterkey status`: what protects a MasterKey, and what is running."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from workers.cli.protections import describe_stop, verified
from workers.client import running, upkeep
from workers.connection import connect
from workers.output import AUTO_UNSEAL, OPTIONS, answer, asynchronous, say, shown
from workflows.contracts.messages.report import CeremonySummary, ProtectionSummary, Report, ReportRequest
from workflows.contracts.trust.fields import CLASSICAL
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.service_errors import NotKnown
from workflows.drill import summary


@asynchronous
async def status(name: Annotated[str, typer.Argument(help="One MasterKey; all by default.")] = "") -> None:
    """What protects a MasterKey, and what is running."""
    chain = OPTIONS.roster()
    client = await connect()
    report = await upkeep.report(client, ReportRequest(kind="status", master_key=name or None))
    if name and not report.protections and not report.ceremonies:
        raise NotKnown(f"there is no MasterKey {name}")
    found = verified(report, chain)
    stops = [describe_stop(signed, chain.current) for signed in report.stops]
    standing = await running.standing(client)
    told = {
        "protections": [_protection(manifest, entry) for manifest, entry in found],
        "running": [_running(entry, standing) for entry in report.ceremonies if not entry.outcome],
        "drills": [drill.model_dump(mode="json") for drill in report.drills],
        "stops": stops,
        "events": report.events,
        "head": report.head,
    }
    answer(told, lambda: _say(report, found, stops, standing))


def _running(entry: CeremonySummary, standing: running.Standing) -> dict[str, Any]:
    build, served = standing.builds.get(entry.ceremony, ("", True))
    return {**entry.model_dump(), "build": build, "served": served}


def _protection(manifest: Manifest, entry: ProtectionSummary) -> dict[str, Any]:
    return {
        "master_key": manifest.master_key,
        "kcv": manifest.kcv,
        "status": entry.status,
        "purpose": manifest.purpose,
        "mode": manifest.mode,
        "threshold": manifest.threshold,
        "epoch": manifest.epoch,
        "manifest": entry.manifest.digest,
        "approvals": len(manifest.authority),
        "created": manifest.created.isoformat(),
        "software": manifest.software,
        "destroy_after": entry.destroy_after,
        "classical_shards": sum(shard.mechanism in CLASSICAL for shard in manifest.shards),
        "shards": [
            {
                "index": shard.binding.index,
                "keystore": shard.binding.keystore,
                "key_id": shard.binding.key_id,
                "key_version": shard.binding.key_version,
                "custodians": list(shard.custodians),
                "mechanism": shard.mechanism,
            }
            for shard in manifest.shards
        ],
    }


def _say(
    report: Report,
    found: Sequence[tuple[Manifest, ProtectionSummary]],
    stops: Sequence[dict[str, str]],
    standing: running.Standing,
) -> None:
    for manifest, entry in found:
        _say_protection(manifest, entry)
        active = {m.mode for m, e in found if m.master_key == manifest.master_key and e.status == "active"}
        if entry.status == "active" and len(active) > 1:
            say(f"  note: an active {AUTO_UNSEAL} protection beside an sss one lowers the whole to {AUTO_UNSEAL}")
    if not found:
        say("there is no MasterKey yet")
    for stop in stops:
        say(f"{stop['master_key']} IS STOPPED by {stop['ordered_by']} since {stop['issued']}: {stop['reason']}")
        say(f"  lift it with the governance quorum: masterkey seal {stop['master_key']} --lift")
    for drill in report.drills:
        say(f"{drill.master_key} drilled {drill.at:%Y-%m-%d %H:%M} UTC: {summary(drill)}")
    for master_key in sorted({m.master_key for m, _ in found} - {drill.master_key for drill in report.drills}):
        say(f"{master_key} was never drilled: run `masterkey drill {master_key}`, or schedule it with --every")
    for ceremony in report.ceremonies:
        if not ceremony.outcome:
            waits = standing.words(ceremony.ceremony)
            say(f"running: {ceremony.ceremony}: {ceremony.phase}" + (f", {waits}" if waits else ""))
    say(f"ledger: {report.events} events, chain verified, head {report.head}")


def _say_protection(manifest: Manifest, entry: ProtectionSummary) -> None:
    shape = f"{shown(manifest.mode)} {manifest.threshold} of {manifest.count}"
    say(f"{manifest.master_key}  {entry.status} {manifest.purpose}: {shape}, epoch {manifest.epoch}")
    say(f"  KCV {manifest.kcv}; manifest signed by a strongroom of the roster on {manifest.created:%Y-%m-%d}")
    for shard in manifest.shards:
        released = f", released by {' or '.join(shard.custodians)}" if shard.custodians else ""
        version = f", version {shard.binding.key_version}" if shard.binding.key_version else ""
        say(f"  shard {shard.binding.index}: {shard.binding.keystore} ({shard.binding.key_id}{version}){released}")
    if classical := [shard.mechanism for shard in manifest.shards if shard.mechanism in CLASSICAL]:
        kinds = " and ".join(sorted(set(classical)))
        say(f"  note: {len(classical)} data keys are wrapped with {kinds}, which is not post-quantum")
    if entry.destroy_after is not None and entry.status == "retired":
        say(f"  its ciphertexts are destroyed after {entry.destroy_after}")
