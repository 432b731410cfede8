"""`masterkey audit ...`: what happened, and proof of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.table import Table
from rich.text import Text
from temporalio.client import WorkflowExecutionStatus, WorkflowHistory
from temporalio.service import RPCError

from activities.ledger.bundle.export import export
from activities.ledger.bundle.places import write_file
from activities.ledger.bundle.verify import Verified
from activities.ledger.bundle.verify import verify as check
from activities.ledger.log.describe import describe_event, name_of
from activities.ledger.log.events import PlanProposed
from activities.ledger.log.records import EventRecord
from activities.ledger.log.signed import verify_signatures
from workers.audit.compare import Compared, Run, audit_run, compare_with_log
from workers.audit.histories import read_history
from workers.cli.bundle import describe, own_ledger, say_verified, verified_file
from workers.client import upkeep
from workers.config import Configuration
from workers.connection import connect
from workers.output import OPTIONS, answer, asynchronous, plain, say
from workflows.contracts.trust.canonical import digest
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import ConfigurationInvalid
from workflows.contracts.trust.service_errors import BundleInvalid, CeremonyEnded, NotKnown

app = typer.Typer(help="What happened, and proof of it.", no_args_is_help=True, add_completion=False)

BundleOption = Annotated[
    Path | None, typer.Option("--bundle", help="Read this bundle instead of the configured ledger.")
]
CeremonyOption = Annotated[str | None, typer.Option("--ceremony", help="Of this ceremony only.")]


class _Log(NamedTuple):
    """A verified event log."""

    events: Sequence[EventRecord]
    chain: RosterChain
    head: str


@app.command("log")
def log(
    name: Annotated[str | None, typer.Argument(help="One MasterKey; all by default.")] = None,
    ceremony: CeremonyOption = None,
    bundle: BundleOption = None,
    limit: Annotated[int, typer.Option(help="The newest so many at most.", min=1)] = 200,
) -> None:
    """The event log in words, with who signed.

    A bundle is verified as a whole first; of a ledger, the hash chain, and each signature that a name stands for.
    """
    found = _log(OPTIONS.load(), bundle)
    wanted = [
        event for event in found.events if name in (None, event.master_key) and ceremony in (None, event.ceremony)
    ]
    if not wanted and (name or ceremony):
        raise NotKnown(f"the event log says nothing of {ceremony or name}", next_step="see `masterkey audit log`")
    lines = [describe_event(event, found.chain) for event in wanted[-limit:]]

    def text() -> None:
        table = Table(box=None)
        for title in ("#", "time (UTC)", "ceremony", "signed by", "what happened"):
            table.add_column(title, overflow="fold", no_wrap=title in ("#", "time (UTC)"))
        for line in lines:
            event = line.event
            cells = (str(event.seq), f"{event.at:%Y-%m-%d %H:%M:%S}", event.ceremony or event.master_key)
            table.add_row(*(Text(plain(_line(cell))) for cell in (*cells, ", ".join(line.who), line.words)))
        OPTIONS.console.print(table)
        if len(wanted) > len(lines):
            say(f"{len(wanted) - len(lines)} older ones are not shown: raise --limit")
        say(f"{len(found.events)} events in all, chain verified, head {found.head}")

    said = [
        {**line.event.model_dump(mode="json", exclude={"previous"}), "signed_by": list(line.who), "words": line.words}
        for line in lines
    ]
    answer({"events": said, "shown": len(said), "matching": len(wanted), "head": found.head}, text)


@app.command("verify")
def verify(
    bundle: BundleOption = None,
    head: Annotated[
        list[str] | None, typer.Option("--head", help="A head that was noted elsewhere; the log must go on from it.")
    ] = None,
) -> None:
    """Verify the whole ledger or a bundle: every signature, hash, status, and who stood behind what was done."""
    configuration = OPTIONS.load()
    verified = verified_file(configuration, bundle) if bundle else _verified_ledger(configuration)
    by_digest = {event.digest: event.seq for event in verified.bundle.events}
    for one in head or ():
        if one not in by_digest:
            raise BundleInvalid(
                f"no event of this log has the digest {one}, which was noted: it was rewritten, or is another's",
                next_step="keep the database as evidence, and go on from a bundle that fits what was noted",
            )
    noted = {one: by_digest[one] for one in head or ()}

    def text() -> None:
        say_verified(str(bundle or "the ledger"), verified)
        for one, number in noted.items():
            say(f"it goes on from the head that was noted after event {number}: {one}")
        if not noted:
            say("note: compare the head with one that was noted elsewhere: --head DIGEST")

    answer({**describe(verified), "noted": noted}, text)


@app.command("replay")
@asynchronous
async def replay(
    ceremony: Annotated[str | None, typer.Argument(help="A ceremony, whose histories Temporal has.")] = None,
    history: Annotated[
        list[Path] | None,
        typer.Option("--history", help="A history in a file instead, in Temporal's JSON form; all that there are."),
    ] = None,
    bundle: BundleOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Keep the histories as files in this folder.")] = None,
) -> None:
    """Let this version's workflow code run over a ceremony's history; exit 1 if anything was done otherwise.

    The code must issue every command of the history again, with the same input, time-outs and retries, and the event
    log must hold what the workflow recorded, and nothing else.
    """
    if (ceremony is None) == (not history):
        raise typer.BadParameter("either a ceremony or --history")
    if not await _replay(ceremony, history or [], bundle, out):
        raise typer.Exit(1)


@dataclass
class _Audit:
    """What was found of the ceremonies of some histories."""

    runs: list[Run]
    log: _Log | None
    compared: dict[str, Compared]
    approved: dict[str, list[str]]
    kept: list[Path]

    @property
    def differences(self) -> list[str]:
        """Everything that does not agree."""
        found = [line for run in self.runs for line in run.differences]
        return found + [line for one in self.compared.values() for line in one.differences]


async def _replay(ceremony: str | None, files: list[Path], bundle: Path | None, out: Path | None) -> bool:
    configuration = OPTIONS.load()
    if ceremony is None:
        runs = [await audit_run(read_history(path)) for path in files]
    else:
        found = await _fetch(ceremony)
        runs = [await audit_run(one, running=running, ceremony=ceremony) for one, running in found]
    log = _log(configuration, bundle) if bundle is not None or configuration.ledger is not None else None
    audit = _Audit(runs, log, {}, {}, [_keep(out, one) for one in runs] if out else [])
    if log is not None:
        for one in sorted({entry.ceremony for entry in runs} - {""}):
            events = [event for event in log.events if event.ceremony == one]
            audit.compared[one] = compare_with_log([entry for entry in runs if entry.ceremony == one], events)
            audit.approved[one] = _approved(events, log.chain)
    agrees = not audit.differences
    told = {
        "ok": agrees,
        "agrees": agrees,
        "runs": [
            {
                "workflow_id": entry.history.workflow_id,
                "workflow": entry.workflow,
                "ceremony": entry.ceremony,
                "events": len(entry.history.events),
                "running": entry.running,
                "differences": list(entry.differences),
            }
            for entry in runs
        ],
        "log": None if log is None else {"head": log.head, **_told(audit)},
        "kept": [str(path) for path in audit.kept],
    }
    answer(told, lambda: _say(audit))
    if not agrees:
        message = f"{len(audit.differences)} differences between history, code and event log"
        OPTIONS.errors.print(f"masterkey: {message}; keep both databases as evidence, see the runbook `audit`")
    return agrees


def _told(audit: _Audit) -> dict[str, Any]:
    return {
        "differences": {name: list(one.differences) for name, one in audit.compared.items()},
        "notes": {name: list(one.notes) for name, one in audit.compared.items()},
        "approved_by": audit.approved,
    }


def _say(audit: _Audit) -> None:
    """The findings; what is somebody else's text stands in one line each."""
    for entry in audit.runs:
        about = f"of {entry.ceremony}" if entry.ceremony else "which is no ceremony"
        running = ", which is running still" if entry.running else ""
        say(_line(f"{entry.workflow} {about}{running}: {len(entry.history.events)} events"))
        for line in entry.differences:
            say(_line(f"  DIFFERS: {line}"))
        if not entry.differences:
            say("  this version's code issues every command of it again")
    for name, one in audit.compared.items():
        for line in one.differences:
            say(_line(f"  DIFFERS: {line}"))
        for line in one.notes:
            say(_line(f"  note: {line}"))
        if not one.differences:
            say(f"{name}: the event log holds what was recorded, and nothing else")
        if approved := audit.approved[name]:
            say(_line(f"{name}: approvals of its last plan that verify: {', '.join(approved)}"))
    for path in audit.kept:
        say(f"wrote {path}")
    if audit.log is None:
        say("compared with no event log: name a --bundle, or run it where the ledger is configured")
    if not audit.differences:
        say("everything agrees" if audit.log else "the histories agree with the code")


def _line(text: str) -> str:
    return text.replace("\n", "\\n")


async def _fetch(ceremony: str) -> list[tuple[WorkflowHistory, bool]]:
    """The histories of a ceremony that has ended, and of who holds what it released; and whether each runs still."""
    client = await connect()
    try:
        found = []
        runs = await upkeep.runs(client, ceremony)
        if any(entry.status == WorkflowExecutionStatus.RUNNING for entry in runs):
            raise CeremonyEnded(f"{ceremony} is running still", next_step="replay it once it has ended")
        for entry in [*runs, *await upkeep.leases(client, ceremony)]:
            history = await client.get_workflow_handle(entry.id, run_id=entry.run_id).fetch_history()
            found.append((history, entry.status == WorkflowExecutionStatus.RUNNING))
    except RPCError as error:
        raise ConfigurationInvalid(
            f"Temporal does not give the histories of {ceremony}: {error.status.name}",
            next_step="see that you may read this namespace, and try again",
        ) from None
    return found


def _approved(events: Sequence[EventRecord], chain: RosterChain) -> list[str]:
    """Who approved the plan that was put last, each signature verified."""
    plans = [event.key.removeprefix(PlanProposed.key_of() + ":") for event in events if event.type == PlanProposed.TYPE]
    if not plans:
        return []
    try:
        signatures = verify_signatures(events, chain)
    except BundleInvalid as error:
        return [f"UNVERIFIED ({error.message})"]
    given = signatures.approvals.get(events[0].ceremony, {}).values()
    return [name_of(approval.custodian, chain) for approval, _ in given if approval.plan_digest == plans[-1]]


def _keep(folder: Path, entry: Run) -> Path:

    text = entry.history.to_json().encode()
    path = folder / f"{entry.ceremony or 'workflow'}.{entry.workflow[:40]}.{digest(text)[7:19]}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, text)
    except OSError as error:
        raise ConfigurationInvalid(f"cannot write {path}: {error.strerror}", next_step="name another folder") from None
    return path


def _log(configuration: Configuration, bundle: Path | None) -> _Log:
    if bundle is not None:
        verified = verified_file(configuration, bundle)
        return _Log(verified.bundle.events, verified.chain, verified.terms.head.digest)
    events, head = own_ledger(configuration).verified_events()
    return _Log(events, configuration.roster_source().load(), head.digest)


def _verified_ledger(configuration: Configuration) -> Verified:
    """The whole ledger, verified as the bundle that it would make."""
    pinned = configuration.roster
    data = export(own_ledger(configuration), configuration.roster_source()).data
    return check(data, genesis=pinned.genesis, minimum_version=pinned.minimum_version)
