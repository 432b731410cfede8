"""`masterkey worker ...`: the roles."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.builds import Promotion
from workers.cli.lazy import group_of
from workers.output import OPTIONS, run
from workers.roles import run_keystores, run_orchestrator, run_strongroom

LATER = {
    "builds": (
        "builds:builds",
        "Which builds of the orchestrator there are, which ceremonies each still has, and whether a worker serves it.",
    ),
    "promote": (
        "builds:promote",
        "Make a build current: new ceremonies begin on it. To go back to an older one, name that.",
    ),
}
"""Commands of the group that are imported when they are called, as in `workers.cli.app`."""
app = typer.Typer(help="Run one role in one process.", cls=group_of(LATER), no_args_is_help=True, add_completion=False)


@app.command()
def orchestrator(
    promote: Annotated[
        bool | None,
        typer.Option(
            "--promote/--no-promote",
            help="Make this build current, so that new ceremonies begin on it; by default if it is new to Temporal.",
        ),
    ] = None,
    ramp: Annotated[
        float | None, typer.Option(min=0, max=100, help="Give it this percentage of new ceremonies instead.")
    ] = None,
    unversioned: Annotated[
        bool, typer.Option("--unversioned", help="Without worker versioning: an upgrade ends ceremonies that wait.")
    ] = False,
) -> None:
    """Workflows and the ledger: has the database, and no credentials."""
    if unversioned and (promote is not None or ramp is not None):
        raise typer.BadParameter("--unversioned goes with neither --promote nor --ramp")
    how = Promotion(versioned=not unversioned, promote=promote, ramp=ramp)
    run(run_orchestrator(OPTIONS.load(), how))


@app.command()
def strongroom() -> None:
    """Sessions: has the strongroom's identity, no database and no keystore."""
    run(run_strongroom(OPTIONS.load()))


@app.command()
def keystore(
    names: Annotated[list[str], typer.Argument(help="Sections [keystores.NAME] of the configuration.")],
) -> None:
    """One or more keystores: has their credentials, and no database."""
    run(run_keystores(OPTIONS.load(), names))
