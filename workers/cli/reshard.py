"""`masterkey reshard`: another protection of the same MasterKey."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli.options import DeadlineOption, NameArgument, StrongroomOption, WaitOption, mode_of
from workers.cli.orders import order
from workers.cli.progress import run_ceremony
from workers.cli.protections import protections, say_result
from workers.cli.requests import in_seconds, request, shard_requests
from workers.connection import connect
from workers.output import asynchronous
from workflows.contracts.messages.requests import ReshardRequest, ShardRequest
from workflows.contracts.messages.results import ReshardResult
from workflows.contracts.trust.errors import PlanInvalid
from workflows.contracts.trust.service_errors import NotKnown


@asynchronous
async def reshard(
    name: NameArgument,
    mode: Annotated[str | None, typer.Option(help="sss or auto-unseal; as now by default.", callback=mode_of)] = None,
    keystore: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:CUSTODIAN[+DEPUTY...], once for each shard; as now by default."),
    ] = None,
    threshold: Annotated[int | None, typer.Option(help="M, how many shards recover it; as now by default.")] = None,
    purpose: Annotated[str, typer.Option(help="Of the new protection: primary or emergency.")] = "primary",
    source: Annotated[str | None, typer.Option(help="Which protection to open: primary or emergency.")] = None,
    retention_hours: Annotated[
        int | None, typer.Option(help="Destroy the old ciphertexts after so long; by default when that is ordered.")
    ] = None,
    drop: Annotated[str | None, typer.Option(help="Retire this protection (emergency) and make none.")] = None,
    strongroom: StrongroomOption = "",
    deadline_hours: DeadlineOption = 72.0,
    wait: WaitOption = True,
) -> None:
    """Protect a MasterKey again: other numbers, keystores, custodians or mode, or only newer key versions."""
    if drop is not None and (keystore or mode or threshold):
        raise typer.BadParameter("--drop makes no new protection")
    client = await connect()
    known = await protections(client, name)
    active = {str(m.purpose): (m, entry.manifest.digest) for m, entry in known if entry.status == "active"}
    if drop is not None:
        if drop not in active:
            raise NotKnown(f"{name} has no active {drop} protection")
        await order(client, name, "retire", active[drop][1], strongroom, wait=wait, deadline_hours=deadline_hours)
        return
    if not active:
        raise NotKnown(f"{name} has no active protection")
    like, _ = active.get(purpose) or next(iter(active.values()))
    # What is not said stays as it is.
    mode = mode or like.mode
    if mode == "sss" and threshold is None and like.mode != "sss":
        raise PlanInvalid("an sss protection needs a threshold", next_step="add --threshold M")
    same = (ShardRequest(keystore=shard.binding.keystore, custodians=shard.custodians) for shard in like.shards)
    asked = request(
        ReshardRequest,
        "reshard",
        name,
        mode=mode,
        threshold=1 if mode == "seal" else threshold or like.threshold,
        shards=shard_requests(keystore) or tuple(same),
        purpose=purpose,
        source=source,
        retention_hours=retention_hours,
        strongroom=strongroom,
        quorum_timeout_seconds=in_seconds(deadline_hours),
    )
    await run_ceremony(client, "ReshardWorkflow", asked, ReshardResult, say_result, wait=wait)
