"""`masterkey init`: a new MasterKey."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli.options import DeadlineOption, StrongroomOption, WaitOption, mode_of
from workers.cli.progress import run_ceremony
from workers.cli.requests import in_seconds, request, shard_requests
from workers.connection import connect
from workers.output import asynchronous, say
from workflows.contracts.messages.requests import InitRequest
from workflows.contracts.messages.results import InitResult


@asynchronous
async def init(
    name: Annotated[str, typer.Argument(help="Name of the new MasterKey, for example eu10.")],
    mode: Annotated[str, typer.Option(help="sss or auto-unseal.", callback=mode_of)],
    keystore: Annotated[
        list[str], typer.Option(help="NAME or NAME:CUSTODIAN[+DEPUTY...]; once for each shard, in order.")
    ],
    threshold: Annotated[int, typer.Option(help="M, how many shards recover it (sss).")] = 1,
    purpose: Annotated[str, typer.Option(help="primary or emergency.")] = "primary",
    strongroom: StrongroomOption = "",
    deadline_hours: DeadlineOption = 72.0,
    wait: WaitOption = True,
) -> None:
    """Create a MasterKey, once the governance quorum has approved."""
    asked = request(
        InitRequest,
        "init",
        name,
        mode=mode,
        threshold=threshold,
        shards=shard_requests(keystore),
        purpose=purpose,
        strongroom=strongroom,
        quorum_timeout_seconds=in_seconds(deadline_hours),
    )
    await run_ceremony(await connect(), "InitWorkflow", asked, InitResult, _say, wait=wait)


def _say(result: InitResult) -> None:
    say(f"MasterKey {result.master_key} is protected. Approved by {', '.join(result.approved_by)}.")
    say(f"key check value (KCV): {result.kcv}")
    say(f'recipients pin it:  [recipient] kcv = {{ {result.master_key} = "{result.kcv}" }}')
