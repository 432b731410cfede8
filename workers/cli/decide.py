"""`masterkey approve`, `reject` and `ceremony statement`: what a custodian reads, and signs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import typer
from temporalio.client import Client

from workers.cli.options import CeremonyArgument, KeyOption, YesOption
from workers.cli.protections import describe_stop, protections
from workers.cli.signing import sign
from workers.client import ceremonies, upkeep
from workers.client.ssh import public_key_of
from workers.connection import connect
from workers.output import OPTIONS, answer, asynchronous, say
from workflows.contracts.messages.report import ReportRequest
from workflows.contracts.trust.canonical import Signed, seconds
from workflows.contracts.trust.difference import difference
from workflows.contracts.trust.errors import ApprovalInvalid, ConfigurationInvalid, MasterKeyError
from workflows.contracts.trust.plan import Approval, Plan, parse_plan
from workflows.contracts.trust.service_errors import NotKnown
from workflows.contracts.trust.signatures import fingerprint
from workflows.contracts.trust.statement import render_approval

_PLANNING_SECONDS = 30
"""How long to wait for the plan of a ceremony that has just been started."""

_Decision = Literal["approve", "reject"]
_MaybeKey = Annotated[Path | None, typer.Option(help="Your SSH key, or its public half if an agent holds it.")]
_StatementOption = Annotated[Path | None, typer.Option(help="A statement that was signed elsewhere.")]
_SignatureOption = Annotated[Path | None, typer.Option(help="Its signature.")]


@asynchronous
async def statement(
    ceremony: CeremonyArgument,
    key: KeyOption,
    decision: Annotated[str, typer.Option(help="approve or reject.")] = "approve",
    out: Annotated[Path | None, typer.Option(help="Write the bytes to sign to this file.")] = None,
) -> None:
    """Show what would be signed, and write it for signing elsewhere.

    Sign the file with `ssh-keygen -Y sign -n masterkey-approval -f KEY FILE`, then submit it with
    `masterkey approve CEREMONY --statement FILE --signature FILE.sig`.
    """
    if decision not in ("approve", "reject"):
        raise ConfigurationInvalid("--decision is approve or reject")
    approval = await _statement(await connect(), ceremony, key, "approve" if decision == "approve" else "reject", None)
    document = approval.canonical()
    words = render_approval(document, OPTIONS.roster())
    if out is not None:
        out.write_bytes(document)

    def text() -> None:
        say(words)
        if out is not None:
            say(f"\nwritten to {out}; sign it with: ssh-keygen -Y sign -n masterkey-approval -f {key} {out}")

    answer({"statement": document.decode(), "words": words}, text)


@asynchronous
async def approve(
    ceremony: CeremonyArgument,
    key: _MaybeKey = None,
    yes: YesOption = False,
    hours: Annotated[float | None, typer.Option(help="How long your approval counts.")] = None,
    statement: _StatementOption = None,
    signature: _SignatureOption = None,
) -> None:
    """Sign, as a custodian, that a ceremony may go on."""
    await _decide("approve", ceremony, key, yes, hours, statement, signature)


@asynchronous
async def reject(
    ceremony: CeremonyArgument,
    key: _MaybeKey = None,
    yes: YesOption = False,
    statement: _StatementOption = None,
    signature: _SignatureOption = None,
) -> None:
    """Sign, as a custodian, that a ceremony shall not go on; this stands permanently."""
    await _decide("reject", ceremony, key, yes, None, statement, signature)


async def _decide(
    decision: _Decision,
    ceremony: str,
    key: Path | None,
    yes: bool,
    hours: float | None,
    statement_file: Path | None,
    signature_file: Path | None,
) -> None:
    if statement_file is not None and signature_file is not None:
        signed = _signed_elsewhere(decision, ceremony, statement_file, signature_file)
        client = await connect()
    elif key is not None and statement_file is None and signature_file is None:
        client = await connect()
        approval = await _statement(client, ceremony, key, decision, hours)
        say(render_approval(approval.canonical(), OPTIONS.roster()))
        await _say_difference(client, approval.plan)
        signed = sign(approval, key, yes=yes)
    else:
        raise ConfigurationInvalid("give --key, or --statement and --signature")
    outcome = await ceremonies.submit(client, ceremony, signed)

    def text() -> None:
        again = " (it was recorded before)" if outcome.state == "duplicate" else ""
        say(f"\nrecorded: {outcome.custodian} {outcome.decision}s {ceremony}{again}")
        say(f"still needed: {outcome.needed}" if outcome.needed else "the quorum stands")

    answer(outcome.model_dump(mode="json"), text)


def _signed_elsewhere(decision: _Decision, ceremony: str, statement_file: Path, signature_file: Path) -> Signed:
    document, signature = statement_file.read_bytes(), signature_file.read_text(encoding="ascii")
    said = Approval.parse(document)
    if (said.decision, said.plan.ceremony) != (decision, ceremony):
        raise ApprovalInvalid(f"{statement_file} says {said.decision} of {said.plan.ceremony}")
    say(render_approval(document, OPTIONS.roster()))
    return Signed(document=document.decode(), signature=signature)


async def _statement(client: Client, ceremony: str, key: Path, decision: _Decision, hours: float | None) -> Approval:
    custodian = fingerprint(public_key_of(key))
    found = await ceremonies.status(client, ceremony)
    deadline = time.monotonic() + _PLANNING_SECONDS
    while found.plan is None and found.phase in ("planning", "assessing") and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        found = await ceremonies.status(client, ceremony)
    if found.plan is None:
        raise NotKnown(
            f"ceremony {ceremony} has no plan to decide on ({found.phase})",
            next_step=f"look at `masterkey ceremony show {ceremony}`",
        )
    plan, now = parse_plan(found.plan), seconds(datetime.now(UTC))
    if plan.ceremony != ceremony:
        raise ApprovalInvalid("the plan that came is of another ceremony")
    return Approval(
        decision=decision,
        plan=plan,
        plan_digest=plan.digest,
        custodian=custodian,
        issued=now,
        expires=plan.expires if hours is None else min(plan.expires, now + timedelta(seconds=round(hours * 3600))),
    )


async def _say_difference(client: Client, plan: Plan) -> None:
    """What a plan changes, from manifests whose signatures and digests are checked here."""
    if plan.stops is not None:
        await _say_stops(client, plan.master_key, plan.stops)
    if plan.target is None or plan.source is None:
        return
    before = None
    if plan.target.predecessor is not None:
        try:
            found = {entry.manifest.digest: m for m, entry in await protections(client, plan.master_key)}
            before = found[plan.target.predecessor]
        except (MasterKeyError, KeyError):
            say("\n  WARNING: the protection that this replaces could not be shown: compare the digest above yourself")
            return
    say("\n  what changes:")
    for line in difference(before, plan.target):
        say(f"    {line}")


async def _say_stops(client: Client, master_key: str, digests: Sequence[str]) -> None:
    """Who ordered the stops that a plan lifts, and why."""
    roster = OPTIONS.roster().current
    report = await upkeep.report(client, ReportRequest(kind="status", master_key=master_key))
    known = {signed.digest: describe_stop(signed, roster) for signed in report.stops}
    say("\n  these stops are lifted:")
    for digest in digests:
        told = known.get(digest)
        words = (
            f"{told['ordered_by']}, {told['issued']}: {told['reason'] or 'no reason given'}"
            if told
            else "one that only keystores know"
        )
        say(f"    {words}  ({digest})")
