"""`masterkey worker ...` and `masterkey ledger upgrade`."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.output import OPTIONS, answer, run, say

worker_app = typer.Typer(help="Run one role in one process.", no_args_is_help=True)
ledger_app = typer.Typer(help="The ledger's database.", no_args_is_help=True)


@worker_app.command()
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
    from workers.builds import Release
    from workers.roles import run_orchestrator

    if unversioned and (promote is not None or ramp is not None):
        raise typer.BadParameter("--unversioned goes with neither --promote nor --ramp")
    how = Release(versioned=not unversioned, promote=promote, ramp=ramp)
    run(run_orchestrator(OPTIONS.load(), how))


@worker_app.command()
def strongroom() -> None:
    """Sessions: has the strongroom's identity, no database and no keystore."""
    from workers.roles import run_strongroom

    run(run_strongroom(OPTIONS.load()))


@worker_app.command()
def keystore(
    names: Annotated[list[str], typer.Argument(help="Sections [keystores.NAME] of the configuration.")],
) -> None:
    """One or more keystores: has their credentials, and no database."""
    from workers.roles import run_keystores

    run(run_keystores(OPTIONS.load(), names))


@ledger_app.command()
def upgrade() -> None:
    """Create the database, or migrate it to this version."""
    from activities.ledger.store.ledger import Ledger

    url = OPTIONS.load().ledger_url()
    ledger = Ledger(url)
    ledger.upgrade()
    ledger.check()
    answer({"ledger": "ready"}, lambda: say("the ledger is ready"))


@ledger_app.command()
def collect() -> None:
    """Collect at once what the orchestrator collects every hour: staged leftovers, and what is due for destruction."""
    run(_collect())


async def _collect() -> None:
    from workers.client import ceremonies as ceremony_client
    from workers.connection import connect

    done = await ceremony_client.collect(await connect())

    def text() -> None:
        say(f"leftovers of {len(done.discarded)} ceremonies discarded, {len(done.destroyed)} protections destroyed")
        for digest in done.destroyed:
            say(f"  destroyed {digest}")

    answer(done.model_dump(mode="json"), text)
