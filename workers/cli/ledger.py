"""`masterkey ledger upgrade` and `collect`: the ledger's database."""

from __future__ import annotations

import typer

from activities.ledger.store.ledger import Ledger
from workers.client import upkeep
from workers.connection import connect
from workers.output import OPTIONS, answer, asynchronous, say

app = typer.Typer(help="The ledger's database.", no_args_is_help=True, add_completion=False)


@app.command()
def upgrade() -> None:
    """Create the database, or migrate it to this version."""
    url = OPTIONS.load().ledger_url()
    ledger = Ledger(url)
    ledger.upgrade()
    ledger.check()
    answer({"ledger": "ready"}, lambda: say("the ledger is ready"))


@app.command()
@asynchronous
async def collect() -> None:
    """Collect at once what the orchestrator collects every hour: staged leftovers, and what is due for destruction."""
    done = await upkeep.collect(await connect())

    def text() -> None:
        say(f"leftovers of {len(done.discarded)} ceremonies discarded, {len(done.destroyed)} protections destroyed")
        for digest in done.destroyed:
            say(f"  destroyed {digest}")

    answer(done.model_dump(mode="json"), text)
