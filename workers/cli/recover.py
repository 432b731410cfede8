"""`masterkey recover`: disaster recovery, here or from a bundle on a laptop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workers.cli.progress import live
from workers.cli.topology import say_result, shard_requests, told_result, validated
from workers.output import OPTIONS, answer, run, say
from workflows.contracts.trust.errors import CeremonyEnded


def recover(
    name: Annotated[str, typer.Argument(help="Name of the MasterKey.")],
    purpose: Annotated[str, typer.Option(help="Which protection to make whole: primary or emergency.")] = "primary",
    source: Annotated[str | None, typer.Option(help="Which protection to open; the best by default.")] = None,
    replace: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:CUSTODIAN[+DEPUTY...] that may take a lost keystore's place; in this order."),
    ] = None,
    keystore: Annotated[
        list[str] | None, typer.Option(help="The whole new topology instead, once for each shard.")
    ] = None,
    mode: Annotated[str | None, typer.Option(help="With --keystore: sss or seal; as now by default.")] = None,
    threshold: Annotated[int | None, typer.Option(help="M of the new protection; as now by default.")] = None,
    ceremony: Annotated[str | None, typer.Option(help="Change the plan of this recovery, which waits.")] = None,
    strongroom: Annotated[str, typer.Option(help="Name of the strongroom; the roster's first by default.")] = "",
    deadline_hours: Annotated[float, typer.Option(help="How long it may wait for people and keystores.")] = 168.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, telling what happens.")] = True,
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
    wishes = {
        "purpose": purpose,
        "source": source,
        "replacements": shard_requests(replace or []),
        "shards": shard_requests(keystore or []),
        "mode": mode,
        "threshold": threshold,
        "strongroom": strongroom,
        "quorum_timeout_seconds": round(deadline_hours * 3600),
    }
    if from_bundle is not None:
        from workers.local.break_glass import run_break_glass

        run_break_glass(OPTIONS.config, folder, from_bundle, approval or [], lambda: run(_recover(name, wishes, wait)))
    elif ceremony is not None:
        run(_replan(ceremony, wishes))
    else:
        run(_recover(name, wishes, wait))


async def _recover(name: str, wishes: dict[str, Any], wait: bool) -> None:
    from workers.client import ceremonies as ceremony_client
    from workers.connection import connect
    from workflows.contracts.messages.report import ReportRequest
    from workflows.contracts.messages.requests import RecoverRequest
    from workflows.contracts.messages.results import ReshardResult
    from workflows.contracts.names import new_ceremony_id

    client, started = await connect(), new_ceremony_id(name, "recover")
    request = validated(RecoverRequest, {**wishes, "ceremony": started, "master_key": name}, "recover")
    try:
        handle = await ceremony_client.start(client, "DisasterRecoveryWorkflow", request)
        say(f"ceremony {started} was started; custodians decide with: masterkey approve {started}")
    except CeremonyEnded:
        report = await ceremony_client.report(client, ReportRequest(kind="ceremonies", master_key=name))
        running = [one.ceremony for one in report.ceremonies if one.action == "recover" and not one.outcome]
        if not running:
            raise
        started = running[0]
        handle = await ceremony_client.ceremony(client, started)
        say(f"a recovery of {name} is running already, {started}: showing that one")
    say(
        f"another plan, before it is put in force: masterkey recover {name} --ceremony {started} --replace KEYSTORE ..."
    )
    if not wait:
        answer({"ceremony": started}, lambda: None)
        return
    with live() as show:
        result = await ceremony_client.watch(handle, ReshardResult, show)
    answer(told_result(result), lambda: say_result(result))


async def _replan(ceremony: str, wishes: dict[str, Any]) -> None:
    from workers.client import ceremonies as ceremony_client
    from workers.connection import connect
    from workflows.contracts.messages.requests import ChangedPlan

    wish = validated(ChangedPlan, wishes, "recover")
    phase = await ceremony_client.replan(await connect(), ceremony, wish)

    def text() -> None:
        say(f"{ceremony} takes another plan (it was in phase {phase}); earlier approvals do not count for it")
        say(f"look at it with: masterkey ceremony show {ceremony}")

    answer({"ceremony": ceremony, "phase": phase}, text)
