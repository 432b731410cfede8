"""`masterkey init`, `status` and `ceremony list|show`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from workers.cli import decide
from workers.cli.progress import lines, live
from workers.cli.topology import shard_requests, validated
from workers.output import OPTIONS, answer, plain, run, say
from workflows.contracts.trust.errors import ApprovalInvalid, NotKnown

if TYPE_CHECKING:
    from workflows.contracts.trust.canonical import Signed
    from workflows.contracts.trust.roster import Roster

app = typer.Typer(help="What is running, and what waits for whom.", no_args_is_help=True)
app.command("statement")(decide.statement)


def init(
    name: Annotated[str, typer.Argument(help="Name of the new MasterKey, for example eu10.")],
    mode: Annotated[str, typer.Option(help="sss or seal.")],
    keystore: Annotated[
        list[str], typer.Option(help="NAME or NAME:CUSTODIAN[+DEPUTY...]; once for each shard, in order.")
    ],
    threshold: Annotated[int, typer.Option(help="M, how many shards recover it (sss).")] = 1,
    purpose: Annotated[str, typer.Option(help="primary or emergency.")] = "primary",
    strongroom: Annotated[str, typer.Option(help="Name of the strongroom; the roster's first by default.")] = "",
    deadline_hours: Annotated[float, typer.Option(help="How long the quorum may take.")] = 72.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, showing progress.")] = True,
) -> None:
    """Create a MasterKey, once the governance quorum has approved."""
    from workflows.contracts.messages.requests import InitRequest
    from workflows.contracts.names import new_ceremony_id

    fields = {
        "ceremony": new_ceremony_id(name, "init"),
        "master_key": name,
        "mode": mode,
        "threshold": threshold,
        "shards": shard_requests(keystore),
        "purpose": purpose,
        "strongroom": strongroom,
        "quorum_timeout_seconds": round(deadline_hours * 3600),
    }
    request = validated(InitRequest, fields, "init")
    run(_init(request, wait))


async def _init(request: Any, wait: bool) -> None:
    from workers.client import ceremonies as ceremony_client
    from workers.connection import connect
    from workflows.contracts.messages.results import InitResult

    client = await connect()
    handle = await ceremony_client.start(client, "InitWorkflow", request)
    say(f"ceremony {request.ceremony} was started; custodians decide with: masterkey approve {request.ceremony}")
    if not wait:
        answer({"ceremony": request.ceremony}, lambda: None)
        return
    with live() as show:
        result = await ceremony_client.watch(handle, InitResult, show)

    def text() -> None:
        say(f"MasterKey {result.master_key} is protected. Approved by {', '.join(result.approved_by)}.")
        say(f"key check value (KCV): {result.kcv}")
        say(f'recipients pin it:  [recipient] kcv = {{ {result.master_key} = "{result.kcv}" }}')

    answer(
        {
            "ceremony": result.ceremony,
            "master_key": result.master_key,
            "kcv": result.kcv,
            "manifest": result.manifest.digest,
            "approved_by": list(result.approved_by),
        },
        text,
    )


def status(name: Annotated[str, typer.Argument(help="One MasterKey; all by default.")] = "") -> None:
    """What protects a MasterKey, and what is running."""
    run(_status(name or None))


async def _status(name: str | None) -> None:
    from workers.client import ceremonies as ceremony_client
    from workers.connection import connect
    from workflows.contracts.messages.report import ReportRequest
    from workflows.contracts.trust.authority import check_manifest
    from workflows.contracts.trust.fields import CLASSICAL
    from workflows.drill import summary

    chain = OPTIONS.load().roster_source().load()
    report = await ceremony_client.report(await connect(), ReportRequest(kind="status", master_key=name))
    if name is not None and not report.protections and not report.ceremonies:
        raise NotKnown(f"there is no MasterKey {name}")
    found = [(check_manifest(entry.manifest, chain), entry) for entry in report.protections]
    protections = [
        {
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
        for manifest, entry in found
    ]
    stops = [describe_stop(signed, chain.current) for signed in report.stops]
    running = [entry.model_dump() for entry in report.ceremonies if not entry.outcome]

    def text() -> None:
        for manifest, entry in found:
            shape = f"{manifest.mode} {manifest.threshold} of {manifest.count}"
            say(f"{manifest.master_key}  {entry.status} {manifest.purpose}: {shape}, epoch {manifest.epoch}")
            say(f"  KCV {manifest.kcv}; manifest signed by a strongroom of the roster on {manifest.created:%Y-%m-%d}")
            for shard in manifest.shards:
                custody = f", released by {' or '.join(shard.custodians)}" if shard.custodians else ""
                version = f", version {shard.binding.key_version}" if shard.binding.key_version else ""
                key = f"{shard.binding.key_id}{version}"
                say(f"  shard {shard.binding.index}: {shard.binding.keystore} ({key}){custody}")
            if classical := [shard.mechanism for shard in manifest.shards if shard.mechanism in CLASSICAL]:
                kinds = " and ".join(sorted(set(classical)))
                say(f"  note: {len(classical)} data keys are wrapped with {kinds}, which is not post-quantum")
            if entry.destroy_after is not None and entry.status == "retired":
                say(f"  its ciphertexts are destroyed after {entry.destroy_after}")
            active = {m.mode for m, e in found if m.master_key == manifest.master_key and e.status == "active"}
            if entry.status == "active" and len(active) > 1:
                say("  note: an active seal protection beside an sss one lowers the whole to seal")
        if not found:
            say("there is no MasterKey yet")
        for stop in stops:
            say(f"{stop['master_key']} IS STOPPED by {stop['ordered_by']} since {stop['issued']}: {stop['reason']}")
            say(f"  lift it with the governance quorum: masterkey seal {stop['master_key']} --lift")
        for drill in report.drills:
            say(f"{drill.master_key} drilled {drill.at:%Y-%m-%d %H:%M} UTC: {summary(drill)}")
        undrilled = {m.master_key for m, _ in found} - {drill.master_key for drill in report.drills}
        for master_key in sorted(undrilled):
            say(f"{master_key} was never drilled: run `masterkey drill {master_key}`, or schedule it with --every")
        for ceremony in running:
            say(f"running: {ceremony['ceremony']}: {ceremony['phase']}")
        say(f"ledger: {report.events} events, chain verified, head {report.head}")

    drills = [drill.model_dump(mode="json") for drill in report.drills]
    answer(
        {
            "protections": protections,
            "running": running,
            "drills": drills,
            "stops": stops,
            "events": report.events,
            "head": report.head,
        },
        text,
    )


def describe_stop(signed: Signed, roster: Roster) -> dict[str, str]:
    """A stop in force, in words; who ordered it may have left since."""
    from workflows.contracts.trust.stop import Stop, check_stop

    # Its digest is what a lift names, so what it says need not be believed to be shown.
    stop = Stop.parse(signed.document.encode())
    try:
        who = check_stop(roster, signed, None)[1]
    except ApprovalInvalid:
        who = f"UNKNOWN {stop.custodian}"
    return {
        "master_key": stop.master_key,
        "ordered_by": who,
        "issued": f"{stop.issued:%Y-%m-%d %H:%M:%S} UTC",
        "reason": stop.reason,
        "stop": signed.digest,
    }


@app.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False,
    limit: Annotated[int, typer.Option(help="How many at most.")] = 50,
) -> None:
    """Ceremonies, the newest first."""
    run(_list(everything, limit))


async def _list(everything: bool, limit: int) -> None:
    from workers.client import ceremonies as ceremony_client
    from workers.connection import connect
    from workflows.contracts.messages.report import ReportRequest

    report = await ceremony_client.report(await connect(), ReportRequest(kind="ceremonies", limit=limit))
    found = [entry for entry in report.ceremonies if everything or not entry.outcome]

    def text() -> None:
        table = Table(box=None)
        for title in ("ceremony", "state", "opened", "what came of it"):
            table.add_column(title, overflow="fold", no_wrap=title == "ceremony")
        for entry in found:
            told = (entry.ceremony, entry.outcome or entry.phase, entry.opened_at[:16], entry.detail)
            table.add_row(*(Text(plain(cell)) for cell in told))
        OPTIONS.console.print(table if found else "no ceremony is running")

    answer({"ceremonies": [entry.model_dump() for entry in found]}, text)


@app.command()
def show(ceremony: Annotated[str, typer.Argument(help="Id of a ceremony.")]) -> None:
    """What a ceremony is doing, and what it waits for."""
    from workers.client import ceremonies as ceremony_client
    from workers.connection import connect

    async def work() -> Any:
        return await ceremony_client.status(await connect(), ceremony)

    found = run(work())
    answer(found.model_dump(mode="json"), lambda: say("\n".join(lines(found))))
