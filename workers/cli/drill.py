"""`masterkey drill`: prove that every shard still opens, now or on a schedule."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli.progress import live
from workers.cli.topology import validated
from workers.output import answer, run, say


def drill(
    name: Annotated[str, typer.Argument(help="Name of the MasterKey.")],
    every: Annotated[float | None, typer.Option("--every", help="Drill every so many hours, from now on.")] = None,
    offline_hours: Annotated[
        float, typer.Option(help="Wait so long for the custodians of offline keystores (`masterkey contribute`).")
    ] = 0.0,
    unschedule: Annotated[bool, typer.Option("--unschedule", help="Stop the scheduled drills.")] = False,
) -> None:
    """Prove that every shard still opens; exit 1 if one does not. Opens none, and needs no custodian."""
    if every is not None and unschedule:
        raise typer.BadParameter("either --every or --unschedule")
    if every is not None or unschedule:
        run(_schedule(name, every))
    elif not run(_drill(name, offline_hours)):
        raise typer.Exit(1)


async def _drill(name: str, offline_hours: float) -> bool:
    from workers.client import ceremonies as ceremony_client
    from workers.connection import connect
    from workflows.contracts.messages.requests import DrillRequest
    from workflows.contracts.messages.results import DrillResult
    from workflows.contracts.names import new_ceremony_id
    from workflows.drill import summary

    client = await connect()
    fields = {"master_key": name, "ceremony": new_ceremony_id(name, "drill")}
    request = validated(DrillRequest, {**fields, "offline_seconds": round(offline_hours * 3600)}, "drill")
    handle = await ceremony_client.start(client, "DrillWorkflow", request)
    if offline_hours:
        say(f"custodians of offline keystores prove theirs: masterkey contribute {request.ceremony} --keystore NAME")
    with live() as show:
        result = await ceremony_client.watch(handle, DrillResult, show)

    def text() -> None:
        for protection in result.protections:
            count = len(protection.shards)
            say(f"{name} {protection.purpose}: {protection.mode} {protection.threshold} of {count}")
            for shard in protection.shards:
                state = "opens" if shard.opens else f"DOES NOT OPEN: {shard.error}: {shard.detail}"
                if shard.offline:
                    proven = f"last proven {shard.proven:%Y-%m-%d}" if shard.proven else "never proven"
                    state = f"offline, {proven}; let its custodian prove it with --offline-hours"
                say(f"  shard {shard.index} {shard.keystore} ({shard.key_id}): {state}")
        say(summary(result))
        for protection in result.protections:
            if protection.not_told:
                missed = ", ".join(protection.not_told)
                say(f"could not tell {missed} what is in force: they may serve an older protection still")
        if not result.healthy:
            say(f"if that does not come back by itself: masterkey recover {name}")

    answer(result.model_dump(mode="json"), text)
    return result.healthy


async def _schedule(name: str, every: float | None) -> None:
    from workers.client import ceremonies as ceremony_client
    from workers.connection import connect

    client = await connect()
    if every is None:
        await ceremony_client.unschedule_drill(client, name)
        answer({"master_key": name, "scheduled": False}, lambda: say(f"no more scheduled drills of {name}"))
        return
    await ceremony_client.schedule_drill(client, name, every)
    answer(
        {"master_key": name, "scheduled": True, "every_hours": every},
        lambda: say(f"{name} is drilled every {every:g} hours from now on; see `masterkey status {name}`"),
    )
