"""`masterkey init`, `status`, `ceremony ...`, `approve` and `reject`."""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from workers.cli.output import OPTIONS, answer, plain, run, say
from workers.cli.progress import lines, live
from workers.cli.topology import shard_requests, validated
from workflows.contracts.errors import ApprovalInvalid, ConfigurationInvalid, MasterKeyError, NotKnown

if TYPE_CHECKING:
    from workflows.contracts.canonical import Signed
    from workflows.contracts.roster import Roster

_PLANNING_SECONDS = 30
"""How long to wait for the plan of a ceremony that has just been started."""

app = typer.Typer(help="What is running, and what waits for whom.", no_args_is_help=True)

KeyOption = Annotated[Path, typer.Option(help="Your SSH private key, or its public half if an agent holds it.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Sign without asking.")]


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
    from workflows.contracts.messages import InitRequest
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
    from workers import ceremony_client
    from workers.connection import connect
    from workflows.contracts.messages import InitResult

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
    from workers import ceremony_client
    from workers.connection import connect
    from workflows.contracts.authority import check_manifest
    from workflows.contracts.documents import CLASSICAL
    from workflows.contracts.messages import ReportRequest
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
    stops = [_stop(signed, chain.current) for signed in report.stops]
    running = [entry.model_dump() for entry in report.ceremonies if not entry.outcome]

    def text() -> None:
        for manifest, entry in found:
            shape = f"{manifest.mode} {manifest.threshold} of {manifest.count}"
            say(f"{manifest.master_key}  {entry.status} {manifest.purpose}: {shape}, epoch {manifest.epoch}")
            say(f"  KCV {manifest.kcv}; manifest signed by a strongroom of the roster on {manifest.created:%Y-%m-%d}")
            for shard in manifest.shards:
                custody = f", released by {' or '.join(shard.custodians)}" if shard.custodians else ""
                say(f"  shard {shard.binding.index}: {shard.binding.keystore} ({shard.binding.key_id}){custody}")
            if classical := [shard.mechanism for shard in manifest.shards if shard.mechanism in CLASSICAL]:
                kinds = " and ".join(sorted(set(classical)))
                say(f"  note: {len(classical)} data keys are wrapped with {kinds}, which is not post-quantum")
            if entry.destroy_after is not None and entry.status == "retired":
                say(f"  its ciphertexts are destroyed after {entry.destroy_after}")
            if len({m.mode for m, e in found if m.master_key == manifest.master_key and e.status == "active"}) > 1:
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


def _stop(signed: Signed, roster: Roster) -> dict[str, str]:
    """A stop in force, in words; who ordered it may have left since."""
    from workflows.contracts.authority import check_stop
    from workflows.contracts.documents import Stop

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
    from workers import ceremony_client
    from workers.connection import connect
    from workflows.contracts.messages import ReportRequest

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
    from workers import ceremony_client
    from workers.connection import connect

    async def work() -> Any:
        return await ceremony_client.status(await connect(), ceremony)

    found = run(work())
    answer(found.model_dump(mode="json"), lambda: say("\n".join(lines(found))))


@app.command()
def statement(
    ceremony: Annotated[str, typer.Argument(help="Id of a ceremony.")],
    key: KeyOption,
    decision: Annotated[str, typer.Option(help="approve or reject.")] = "approve",
    out: Annotated[Path | None, typer.Option(help="Write the bytes to sign to this file.")] = None,
) -> None:
    """Show what would be signed, and write it for signing elsewhere.

    Sign the file with `ssh-keygen -Y sign -n masterkey-approval -f KEY FILE`, then submit it with
    `masterkey approve CEREMONY --statement FILE --signature FILE.sig`.
    """
    if decision not in ("approve", "reject"):
        raise ConfigurationInvalid("--decision is approve or reject")
    document = run(_statement(ceremony, key, "approve" if decision == "approve" else "reject", None))
    words = _render(document)
    if out is not None:
        out.write_bytes(document)

    def text() -> None:
        say(words)
        if out is not None:
            say(f"\nwritten to {out}; sign it with: ssh-keygen -Y sign -n masterkey-approval -f {key} {out}")

    answer({"statement": document.decode(), "words": words}, text)


def approve(
    ceremony: Annotated[str, typer.Argument(help="Id of a ceremony.")],
    key: Annotated[Path | None, typer.Option(help="Your SSH key, or its public half if an agent holds it.")] = None,
    yes: YesOption = False,
    hours: Annotated[float | None, typer.Option(help="How long your approval counts.")] = None,
    statement: Annotated[Path | None, typer.Option(help="A statement that was signed elsewhere.")] = None,
    signature: Annotated[Path | None, typer.Option(help="Its signature.")] = None,
) -> None:
    """Sign, as a custodian, that a ceremony may go on."""
    _decide("approve", ceremony, key, yes, hours, statement, signature)


def reject(
    ceremony: Annotated[str, typer.Argument(help="Id of a ceremony.")],
    key: Annotated[Path | None, typer.Option(help="Your SSH key, or its public half if an agent holds it.")] = None,
    yes: YesOption = False,
    statement: Annotated[Path | None, typer.Option(help="A statement that was signed elsewhere.")] = None,
    signature: Annotated[Path | None, typer.Option(help="Its signature.")] = None,
) -> None:
    """Sign, as a custodian, that a ceremony shall not go on; this stands for good."""
    _decide("reject", ceremony, key, yes, None, statement, signature)


def _decide(
    decision: Literal["approve", "reject"],
    ceremony: str,
    key: Path | None,
    yes: bool,
    hours: float | None,
    statement_file: Path | None,
    signature_file: Path | None,
) -> None:
    from workers import ceremony_client
    from workers.connection import connect
    from workers.ssh import sign_with_key
    from workflows.contracts.canonical import Signed
    from workflows.contracts.documents import Approval

    if statement_file is not None and signature_file is not None:
        document, signature = statement_file.read_bytes(), signature_file.read_text(encoding="ascii")
        said = Approval.parse(document)
        if (said.decision, said.plan.ceremony) != (decision, ceremony):
            raise ApprovalInvalid(f"{statement_file} says {said.decision} of {said.plan.ceremony}")
        say(_render(document))
    elif key is not None and statement_file is None and signature_file is None:
        document = run(_statement(ceremony, key, decision, hours))
        say(_render(document))
        run(_say_difference(document))
        if not yes:
            if not sys.stdin.isatty():
                raise ConfigurationInvalid("nobody can be asked here", next_step="add --yes to sign without asking")
            if not typer.confirm(f"\nSign this with {key}?", err=True):
                raise ApprovalInvalid("not signed", next_step="nothing was sent")
        signature = sign_with_key(document, key, Approval.TYPE)
    else:
        raise ConfigurationInvalid("give --key, or --statement and --signature")
    signed = Signed(document=document.decode(), signature=signature)

    async def send() -> Any:
        return await ceremony_client.submit(await connect(), ceremony, signed)

    outcome = run(send())

    def text() -> None:
        again = " (it was recorded before)" if outcome.state == "duplicate" else ""
        say(f"\nrecorded: {outcome.custodian} {outcome.decision}s {ceremony}{again}")
        say(f"still needed: {outcome.needed}" if outcome.needed else "the quorum stands")

    answer(outcome.model_dump(mode="json"), text)


async def _statement(ceremony: str, key: Path, decision: Literal["approve", "reject"], hours: float | None) -> bytes:
    from workers import ceremony_client
    from workers.connection import connect
    from workers.ssh import public_key_of
    from workflows.contracts.authority import parse_plan
    from workflows.contracts.canonical import seconds
    from workflows.contracts.documents import Approval
    from workflows.contracts.signatures import fingerprint

    public_key = public_key_of(key)
    client = await connect()
    found = await ceremony_client.status(client, ceremony)
    deadline = time.monotonic() + _PLANNING_SECONDS
    while found.plan is None and found.phase == "planning" and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        found = await ceremony_client.status(client, ceremony)
    if found.plan is None:
        raise NotKnown(
            f"ceremony {ceremony} has no plan to decide on ({found.phase})",
            next_step=f"look at `masterkey ceremony show {ceremony}`",
        )
    plan, now = parse_plan(found.plan), seconds(datetime.now(UTC))
    if plan.ceremony != ceremony:
        raise ApprovalInvalid("the plan that came is of another ceremony")
    expires = plan.expires if hours is None else min(plan.expires, now + timedelta(seconds=round(hours * 3600)))
    return Approval(
        decision=decision,
        plan=plan,
        plan_digest=plan.digest,
        custodian=fingerprint(public_key),
        issued=now,
        expires=expires,
    ).canonical()


async def _say_difference(document: bytes) -> None:
    """What a plan changes, from manifests whose signatures and digests are checked here."""
    from workers.cli.topology import manifests
    from workers.connection import connect
    from workflows.contracts.difference import difference
    from workflows.contracts.documents import Approval

    plan = Approval.parse(document).plan
    if plan.target is None or plan.source is None:
        return
    before = None
    if plan.target.predecessor is not None:
        try:
            found = {digest: m for m, digest, _ in await manifests(await connect(), plan.master_key)}
            before = found[plan.target.predecessor]
        except (MasterKeyError, KeyError):
            say("\n  WARNING: the protection that this replaces could not be shown: compare the digest above yourself")
            return
    say("\n  what changes:")
    for line in difference(before, plan.target):
        say(f"    {line}")


def _render(document: bytes) -> str:
    from workflows.contracts.statement import render_approval

    return render_approval(document, OPTIONS.load().roster_source().load())
