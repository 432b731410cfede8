"""`masterkey roster ...`: who everyone is, described in TOML, signed by the custodians, pinned by digest.

A description lists the tables `[[custodians]]`, `[[recipients]]`, `[[keystores]]`, `[[strongrooms]]`,
`[[governance]]` and `[change]`; a key is given as `public_key` (an OpenSSH line) or `public_key_file`.
"""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from workers.cli.options import KeyOption, YesOption
from workers.cli.signing import confirm
from workers.client.ssh import sign_with_key
from workers.output import OPTIONS, answer, say
from workflows.contracts.trust.canonical import seconds
from workflows.contracts.trust.chain import (
    RosterChain,
    RosterFile,
    RosterVersion,
    parse_roster_file,
    signers_of,
    verify_chain,
)
from workflows.contracts.trust.errors import ConfigurationInvalid, RosterInvalid
from workflows.contracts.trust.roster import Roster

app = typer.Typer(help="Who everyone is: the signed, versioned roster.", no_args_is_help=True, add_completion=False)


@app.command("init")
def init(
    description: Annotated[Path, typer.Argument(help="TOML description of everyone.")],
    out: Annotated[Path, typer.Option(help="The roster file to write; it may not exist.")] = Path("roster.json"),
) -> None:
    """Make the first version, and print the digest that every configuration pins."""
    roster = _describe(description, number=1, previous=None)
    if out.exists():
        raise ConfigurationInvalid(f"{out} exists already", next_step="change it with `masterkey roster propose`")
    _write(out, RosterFile(versions=(RosterVersion(document=roster.canonical().decode()),)))

    def text() -> None:
        say(f"wrote {out}: version 1")
        say(f'pin it in every masterkey.toml:  [roster] genesis = "{roster.digest}"')
        say("compare this digest with your colleagues over another channel")

    answer({"file": str(out), "number": 1, "digest": roster.digest}, text)


@app.command("propose")
def propose(description: Annotated[Path, typer.Argument(help="TOML description of everyone, as it shall be.")]) -> None:
    """Propose the next version; it counts once the change quorum has signed it."""
    path, file, chain = _load()
    roster = _describe(description, number=chain.current.number + 1, previous=chain.digest)
    _write(path, file.model_copy(update={"proposed": RosterVersion(document=roster.canonical().decode())}))
    quorum = chain.current.change

    def text() -> None:
        for line in _difference(chain.current, roster):
            say(line)
        say(f"proposed version {roster.number} ({roster.digest}); {quorum.quorum} of {', '.join(quorum.custodians)}")
        say("now run: masterkey roster sign --key FILE")

    answer({"number": roster.number, "digest": roster.digest, "signed_by": [], "needed": quorum.quorum}, text)


@app.command("sign")
def sign(
    key: KeyOption,
    yes: YesOption = False,
) -> None:
    """Sign the proposed version, as a custodian of the version before."""
    path, file, chain = _load()
    if file.proposed is None:
        raise RosterInvalid("no new roster version is proposed", next_step="propose one: masterkey roster propose")
    document = file.proposed.document.encode()
    proposed = Roster.parse(document)
    for line in _difference(chain.current, proposed):
        say(line)
    confirm(f"Sign version {proposed.number} ({proposed.digest})?", yes=yes, unchanged="nothing was changed")
    signature = sign_with_key(document, key, Roster.TYPE)
    version = RosterVersion(document=file.proposed.document, signatures=(*file.proposed.signatures, signature))
    signers = signers_of(version, chain.current.change, chain.current)
    done = len(signers) >= chain.current.change.quorum
    update: dict[str, Any] = (
        {"proposed": None, "versions": (*file.versions, version)} if done else {"proposed": version}
    )
    changed = file.model_copy(update=update)
    if done:
        verify_chain(changed, genesis=chain.digests[0])
    elif len(signers) == len(signers_of(file.proposed, chain.current.change, chain.current)):
        raise RosterInvalid(
            "your signature does not count: you signed before, or are not in the change quorum",
            next_step="see `masterkey roster show`",
        )
    _write(path, changed)

    def text() -> None:
        needed = chain.current.change.quorum
        state = f"version {proposed.number} is in force" if done else f"{len(signers)} of {needed} signatures"
        say(f"signed by {', '.join(signers)}: {state}")
        if done:
            say("now copy the roster file to every host")

    answer({"number": proposed.number, "digest": proposed.digest, "signed_by": signers, "in_force": done}, text)


@app.command("show")
def show() -> None:
    """Show the version in force."""
    _, _, chain = _load()
    roster = chain.current

    def text() -> None:
        say(f"roster version {roster.number}, {chain.digest}")
        table = Table(box=None)
        for title in ("role", "name", "key", "what for"):
            table.add_column(title, no_wrap=title != "what for", overflow="fold")
        for custodian in roster.custodians:
            table.add_row("custodian", custodian.name, custodian.fingerprint, "")
        for recipient in roster.recipients:
            table.add_row("recipient", recipient.name, recipient.fingerprint, ", ".join(recipient.master_keys))
        for keystore in roster.keystores:
            table.add_row("keystore", keystore.name, keystore.fingerprint, " or ".join(keystore.custodians))
        for strongroom in roster.strongrooms:
            table.add_row("strongroom", strongroom.name, strongroom.fingerprint, "")
        OPTIONS.console.print(table)
        for entry in roster.governance:
            say(
                f"governance of {entry.master_key}: {entry.quorum} of {', '.join(entry.custodians)}; "
                f"threshold at least {entry.minimum_threshold}"
            )
        say(f"roster changes: {roster.change.quorum} of {', '.join(roster.change.custodians)}")

    answer({"digest": chain.digest, "roster": roster.model_dump(mode="json")}, text)


@app.command("verify")
def verify() -> None:
    """Verify every version from the pinned digest."""
    _, file, chain = _load()
    versions = [
        {"number": roster.number, "digest": digest, "signatures": len(entry.signatures)}
        for roster, digest, entry in zip(chain.versions, chain.digests, file.versions, strict=True)
    ]

    def text() -> None:
        for version in versions:
            say(f"version {version['number']}: {version['digest']}, {version['signatures']} signatures")
        say("the chain verifies from the pinned digest")

    answer({"versions": versions, "genesis": chain.digests[0]}, text)


def _load() -> tuple[Path, RosterFile, RosterChain]:
    source = OPTIONS.load().roster_source()
    chain = source.load()
    return source.file, parse_roster_file(source.file.read_text(encoding="utf-8")), chain


def _describe(description: Path, *, number: int, previous: str | None) -> Roster:
    try:
        table = tomllib.loads(description.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationInvalid(f"cannot read {description}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationInvalid(f"{description} is not TOML: {error}") from None
    for entries in table.values():
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and "public_key_file" in entry:
                path = description.parent / str(entry.pop("public_key_file"))
                try:
                    entry["public_key"] = path.read_text(encoding="utf-8").strip()
                except OSError as error:
                    raise ConfigurationInvalid(f"{description}: cannot read {path}: {error.strerror}") from None
    for kind in ("custodians", "recipients", "keystores", "strongrooms", "governance"):
        table.setdefault(kind, [])
    try:
        return Roster(**{**table, "number": number, "previous": previous, "issued": seconds(datetime.now(UTC))})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "roster"
        raise ConfigurationInvalid(f"{description}: {where}: {first['msg']}") from None


def _difference(before: Roster, after: Roster) -> list[str]:
    lines = []
    for kind in ("custodians", "recipients", "keystores", "strongrooms", "governance"):
        old = {entry.model_dump_json() for entry in getattr(before, kind)}
        new = {entry.model_dump_json() for entry in getattr(after, kind)}
        lines += [f"  - {kind}: {entry}" for entry in sorted(old - new)]
        lines += [f"  + {kind}: {entry}" for entry in sorted(new - old)]
    for field in ("change", "revoked"):
        if getattr(before, field) != getattr(after, field):
            lines += [f"  - {field}: {getattr(before, field)}", f"  + {field}: {getattr(after, field)}"]
    return lines or ["  nothing but the version number changes"]


def _write(path: Path, file: RosterFile) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(file.model_dump_json(indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
