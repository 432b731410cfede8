"""`masterkey seal`: the emergency stop, and its lifting."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from workers.cli.options import NameArgument, YesOption
from workers.cli.orders import order, say_acknowledged
from workers.cli.progress import as_json, watched
from workers.cli.requests import request, validated
from workers.cli.signing import sign
from workers.client import ceremonies
from workers.client.ssh import public_key_of
from workers.connection import connect
from workers.output import OPTIONS, answer, asynchronous, say
from workflows.contracts.messages.requests import SealRequest
from workflows.contracts.messages.results import SealResult
from workflows.contracts.trust.canonical import seconds
from workflows.contracts.trust.errors import ConfigurationInvalid
from workflows.contracts.trust.signatures import fingerprint
from workflows.contracts.trust.statement import render_stop
from workflows.contracts.trust.stop import Stop


@asynchronous
async def seal(
    name: NameArgument,
    key: Annotated[Path | None, typer.Option(help="Your SSH key, or its public half if an agent holds it.")] = None,
    reason: Annotated[str, typer.Option(help="Why, in one line; it is recorded.")] = "",
    yes: YesOption = False,
    lift: Annotated[
        bool, typer.Option("--lift", help="Lift all stops, once the governance quorum has approved.")
    ] = False,
    patience: Annotated[int, typer.Option(help="Seconds to wait for keystores and recipients.")] = 30,
    deadline_hours: Annotated[float, typer.Option(help="How long the quorum may take (--lift).")] = 72.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end (--lift).")] = True,
) -> None:
    """Emergency stop: nobody is served until a quorum lifts it. Exit 1 if somebody did not hear of it."""
    if lift:
        await order(await connect(), name, "lift", wait=wait, deadline_hours=deadline_hours)
        return
    if key is None:
        raise ConfigurationInvalid("a stop is signed", next_step="add --key FILE, a custodian's SSH key")
    stop = request(
        Stop,
        "seal",
        name,
        reason=reason,
        custodian=fingerprint(public_key_of(key)),
        issued=seconds(datetime.now(UTC)),
    )
    say(render_stop(stop.canonical(), OPTIONS.roster()))
    signed = sign(stop, key, yes=yes)
    fields = {"ceremony": stop.ceremony, "master_key": name, "stop": signed, "patience_seconds": patience}
    asked = validated(SealRequest, fields, "seal")
    result = await watched(await ceremonies.start(await connect(), "SealWorkflow", asked), SealResult)
    answer(as_json(result), lambda: _say(result))
    if any(not one.acknowledged for one in result.keystores) or any(one.state != "ended" for one in result.holders):
        raise typer.Exit(1)


def _say(result: SealResult) -> None:
    say(f"{result.master_key} is stopped by {result.ordered_by} ({result.stop})")
    say_acknowledged(result.keystores)
    for one in result.holders:
        detail = f": {one.detail}" if one.detail else ""
        say(f"  {one.workflow} {'has ended' if one.state == 'ended' else 'DID NOT END (' + one.state + ')'}{detail}")
    if not result.holders:
        say("  no recipient was known to hold it")
    say("a keystore that cannot be told, or an orchestrator that tells nobody, is stopped by disabling the KMS keys")
    say(f"to serve again: masterkey seal {result.master_key} --lift")
