"""`masterkey ceremony list`, `show` and `statement`: what is running, and what waits for whom."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from workers.cli import decide
from workers.cli.lazy import group_of
from workers.cli.options import CeremonyArgument
from workers.cli.progress import lines
from workers.client import ceremonies, running, upkeep
from workers.connection import connect
from workers.output import OPTIONS, answer, asynchronous, plain, say
from workflows.contracts.messages.report import ReportRequest

LATER = {
    "end": (
        "builds:end",
        "End a ceremony before its time, or a run that is none and holds a MasterKey. What is committed stands.",
    ),
    "move": (
        "builds:move",
        "Let this installation's build go on with a ceremony that another began: only if it does the very same.",
    ),
}
"""Commands of the group that are imported when they are called, as in `workers.cli.app`."""
app = typer.Typer(
    help="What is running, and what waits for whom.", cls=group_of(LATER), no_args_is_help=True, add_completion=False
)
app.command("statement")(decide.statement)


@app.command("list")
@asynchronous
async def list_(
    everything: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False,
    limit: Annotated[int, typer.Option(help="How many at most.")] = 50,
) -> None:
    """Ceremonies, the newest first."""
    client = await connect()
    report = await upkeep.report(client, ReportRequest(kind="ceremonies", limit=limit))
    standing = await running.standing(client)
    found = [entry for entry in report.ceremonies if everything or not entry.outcome]

    def text() -> None:
        table = Table(box=None)
        for title in ("ceremony", "state", "opened", "what came of it"):
            table.add_column(title, overflow="fold", no_wrap=title == "ceremony")
        for entry in found:
            said = entry.detail or standing.words(entry.ceremony)
            told = (
                entry.ceremony,
                entry.outcome or entry.phase,
                entry.opened_at[:16],
                said,
            )
            table.add_row(*(Text(plain(cell)) for cell in told))
        OPTIONS.console.print(table if found else "no ceremony is running")
        for one in standing.foreign:
            say(f"{one.describe()}; end it: masterkey ceremony end {one.workflow_id}")

    foreign = [{"workflow_id": one.workflow_id, "what": one.describe()} for one in standing.foreign]
    answer({"ceremonies": [entry.model_dump() for entry in found], "foreign": foreign}, text)


@app.command()
@asynchronous
async def show(ceremony: CeremonyArgument) -> None:
    """What a ceremony is doing, and what it waits for."""
    found = await ceremonies.status(await connect(), ceremony)
    answer(found.model_dump(mode="json"), lambda: say("\n".join(lines(found))))
