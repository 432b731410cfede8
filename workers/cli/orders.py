"""Orders of a governance quorum: `masterkey destroy`, and what lifting a stop and retiring a protection share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import typer
from temporalio.client import Client

from workers.cli.options import DeadlineOption, NameArgument, StrongroomOption, WaitOption
from workers.cli.progress import run_ceremony
from workers.cli.protections import key_version, protections
from workers.cli.requests import in_seconds, request
from workers.connection import connect
from workers.output import asynchronous, say
from workflows.contracts.messages.requests import OrderRequest
from workflows.contracts.messages.results import KeystoreTold, OrderResult
from workflows.contracts.trust.errors import PlanInvalid
from workflows.contracts.trust.service_errors import NotKnown

_DONE = {"lift": "stops lifted", "retire": "protection retired", "destroy": "ciphertexts destroyed"}


@asynchronous
async def destroy(
    name: NameArgument,
    epoch: Annotated[int, typer.Option(help="Epoch of the retired protection; see `masterkey status`.")],
    strongroom: StrongroomOption = "",
    deadline_hours: DeadlineOption = 72.0,
    wait: WaitOption = True,
) -> None:
    """Destroy the ciphertexts of a retired protection, once the governance quorum has approved."""
    client = await connect()
    found = {manifest.epoch: entry for manifest, entry in await protections(client, name)}.get(epoch)
    if found is None:
        raise NotKnown(f"{name} has no protection of epoch {epoch}")
    if found.status != "retired":
        raise PlanInvalid(
            f"the protection of epoch {epoch} is {found.status}", next_step="only a retired one is destroyed"
        )
    await order(client, name, "destroy", found.manifest.digest, strongroom, wait=wait, deadline_hours=deadline_hours)


async def order(
    client: Client,
    name: str,
    action: Literal["lift", "retire", "destroy"],
    manifest: str | None = None,
    strongroom: str = "",
    *,
    wait: bool,
    deadline_hours: float,
) -> None:
    """Start an order, wait for its quorum, and say who has acknowledged it."""
    asked = request(
        OrderRequest,
        action,
        name,
        action=action,
        manifest=manifest,
        strongroom=strongroom,
        quorum_timeout_seconds=in_seconds(deadline_hours),
    )
    await run_ceremony(client, "OrderWorkflow", asked, OrderResult, _say, wait=wait)


def _say(result: OrderResult) -> None:
    say(f"{result.master_key}: {_DONE[result.action]}. Approved by {', '.join(result.approved_by)}.")
    say_acknowledged(result.keystores)
    if result.action == "destroy":
        say("copies elsewhere (bundles, backups) still open for whoever controls these key versions; destroy them too:")
        for old in result.old_keys:
            say(f"  {key_version(old, 'DO NOT: in use by what is in force; rotate this key and reshard first')}")


def say_acknowledged(keystores: Sequence[KeystoreTold]) -> None:
    """Which keystore workers have acknowledged an order, and what to do about those that have not."""
    acknowledged = [one.keystore for one in keystores if one.acknowledged]
    say(f"  acknowledged by {', '.join(acknowledged) or 'no keystore'}")
    for one in keystores:
        if not one.acknowledged:
            say(f"  NOT ACKNOWLEDGED by {one.keystore}: {one.error}: {one.detail}")
            for key in one.keys:
                say(f"    disable by hand: {key}")
