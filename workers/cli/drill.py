"""`masterkey drill`: prove that every shard still opens, now or on a schedule."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli.options import NameArgument
from workers.cli.progress import as_json, watched
from workers.cli.requests import in_seconds, request
from workers.client import ceremonies, upkeep
from workers.connection import connect
from workers.output import answer, asynchronous, say, shown
from workflows.contracts.messages.requests import DrillRequest
from workflows.contracts.messages.results import DrillResult
from workflows.drill import summary


@asynchronous
async def drill(
    name: NameArgument,
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
        await _schedule(name, every)
        return
    asked = request(DrillRequest, "drill", name, offline_seconds=in_seconds(offline_hours))
    handle = await ceremonies.start(await connect(), "DrillWorkflow", asked)
    if offline_hours:
        say(f"custodians of offline keystores prove theirs: masterkey contribute {asked.ceremony} --keystore NAME")
    result = await watched(handle, DrillResult)
    answer(as_json(result), lambda: _say(name, result))
    if not result.healthy:
        raise typer.Exit(1)


def _say(name: str, result: DrillResult) -> None:
    for protection in result.protections:
        count = len(protection.shards)
        say(f"{name} {protection.purpose}: {shown(protection.mode)} {protection.threshold} of {count}")
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


async def _schedule(name: str, every: float | None) -> None:
    client = await connect()
    if every is None:
        await upkeep.unschedule_drill(client, name)
        answer({"master_key": name, "scheduled": False}, lambda: say(f"no more scheduled drills of {name}"))
        return
    await upkeep.schedule_drill(client, name, every)
    answer(
        {"master_key": name, "scheduled": True, "every_hours": every},
        lambda: say(f"{name} is drilled every {every:g} hours from now on; see `masterkey status {name}`"),
    )
