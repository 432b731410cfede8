"""`masterkey approve`, `reject` and `ceremony statement`: what a custodian reads, and signs."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from workers.output import OPTIONS, answer, run, say
from workflows.contracts.trust.errors import ApprovalInvalid, ConfigurationInvalid, MasterKeyError, NotKnown

_PLANNING_SECONDS = 30
"""How long to wait for the plan of a ceremony that has just been started."""

KeyOption = Annotated[Path, typer.Option(help="Your SSH private key, or its public half if an agent holds it.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Sign without asking.")]


def statement(
    ceremony: Annotated[str, typer.Argument(help="Id of a ceremony.")],
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
    document = run(_statement(ceremony, key, "approve" if decision == "approve" else "reject", None))
    words = _render(document)
    if out is not None:
        out.write_bytes(document)

    def text() -> None:
        say(words)
        if out is not None:
            say(f"\nwritten to {out}; sign it with: ssh-keygen -Y sign -n masterkey-approval -f {key} {out}")

    answer({"statement": document.decode(), "words": words}, text)


def approve(
    ceremony: Annotated[str, typer.Argument(help="Id of a ceremony.")],
    key: Annotated[Path | None, typer.Option(help="Your SSH key, or its public half if an agent holds it.")] = None,
    yes: YesOption = False,
    hours: Annotated[float | None, typer.Option(help="How long your approval counts.")] = None,
    statement: Annotated[Path | None, typer.Option(help="A statement that was signed elsewhere.")] = None,
    signature: Annotated[Path | None, typer.Option(help="Its signature.")] = None,
) -> None:
    """Sign, as a custodian, that a ceremony may go on."""
    _decide("approve", ceremony, key, yes, hours, statement, signature)


def reject(
    ceremony: Annotated[str, typer.Argument(help="Id of a ceremony.")],
    key: Annotated[Path | None, typer.Option(help="Your SSH key, or its public half if an agent holds it.")] = None,
    yes: YesOption = False,
    statement: Annotated[Path | None, typer.Option(help="A statement that was signed elsewhere.")] = None,
    signature: Annotated[Path | None, typer.Option(help="Its signature.")] = None,
) -> None:
    """Sign, as a custodian, that a ceremony shall not go on; this stands for good."""
    _decide("reject", ceremony, key, yes, None, statement, signature)


def _decide(
    decision: Literal["approve", "reject"],
    ceremony: str,
    key: Path | None,
    yes: bool,
    hours: float | None,
    statement_file: Path | None,
    signature_file: Path | None,
) -> None:
    from workers.client import ceremonies as ceremony_client
    from workers.client.ssh import sign_with_key
    from workers.connection import connect
    from workflows.contracts.trust.canonical import Signed
    from workflows.contracts.trust.plan import Approval

    if statement_file is not None and signature_file is not None:
        document, signature = statement_file.read_bytes(), signature_file.read_text(encoding="ascii")
        said = Approval.parse(document)
        if (said.decision, said.plan.ceremony) != (decision, ceremony):
            raise ApprovalInvalid(f"{statement_file} says {said.decision} of {said.plan.ceremony}")
        say(_render(document))
    elif key is not None and statement_file is None and signature_file is None:
        document = run(_statement(ceremony, key, decision, hours))
        say(_render(document))
        run(_say_difference(document))
        if not yes:
            if not sys.stdin.isatty():
                raise ConfigurationInvalid("nobody can be asked here", next_step="add --yes to sign without asking")
            if not typer.confirm(f"\nSign this with {key}?", err=True):
                raise ApprovalInvalid("not signed", next_step="nothing was sent")
        signature = sign_with_key(document, key, Approval.TYPE)
    else:
        raise ConfigurationInvalid("give --key, or --statement and --signature")
    signed = Signed(document=document.decode(), signature=signature)

    async def send() -> Any:
        return await ceremony_client.submit(await connect(), ceremony, signed)

    outcome = run(send())

    def text() -> None:
        again = " (it was recorded before)" if outcome.state == "duplicate" else ""
        say(f"\nrecorded: {outcome.custodian} {outcome.decision}s {ceremony}{again}")
        say(f"still needed: {outcome.needed}" if outcome.needed else "the quorum stands")

    answer(outcome.model_dump(mode="json"), text)


async def _statement(ceremony: str, key: Path, decision: Literal["approve", "reject"], hours: float | None) -> bytes:
    from workers.client import ceremonies as ceremony_client
    from workers.client.ssh import public_key_of
    from workers.connection import connect
    from workflows.contracts.trust.canonical import seconds
    from workflows.contracts.trust.plan import Approval, parse_plan
    from workflows.contracts.trust.signatures import fingerprint

    public_key = public_key_of(key)
    client = await connect()
    found = await ceremony_client.status(client, ceremony)
    deadline = time.monotonic() + _PLANNING_SECONDS
    while found.plan is None and found.phase in ("planning", "assessing") and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        found = await ceremony_client.status(client, ceremony)
    if found.plan is None:
        raise NotKnown(
            f"ceremony {ceremony} has no plan to decide on ({found.phase})",
            next_step=f"look at `masterkey ceremony show {ceremony}`",
        )
    plan, now = parse_plan(found.plan), seconds(datetime.now(UTC))
    if plan.ceremony != ceremony:
        raise ApprovalInvalid("the plan that came is of another ceremony")
    expires = plan.expires if hours is None else min(plan.expires, now + timedelta(seconds=round(hours * 3600)))
    return Approval(
        decision=decision,
        plan=plan,
        plan_digest=plan.digest,
        custodian=fingerprint(public_key),
        issued=now,
        expires=expires,
    ).canonical()


async def _say_difference(document: bytes) -> None:
    """What a plan changes, from manifests whose signatures and digests are checked here."""
    from workers.cli.topology import manifests
    from workers.connection import connect
    from workflows.contracts.trust.difference import difference
    from workflows.contracts.trust.plan import Approval

    plan = Approval.parse(document).plan
    if plan.stops is not None:
        await _say_stops(plan.master_key, plan.stops)
    if plan.target is None or plan.source is None:
        return
    before = None
    if plan.target.predecessor is not None:
        try:
            found = {digest: m for m, digest, _ in await manifests(await connect(), plan.master_key)}
            before = found[plan.target.predecessor]
        except (MasterKeyError, KeyError):
            say("\n  WARNING: the protection that this replaces could not be shown: compare the digest above yourself")
            return
    say("\n  what changes:")
    for line in difference(before, plan.target):
        say(f"    {line}")


async def _say_stops(master_key: str, digests: Sequence[str]) -> None:
    """Who ordered the stops that a plan lifts, and why."""
    from workers.cli.ceremonies import describe_stop
    from workers.client import ceremonies as ceremony_client
    from workers.connection import connect
    from workflows.contracts.messages.report import ReportRequest

    roster = OPTIONS.load().roster_source().load().current
    report = await ceremony_client.report(await connect(), ReportRequest(kind="status", master_key=master_key))
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


def _render(document: bytes) -> str:
    from workflows.contracts.trust.statement import render_approval

    return render_approval(document, OPTIONS.load().roster_source().load())
