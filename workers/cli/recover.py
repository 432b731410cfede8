"""`masterkey recover`: disaster recovery, here or from a bundle on a laptop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workers.cli.options import NameArgument, StrongroomOption, mode_of
from workers.cli.progress import conclude, was_started
from workers.cli.protections import say_result
from workers.cli.requests import in_seconds, request, shard_requests, validated
from workers.client import ceremonies, upkeep
from workers.connection import connect
from workers.output import OPTIONS, answer, run, say
from workflows.contracts.messages.report import ReportRequest
from workflows.contracts.messages.requests import ChangedPlan, RecoverRequest
from workflows.contracts.messages.results import ReshardResult
from workflows.contracts.trust.service_errors import CeremonyEnded


def recover(
    name: NameArgument,
    purpose: Annotated[str, typer.Option(help="Which protection to make whole: primary or emergency.")] = "primary",
    source: Annotated[str | None, typer.Option(help="Which protection to open; the best by default.")] = None,
    replace: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:CUSTODIAN[+DEPUTY...] that may take a lost keystore's place; in this order."),
    ] = None,
    keystore: Annotated[
        list[str] | None, typer.Option(help="The whole new topology instead, once for each shard.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="With --keystore: sss or auto-unseal; as now by default.", callback=mode_of)
    ] = None,
    threshold: Annotated[int | None, typer.Option(help="M of the new protection; as now by default.")] = None,
    ceremony: Annotated[str | None, typer.Option(help="Change the plan of this recovery, which waits.")] = None,
    strongroom: StrongroomOption = "",
    deadline_hours: Annotated[float, typer.Option(help="How long it may wait for people and keystores.")] = 168.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, showing progress.")] = True,
    from_bundle: Annotated[Path | None, typer.Option(help="Break glass: begin with nothing but this bundle.")] = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Run everything on this machine (--from-bundle).")
    ] = False,
    approval: Annotated[
        list[Path] | None, typer.Option(help="The quorum's approvals of the bundle (`masterkey bundle approve`).")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Break glass: holds database, logs, results.")] = Path("break-glass"),
) -> None:
    """Disaster recovery: assess, propose, wait for the quorum, reconstruct, protect, prove, commit, report."""
    if (from_bundle is None) == embedded:
        raise typer.BadParameter("--from-bundle FILE and --embedded go together")
    fields = {
        "purpose": purpose,
        "source": source,
        "replacements": shard_requests(replace),
        "shards": shard_requests(keystore),
        "mode": mode,
        "threshold": threshold,
        "strongroom": strongroom,
        "quorum_timeout_seconds": in_seconds(deadline_hours),
    }
    if from_bundle is not None:
        # Here and not above: whoever has an installation needs no other one on this machine.
        from workers.local.break_glass import run_break_glass

        run_break_glass(OPTIONS.config, folder, from_bundle, approval or [], lambda: run(_recover(name, fields, wait)))
    elif ceremony is not None:
        run(_replan(ceremony, fields))
    else:
        run(_recover(name, fields, wait))


async def _recover(name: str, fields: dict[str, Any], wait: bool) -> None:
    client, asked = await connect(), request(RecoverRequest, "recover", name, **fields)
    started = str(asked.ceremony)
    try:
        handle = await ceremonies.start(client, "DisasterRecoveryWorkflow", asked)
        say(was_started(started))
    except CeremonyEnded:
        report = await upkeep.report(client, ReportRequest(kind="ceremonies", master_key=name))
        running = [one.ceremony for one in report.ceremonies if one.action == "recover" and not one.outcome]
        if not running:
            raise
        started = running[0]
        handle = await ceremonies.ceremony(client, started)
        say(f"a recovery of {name} is running already, {started}: showing that one")
    say(
        f"another plan, before it is put in force: masterkey recover {name} --ceremony {started} --replace KEYSTORE ..."
    )
    await conclude(handle, started, ReshardResult, say_result, wait=wait)


async def _replan(ceremony: str, fields: dict[str, Any]) -> None:
    phase = await ceremonies.replan(await connect(), ceremony, validated(ChangedPlan, fields, "recover"))

    def text() -> None:
        say(f"{ceremony} takes another plan (it was in phase {phase}); earlier approvals do not count for it")
        say(f"look at it with: masterkey ceremony show {ceremony}")

    answer({"ceremony": ceremony, "phase": phase}, text)
