"""`masterkey bundle ...`: everything that is needed to rebuild the ledger, as one file."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from temporalio.client import WorkflowFailureError
from temporalio.service import RPCError

from activities.ledger.bundle.export import export as make
from activities.ledger.bundle.format import check_size
from activities.ledger.bundle.import_ import Served, agreed_roster, import_bundle
from activities.ledger.bundle.places import file_name, write_everywhere, write_file
from activities.ledger.bundle.verify import Verified
from activities.ledger.bundle.verify import verify as check
from activities.ledger.store.ledger import Ledger
from workers.cli.options import KeyOption, YesOption
from workers.cli.signing import sign
from workers.client import upkeep
from workers.client.ssh import public_key_of
from workers.config import Configuration
from workers.connection import connect
from workers.output import OPTIONS, answer, run, say, shown
from workflows.contracts.trust.canonical import Signed, digest, seconds
from workflows.contracts.trust.chain import RosterChain, RosterFile
from workflows.contracts.trust.errors import ApprovalInvalid, ConfigurationInvalid
from workflows.contracts.trust.import_approval import IMPORT_LIFETIME, ImportApproval, render_import
from workflows.contracts.trust.service_errors import NotKnown
from workflows.contracts.trust.signatures import fingerprint

app = typer.Typer(help="The ledger as one portable file.", no_args_is_help=True, add_completion=False)

FileArgument = Annotated[Path, typer.Argument(help="A bundle.")]


@app.command("export")
def export(
    file: Annotated[Path | None, typer.Argument(help="Where to write it; the configured places by default.")] = None,
) -> None:
    """Write the ledger's bundle; needs the ledger's database."""
    configuration = OPTIONS.load()
    exported = make(own_ledger(configuration), configuration.roster_source())
    if file is not None:
        _write(file, exported.data)
        places: tuple[str, ...] = (str(file),)
    elif configured := configuration.bundle_places():
        places = write_everywhere(configured, file_name(exported.head), exported.data)
    else:
        raise ConfigurationInvalid(
            "no place for bundles is configured", next_step="name a file, or set `directory` or `s3` in [bundle]"
        )
    told = {"places": list(places), "digest": digest(exported.data), "events": exported.head.events}

    def text() -> None:
        for place in places:
            say(f"wrote {place}")
        say(f"digest {told['digest']}; note it elsewhere, and compare it when you need the file")

    answer({**told, "head": exported.head.digest}, text)


@app.command("verify")
def verify(file: FileArgument) -> None:
    """Verify a bundle: every signature, hash and rule. Needs no ledger and no network, only the pinned roster."""
    verified = verified_file(OPTIONS.load(), file)
    answer(describe(verified), lambda: say_verified(str(file), verified))


@app.command("approve")
def approve(
    file: FileArgument,
    key: KeyOption,
    out: Annotated[Path | None, typer.Option(help="File for your approval; next to the bundle by default.")] = None,
    days: Annotated[float, typer.Option(help="How long it counts, 30 at most.")] = 7.0,
    yes: YesOption = False,
) -> None:
    """Sign, as a custodian, that this bundle may become the ledger where there is none."""
    configuration = OPTIONS.load()
    verified = verified_file(configuration, file)
    chain, now = agreed_roster(verified.chain, _own_roster(configuration)), seconds(datetime.now(UTC))
    document = ImportApproval(
        terms=verified.terms,
        roster=chain.digest,
        custodian=fingerprint(public_key_of(key)),
        issued=now,
        expires=now + min(timedelta(seconds=round(days * 86_400)), IMPORT_LIFETIME),
    )
    custodian = chain.current.custodian(document.custodian)
    if custodian is None:
        raise ApprovalInvalid(f"{key} is no custodian's key in the roster", next_step="see `masterkey roster show`")
    words = render_import(document.canonical(), chain, now)
    say(words)
    signed = sign(document, key, yes=yes, unchanged="nothing was written")
    place = out or file.with_name(f"{file.name}.{custodian.name}.approval")
    _write(place, signed.model_dump_json().encode())
    told = {"approval": str(place), "bundle": verified.terms.bundle, "words": words}
    answer(told, lambda: say(f"\nwrote {place}; whoever imports the bundle gives it with --approval"))


@app.command("import")
def import_(
    file: FileArgument,
    approval: Annotated[
        list[Path] | None, typer.Option(help="A custodian's approval; once for each, where the ledger is empty.")
    ] = None,
) -> None:
    """Fill an empty ledger from a bundle, or add to one what it lacks. Never overwrites."""
    configuration = OPTIONS.load()
    verified = verified_file(configuration, file)
    ours, approvals = _own_roster(configuration), [_approval(path) for path in approval or ()]
    ledger = own_ledger(configuration)
    served = run(_ask_keystores(verified))
    done = import_bundle(ledger, verified, roster=ours, approvals=approvals, served=served)
    if ours is None:
        _write_roster(configuration, verified)

    def text() -> None:
        if not done.added:
            say("the ledger holds all of this bundle already")
            return
        say(f"imported {done.added} events; the ledger's hash chain verifies")
        if done.approved_by:
            say(f"as approved by {', '.join(done.approved_by)}")
        for entry in verified.master_keys:
            say(f"{entry.name}: KCV {entry.kcv}, highest epoch {entry.epoch}")
        say("now drill every MasterKey: masterkey drill NAME")

    asked = served is not None
    told = {"added": done.added, "approved_by": list(done.approved_by), "keystores_asked": asked}
    answer({**describe(verified), **told}, text)


async def _ask_keystores(verified: Verified) -> Served | None:
    """What keystore workers say that they serve; None if nobody can be asked: in a disaster there may be nobody."""
    try:
        found = await upkeep.ask_keystores(await connect(), verified.chain)
    except (ConfigurationInvalid, WorkflowFailureError, RPCError) as error:
        reason = error.message if isinstance(error, ConfigurationInvalid) else "no orchestrator answers"
        say(f"note: keystores were not asked what they serve ({reason}): this may not be the newest bundle")
        return None
    if found.silent:
        say(f"note: {', '.join(found.silent)} did not say what they serve")
    return found.master_keys


def say_verified(what: str, verified: Verified) -> None:
    """Tell what verified, and what it holds."""
    say(f"{what} verifies; the digest of its bundle is {verified.terms.bundle}")
    say(f"last event {verified.terms.created:%Y-%m-%d %H:%M:%S} UTC, number {verified.terms.head.events}")
    say(f"head {verified.terms.head.digest}")
    say(f"roster version {verified.chain.current.number}, {verified.chain.digest}")
    for entry in verified.master_keys:
        stopped = f", STOPPED by {entry.stops} orders" if entry.stops else ""
        say(f"{entry.name}: KCV {entry.kcv}, highest epoch {entry.epoch}{stopped}")
        for one in entry.protections:
            say(f"  epoch {one.epoch} {one.status} {one.purpose}: {shown(one.mode)} {one.threshold} of {one.count}")
    for warning in verified.warnings:
        say(f"note: {warning}")


def own_ledger(configuration: Configuration) -> Ledger:
    """The configured ledger; raises ConfigurationInvalid if there is none, or not of this code's schema."""
    ledger = Ledger(configuration.ledger_url())
    ledger.check()
    return ledger


def _own_roster(configuration: Configuration) -> RosterChain | None:
    """This host's roster; None if the file is not there (any more)."""
    source = configuration.roster_source()
    return source.load() if source.file.exists() else None


def _write_roster(configuration: Configuration, verified: Verified) -> None:

    path = configuration.roster_source().file
    data = RosterFile(versions=verified.bundle.roster).model_dump_json(indent=1).encode() + b"\n"
    _write(path, data, "imported, but cannot write the roster")
    say(f"wrote {path}: roster version {verified.chain.current.number}, from the bundle")


def _write(path: Path, data: bytes, failed: str = "cannot write") -> None:
    try:
        write_file(path, data)
    except OSError as error:
        raise ConfigurationInvalid(f"{failed} {path}: {error.strerror}") from None


def verified_file(configuration: Configuration, file: Path) -> Verified:
    """A bundle, verified from the roster that is pinned here; raises NotKnown or BundleInvalid."""
    try:
        check_size(file.stat().st_size)
        data = file.read_bytes()
    except OSError as error:
        raise NotKnown(f"cannot read the bundle {file}: {error.strerror}", next_step="name another file") from None
    pinned = configuration.roster
    return check(data, genesis=pinned.genesis, minimum_version=pinned.minimum_version)


def _approval(path: Path) -> Signed:

    try:
        return Signed.model_validate_json(path.read_bytes())
    except OSError as error:
        raise NotKnown(f"cannot read the approval {path}: {error.strerror}", next_step="name another file") from None
    except ValidationError:
        raise ApprovalInvalid(f"{path} is no approval", next_step="make one: masterkey bundle approve") from None


def describe(verified: Verified) -> dict[str, Any]:
    """What verified, as JSON."""
    terms = verified.terms
    return {
        "bundle": terms.bundle,
        "events": terms.head.events,
        "head": terms.head.digest,
        "created": terms.created.isoformat(),
        "roster_version": verified.chain.current.number,
        "master_keys": [asdict(entry) for entry in verified.master_keys],
        "warnings": list(verified.warnings),
    }
