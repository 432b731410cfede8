"""`masterkey contribute`: take part in a ceremony as the custodian of an offline keystore, at one's own machine."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli.options import CeremonyArgument
from workers.cli.signing import confirm, need_terminal
from workers.client.contribute import Contributor, Remote
from workers.client.offline_keystore import OfflineKeystore
from workers.connection import connect
from workers.output import OPTIONS, answer, asynchronous, say
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.statement import render_plan


@asynchronous
async def contribute(
    ceremony: CeremonyArgument,
    keystore: Annotated[str, typer.Option(help="Name of your offline keystore.")],
    yes: Annotated[bool, typer.Option("--yes", help="Contribute without asking.")] = False,
    check_only: Annotated[
        bool, typer.Option("--check-only", help="Only prove that your shard opens; give no data key.")
    ] = False,
) -> None:
    """Give what a ceremony wants of your offline keystore; keep it running until it says that it is done."""
    need_terminal(yes=yes, doing="contribute")
    configuration = OPTIONS.load()
    terms, chain = configuration.keystore_terms(keystore), configuration.roster_source().load()
    keys = OfflineKeystore(terms, chain)

    def agree(plan: Plan | None) -> None:
        if plan is None or check_only:
            say(f"PROVE to ceremony {ceremony} that the shard in {keystore} still opens. Nothing is released.")
        else:
            say(render_plan(plan, chain))
            say(f"\nYour keystore {keystore} takes part: it proves its shard, or gives its data key to a session.")
        confirm("Contribute to this?", yes=yes, declined="not contributed")

    contributor = Contributor(ceremony, Remote(await connect(), ceremony, say), keys, agree, say, check_only)
    try:
        await contributor.run()
    finally:
        await keys.close()
    answer({"ceremony": ceremony, "keystore": keystore, "contributed": contributor.contributed}, lambda: None)
