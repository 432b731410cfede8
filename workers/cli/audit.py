"""`masterkey audit ...`: what happened, and proof of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.table import Table
from rich.text import Text

from workers.cli.bundle import describe, own_ledger, say_verified, verified_file
from workers.cli.output import OPTIONS, answer, plain, run, say
from workflows.contracts.errors import BundleInvalid, CeremonyEnded, NotKnown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from temporalio.client import WorkflowHistory

    from activities.ledger.records import EventRecord
    from activities.ledger.verification import Verified
    from workers.audit import Run
    from workers.config import Configuration
    from workflows.contracts.roster import RosterChain

app = typer.Typer(help="What happened, and proof of it.", no_args_is_help=True)

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
    """The event log in words, with who signed; the hash chain is verified first."""
    from activities.ledger.narrative import tell

    found = _log(OPTIONS.load(), bundle)
    wanted = [
        event for event in found.events if name in (None, event.master_key) and ceremony in (None, event.ceremony)
    ]
    if not wanted and (name or ceremony):
        raise NotKnown(f"the event log says nothing of {ceremony or name}", next_step="see `masterkey audit log`")
    lines = [tell(event, found.chain) for event in wanted[-limit:]]

    def text() -> None:
        table = Table(box=None)
        for title in ("#", "time (UTC)", "ceremony", "signed by", "what happened"):
            table.add_column(title, overflow="fold", no_wrap=title in ("#", "time (UTC)"))
        for line in lines:
            event = line.event
            cells = (str(event.seq), f"{event.at:%Y-%m-%d %H:%M:%S}", event.ceremony or event.master_key)
            table.add_row(*(Text(plain(cell)) for cell in (*cells, ", ".join(line.who), line.words)))
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
def replay(
    ceremony: Annotated[str | None, typer.Argument(help="A ceremony, whose history Temporal has.")] = None,
    history: Annotated[
        list[Path] | None, typer.Option("--history", help="A history in a file instead, in Temporal's JSON form.")
    ] = None,
    bundle: BundleOption = None,
    out: Annotated[Path | None, typer.Option("--out", help="Keep the histories as files in this folder.")] = None,
) -> None:
    """Let this version's workflow code run over a ceremony's history; exit 1 if anything was done otherwise.

    Every command in the history must be issued again, to the byte, and the event log must say the same.
    """
    if (ceremony is None) == (not history):
        raise typer.BadParameter("either a ceremony or --history")
    agrees = run(_replay(ceremony, history or [], bundle, out))
    if not agrees:
        raise typer.Exit(1)


async def _replay(ceremony: str | None, files: list[Path], bundle: Path | None, out: Path | None) -> bool:
    from activities.ledger.evidence import read_evidence
    from workers.audit import audit_run, compare_with_log, read_history

    configuration = OPTIONS.load()
    histories = [read_history(path) for path in files] if ceremony is None else await _fetch(ceremony)
    runs = [await audit_run(one) for one in histories]
    kept = [str(_keep(out, one)) for one in runs] if out else []
    found = _log_if_any(configuration, bundle)
    differences: dict[str, list[str]] = {}
    people: dict[str, list[str]] = {}
    for one in sorted({entry.ceremony for entry in runs}):
        if found is None:
            continue
        events = [event for event in found.events if event.ceremony == one]
        if not events:
            raise NotKnown(
                f"the event log says nothing of {one}", next_step="name the bundle or configuration of its ledger"
            )
        evidence = read_evidence(events, found.chain)
        approvals = [entry for entry, _ in evidence.approvals.get(one, {}).values()]
        people[one] = [
            custodian.name if (custodian := version.custodian(entry.custodian)) else entry.custodian
            for entry in approvals
            for version in [found.chain.current]
        ]
        differences[one] = compare_with_log([entry for entry in runs if entry.ceremony == one], events)
    agrees = not any(entry.differences for entry in runs) and not any(differences.values())

    def text() -> None:
        for entry in runs:
            _say_run(entry)
        for one, wrong in differences.items():
            for line in wrong:
                say(f"DIFFERS: {line}")
            if not wrong:
                say(f"{one}: the event log says the same; approvals that verify: {', '.join(people[one]) or 'none'}")
        if found is None:
            say("note: compared with no event log: name a --bundle, or run it where the ledger is configured")
        for place in kept:
            say(f"wrote {place}")
        say("everything agrees" if agrees else "NOT everything agrees: keep Temporal's database and the ledger's")

    said = [
        {
            "workflow_id": entry.workflow_id,
            "run_id": entry.run_id,
            "workflow": entry.workflow,
            "ceremony": entry.ceremony,
            "events": entry.events,
            "differences": list(entry.differences),
        }
        for entry in runs
    ]
    log = None if found is None else {"head": found.head, "differences": differences, "approved_by": people}
    answer({"agrees": agrees, "runs": said, "log": log, "kept": kept}, text)
    return agrees


def _say_run(entry: Run) -> None:
    say(f"{entry.workflow} {entry.workflow_id}, run {entry.run_id}: {entry.events} events")
    for line in entry.differences:
        say(f"DIFFERS: {line}")
    if not entry.differences:
        say("  this version's code issues every command of it again, to the byte")


async def _fetch(ceremony: str) -> list[WorkflowHistory]:
    """The histories of all runs of a ceremony that have ended; refused while one is running."""
    from temporalio.client import WorkflowExecutionStatus

    from workers import ceremony_client
    from workers.connection import connect

    client = await connect()
    histories = []
    for entry in await ceremony_client.runs(client, ceremony):
        if entry.status == WorkflowExecutionStatus.RUNNING:
            raise CeremonyEnded(f"{ceremony} is running still", next_step="replay it once it has ended")
        histories.append(await client.get_workflow_handle(entry.id, run_id=entry.run_id).fetch_history())
    return histories


def _keep(folder: Path, entry: Run) -> Path:
    from activities.ledger.places import write_file
    from workflows.contracts.errors import ConfigurationInvalid

    path = folder / f"{entry.ceremony or 'workflow'}.{entry.run_id}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_file(path, entry.history.to_json().encode())
    except OSError as error:
        raise ConfigurationInvalid(f"cannot write {path}: {error.strerror}", next_step="name another folder") from None
    return path


def _log_if_any(configuration: Configuration, bundle: Path | None) -> _Log | None:
    return _log(configuration, bundle) if bundle is not None or configuration.ledger is not None else None


def _log(configuration: Configuration, bundle: Path | None) -> _Log:
    if bundle is not None:
        verified = verified_file(configuration, bundle)
        return _Log(verified.bundle.events, verified.chain, verified.terms.head.digest)
    ledger = own_ledger(configuration)
    head = ledger.verify_chain()
    events: list[EventRecord] = []
    while page := ledger.events(after=events[-1].seq if events else 0):
        events += page
    return _Log(events, configuration.roster_source().load(), head.digest)


def _verified_ledger(configuration: Configuration) -> Verified:
    """The whole ledger, verified as the bundle that it would make."""
    from activities.ledger.exporting import export
    from activities.ledger.verification import verify as check

    pinned = configuration.roster
    data = export(own_ledger(configuration), configuration.roster_source()).data
    return check(data, genesis=pinned.genesis, minimum_version=pinned.minimum_version)
