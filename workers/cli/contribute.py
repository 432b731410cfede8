"""`masterkey contribute`: take part in a ceremony as the custodian of an offline keystore, at one's own machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from workers.output import OPTIONS, answer, run, say
from workflows.contracts.trust.errors import ApprovalInvalid, ConfigurationInvalid

if TYPE_CHECKING:
    from workflows.contracts.trust.plan import Plan


def contribute(
    ceremony: Annotated[str, typer.Argument(help="Id of a ceremony.")],
    keystore: Annotated[str, typer.Option(help="Name of your offline keystore.")],
    yes: Annotated[bool, typer.Option("--yes", help="Contribute without asking.")] = False,
    check_only: Annotated[
        bool, typer.Option("--check-only", help="Only prove that your shard opens; give no data key.")
    ] = False,
) -> None:
    """Give what a ceremony wants of your offline keystore; keep it running until it says that it is done."""
    if not yes and not sys.stdin.isatty():
        raise ConfigurationInvalid("nobody can be asked here", next_step="add --yes to contribute without asking")
    given = run(_contribute(ceremony, keystore, yes, check_only))
    answer({"ceremony": ceremony, "keystore": keystore, "contributed": given}, lambda: None)


async def _contribute(ceremony: str, keystore: str, yes: bool, check_only: bool) -> list[str]:
    from workers.client.contribute import Contributor, Remote
    from workers.client.offline_keystore import Custody
    from workers.connection import connect
    from workflows.contracts.trust.statement import render_plan

    configuration = OPTIONS.load()
    terms, chain = configuration.keystore_terms(keystore), configuration.roster_source().load()
    custody = Custody(terms, chain)

    def agree(plan: Plan | None) -> None:
        if plan is None or check_only:
            say(f"PROVE to ceremony {ceremony} that the shard in {keystore} still opens. Nothing is released.")
        else:
            say(render_plan(plan, chain))
            say(f"\nYour keystore {keystore} takes part: it proves its shard, or gives its data key to a session.")
        if not yes and not typer.confirm("Contribute to this?", err=True):
            raise ApprovalInvalid("not contributed", next_step="nothing was sent")

    contributor = Contributor(ceremony, Remote(await connect(), ceremony, say), custody, agree, say, check_only)
    try:
        await contributor.run()
    finally:
        await custody.close()
    return contributor.contributed
