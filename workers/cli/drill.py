"""`masterkey drill`: prove that every shard still opens, now or on a schedule."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli.output import answer, run, say
from workers.cli.progress import live


def drill(
    name: Annotated[str, typer.Argument(help="Name of the MasterKey.")],
    every: Annotated[float | None, typer.Option("--every", help="Drill every so many hours, from now on.")] = None,
    unschedule: Annotated[bool, typer.Option("--unschedule", help="Stop the scheduled drills.")] = False,
) -> None:
    """Prove that every shard still opens; exit 1 if one does not. Opens none, and needs no custodian."""
    if every is not None and unschedule:
        raise typer.BadParameter("either --every or --unschedule")
    if every is not None or unschedule:
        run(_schedule(name, every))
    elif not run(_drill(name)):
        raise typer.Exit(1)


async def _drill(name: str) -> bool:
    from workers import ceremony_client
    from workers.connection import connect
    from workflows.contracts.messages import DrillRequest, DrillResult
    from workflows.contracts.names import new_ceremony_id
    from workflows.drill import summary

    client = await connect()
    request = DrillRequest(master_key=name, ceremony=new_ceremony_id(name, "drill"))
    handle = await ceremony_client.start(client, "DrillWorkflow", request)
    with live() as show:
        result = await ceremony_client.watch(handle, DrillResult, show)

    def text() -> None:
        for protection in result.protections:
            count = len(protection.shards)
            say(f"{name} {protection.purpose}: {protection.mode} {protection.threshold} of {count}")
            for shard in protection.shards:
                state = "opens" if shard.opens else f"DOES NOT OPEN: {shard.error}: {shard.detail}"
                say(f"  shard {shard.index} {shard.keystore} ({shard.key_id}): {state}")
        say(summary(result))

    answer(result.model_dump(mode="json"), text)
    return result.healthy


async def _schedule(name: str, every: float | None) -> None:
    from workers import ceremony_client
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
