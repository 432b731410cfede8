"""`masterkey worker builds` and `promote`, `masterkey ceremony end` and `move`: upgrades, seen and steered."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from workers import builds as known
from workers.audit.compare import audit_run
from workers.client import running
from workers.connection import connect
from workers.output import OPTIONS, answer, asynchronous, plain, say
from workflows.contracts.trust.errors import PlanInvalid


@asynchronous
async def builds() -> None:
    """Which builds of the orchestrator there are, which ceremonies each still has, and whether a worker serves it."""
    client = await connect()
    found, alive = await known.known_builds(client), await running.builds_alive(client)
    runs = [one async for one in running.running(client)]
    rows: list[dict[str, Any]] = [
        {
            "build": one.build,
            "state": one.state,
            "since": one.since.isoformat() if one.since else None,
            "share": one.share,
            "served": one.build in alive,
            "ceremonies": [_told(each) for each in runs if each.build == one.build],
        }
        for one in found
    ]
    without = [_told(each) for each in runs if each.build not in {one.build for one in found}]

    def text() -> None:
        table = Table(box=None)
        for title in ("build", "state", "since", "served", "open"):
            table.add_column(title, no_wrap=title == "build")
        for row in rows:
            share = f" {row['share']:g} %" if row["share"] else ""
            since = str(row["since"] or "")[:16].replace("T", " ")
            served = "yes" if row["served"] else "NO"
            cells = (row["build"], row["state"] + share, since, served, str(len(row["ceremonies"])))
            table.add_row(*(Text(plain(cell)) for cell in cells))
        OPTIONS.console.print(table if rows else "no orchestrator with worker versioning has run here yet")
        for row in rows:
            for one in row["ceremonies"]:
                say(f"  {row['build']}: {one['what']}")
                if not row["served"]:
                    say(f"    waits for a worker of {row['build']}, and none runs: start one, or")
                    say(f"    masterkey ceremony move {one['name']}, or masterkey ceremony end {one['name']}")
        for one in without:
            say(f"  without a build: {one['what']}")
        say(f"this is build {known.build_id()}, code {known.software()}")

    answer({"build": known.build_id(), "code": known.software(), "builds": rows, "unversioned": without}, text)


def _told(one: running.Running) -> dict[str, str]:
    return {
        "name": one.ceremony or one.workflow_id,
        "master_key": one.master_key,
        "workflow": one.workflow_type,
        "since": one.since.isoformat(),
        "what": one.describe(),
    }


@asynchronous
async def promote(
    build: Annotated[str | None, typer.Argument(help="Id of a build; this installation's by default.")] = None,
    ramp: Annotated[
        float | None, typer.Option(min=0, max=100, help="Give it this percentage of new ceremonies instead of all.")
    ] = None,
    unversioned: Annotated[
        bool, typer.Option("--unversioned", help="Make no build current: orchestrators without versioning get work.")
    ] = False,
) -> None:
    """Make a build current: new ceremonies begin on it. To go back to an older one, name that."""
    if unversioned and (build is not None or ramp is not None):
        raise typer.BadParameter("--unversioned goes with neither a build nor --ramp")
    build, client = "" if unversioned else build or known.build_id(), await connect()
    if build and build not in {one.build for one in await known.known_builds(client)}:
        raise PlanInvalid(f"Temporal knows no build {build}", next_step="see `masterkey worker builds`")
    if ramp is None:
        await known.promote(client, build)
        said = f"build {build} is current" if build else "no build is current"
    else:
        await known.ramp(client, build, ramp)
        said = f"build {build} gets {ramp:g} % of new ceremonies"
    answer({"build": build, "share": ramp}, lambda: say(said))


@asynchronous
async def end(
    ceremony: Annotated[str, typer.Argument(help="Id of a ceremony, or of a workflow, as a command printed it.")],
    reason: Annotated[str, typer.Option(help="Kept in Temporal's history.")] = "ended with `masterkey ceremony end`",
) -> None:
    """End a ceremony before its time, or a run that is none and holds a MasterKey. What is committed stands."""
    said = await running.end(await connect(), ceremony, reason)
    answer({"ended": ceremony, "what": said}, lambda: say(said))


@asynchronous
async def move(
    ceremony: Annotated[str, typer.Argument(help="Id of a ceremony that waits for a build.")],
) -> None:
    """Let this installation's build go on with a ceremony that another began: only if it does the very same."""
    client, target = await connect(), known.build_id()
    found = await running.find(client, ceremony)
    handle = client.get_workflow_handle(found.workflow_id, run_id=found.run_id)
    audited = await audit_run(await handle.fetch_history(), running=True)
    if audited.differences:
        raise PlanInvalid(
            f"build {target} would go on with {ceremony} in another way ({audited.differences[0]})",
            next_step=f"start an orchestrator of build {found.build}, or end it: masterkey ceremony end {ceremony}",
        )
    before = await running.move(client, ceremony, target)
    answer(
        {"ceremony": ceremony, "from": before, "to": target},
        lambda: say(f"{ceremony} goes on with build {target} (it was on {before})"),
    )
