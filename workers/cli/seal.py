"""`masterkey seal`: the emergency stop, and its lifting."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workers.cli.progress import live
from workers.cli.reshard import order, say_told
from workers.cli.topology import validated
from workers.output import OPTIONS, answer, run, say
from workflows.contracts.trust.errors import ApprovalInvalid, ConfigurationInvalid

if TYPE_CHECKING:
    from workflows.contracts.messages.results import SealResult
    from workflows.contracts.trust.canonical import Signed
    from workflows.contracts.trust.stop import Stop


def seal(
    name: Annotated[str, typer.Argument(help="Name of the MasterKey.")],
    key: Annotated[Path | None, typer.Option(help="Your SSH key, or its public half if an agent holds it.")] = None,
    reason: Annotated[str, typer.Option(help="Why, in one line; it is recorded.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Sign without asking.")] = False,
    lift: Annotated[
        bool, typer.Option("--lift", help="Lift all stops, once the governance quorum has approved.")
    ] = False,
    patience: Annotated[int, typer.Option(help="Seconds to wait for keystores and recipients.")] = 30,
    deadline_hours: Annotated[float, typer.Option(help="How long the quorum may take (--lift).")] = 72.0,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end (--lift).")] = True,
) -> None:
    """Emergency stop: nobody is served until a quorum lifts it. Exit 1 if somebody did not hear of it."""
    if lift:
        run(order(name, "lift", None, "", deadline_hours, wait))
        return
    if key is None:
        raise ConfigurationInvalid("a stop is signed", next_step="add --key FILE, a custodian's SSH key")
    signed = _sign(name, key, reason, yes)
    if not run(_seal(name, signed, patience)):
        raise typer.Exit(1)


def _sign(name: str, key: Path, reason: str, yes: bool) -> tuple[Stop, Signed]:
    from workers.client.ssh import public_key_of, sign_with_key
    from workflows.contracts.names import new_ceremony_id
    from workflows.contracts.trust.canonical import Signed, seconds
    from workflows.contracts.trust.signatures import fingerprint
    from workflows.contracts.trust.statement import render_stop
    from workflows.contracts.trust.stop import Stop

    fields = {
        "master_key": name,
        "ceremony": new_ceremony_id(name, "seal"),
        "reason": reason,
        "custodian": fingerprint(public_key_of(key)),
        "issued": seconds(datetime.now(UTC)),
    }
    stop = validated(Stop, fields, "seal")  # type: ignore[type-var]
    document = stop.canonical()
    say(render_stop(document, OPTIONS.load().roster_source().load()))
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigurationInvalid("nobody can be asked here", next_step="add --yes to sign without asking")
        if not typer.confirm(f"\nSign this with {key}?", err=True):
            raise ApprovalInvalid("not signed", next_step="nothing was sent")
    return stop, Signed(document=document.decode(), signature=sign_with_key(document, key, Stop.TYPE))


async def _seal(name: str, signed: tuple[Stop, Signed], patience: int) -> bool:
    from workers.client import ceremonies as ceremony_client
    from workers.connection import connect
    from workflows.contracts.messages.requests import SealRequest
    from workflows.contracts.messages.results import SealResult

    stop, order_ = signed
    fields = {"ceremony": stop.ceremony, "master_key": name, "stop": order_, "patience_seconds": patience}
    request = validated(SealRequest, fields, "seal")
    handle = await ceremony_client.start(await connect(), "SealWorkflow", request)
    with live() as show:
        result = await ceremony_client.watch(handle, SealResult, show)
    answer(result.model_dump(mode="json"), lambda: _say(result))
    heard = all(one.acknowledged for one in result.keystores)
    return heard and all(one.state == "ended" for one in result.holders)


def _say(result: SealResult) -> None:
    say(f"{result.master_key} is stopped by {result.ordered_by} ({result.stop})")
    say_told(result.keystores)
    for one in result.holders:
        detail = f": {one.detail}" if one.detail else ""
        say(f"  {one.workflow} {'has ended' if one.state == 'ended' else 'DID NOT END (' + one.state + ')'}{detail}")
    if not result.holders:
        say("  no recipient was known to hold it")
    say("a keystore that cannot be told, or an orchestrator that tells nobody, is stopped by disabling the KMS keys")
    say(f"to serve again: masterkey seal {result.master_key} --lift")
