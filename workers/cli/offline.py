"""`masterkey offline ...`: an offline keystore's keys: made, printed on paper, and read back from it.

These commands hold the secret age key in their own process, which does one thing and exits; it is never given on a
command line, nor by value in the environment. During a ceremony (`masterkey contribute`) only a one-shot process
reads it.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, cast

import typer
from pydantic import TypeAdapter, ValidationError

from activities.identity import generate_identity
from activities.keystores.kinds import age_keys
from activities.keystores.kinds.offline import Offline, OfflineSettings
from activities.keystores.kinds.registry import parse_settings
from activities.oneshot.child import harden
from activities.private import write_private
from workers.client.paper import Page, read_page
from workers.output import OPTIONS, answer, say
from workflows.contracts.trust.canonical import Name
from workflows.contracts.trust.errors import ConfigurationInvalid

app = typer.Typer(
    help="The keys of a keystore that has a custodian instead of a worker.", no_args_is_help=True, add_completion=False
)

PassphraseOption = Annotated[bool, typer.Option("--passphrase", help="Encrypt the age key; asks on the terminal.")]


@app.command("keygen")
def keygen(
    name: Annotated[str, typer.Argument(help="Name of the keystore.")],
    out: Annotated[Path, typer.Option(help="Folder for the keys.")],
    custodian: Annotated[list[str] | None, typer.Option(help="Who will keep it; once for each deputy.")] = None,
    passphrase: PassphraseOption = False,
) -> None:
    """Make a dedicated age key and an identity key, and print what roster and configuration need."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise ConfigurationInvalid(
            f"{name!r} is no name", next_step="use lower case letters, digits, hyphens"
        ) from None
    secret, identity = out / f"{name}.agekey", out / f"{name}_ed25519"
    for path in (secret, identity, identity.with_name(identity.name + ".pub")):
        if path.exists():
            raise ConfigurationInvalid(f"{path} exists already", next_step="choose another folder or name")
    _harden()
    encrypted_by = _new_passphrase() if passphrase else None
    key = age_keys.AgeIdentity.generate()
    age_keys.write_identity(secret, key, encrypted_by)
    public_key = generate_identity(identity).public_key
    custodians = ", ".join(f'"{who}"' for who in custodian or ["YOUR-NAME"])
    roster = (
        f'[[keystores]]\nname = "{name}"\npublic_key = "{public_key}"\n'
        f'custodians = [{custodians}]\noffline = "{key.recipient}"\n'
    )
    configuration = (
        f'[keystores.{name}]\ntype = "offline"\nrecipient = "{key.recipient}"\n'
        f'identity_file = "{secret.resolve()}"\nidentity = "{identity.resolve()}"\n'
        f'state = "state/{name}"\nmodes = ["sss"]\n'
    )

    def text() -> None:
        say(f"wrote {secret}: the age key. Without it, and without its page, this keystore opens nothing.")
        say(f"wrote {identity}: the key that signs this keystore's answers.")
        say(f"\nfor the roster's description, see `masterkey roster propose`:\n\n{roster}")
        say(f"for your own masterkey.toml:\n\n{configuration}")
        say(f"now print a page for your safe: masterkey offline paper {name} --with-key")

    answer(
        {
            "keystore": name,
            "recipient": key.recipient,
            "key_id": key.key_id,
            "public_key": public_key,
            "identity_file": str(secret),
            "identity": str(identity),
            "roster": roster,
            "configuration": configuration,
        },
        text,
    )


@app.command("paper")
def paper(
    name: Annotated[str, typer.Argument(help="Name of the keystore.")],
    with_key: Annotated[bool, typer.Option("--with-key", help="Print the secret age key too.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the page to this file instead of the terminal.")] = None,
) -> None:
    """Print a page of paper: what this keystore is, how to use it, and its secret key if asked for."""
    settings, identity = _settings(name), None
    if with_key:
        _harden()
        identity = Offline(name, settings).identity()
    page = Page(name, settings.recipient, datetime.now(UTC), identity).render()
    if out is not None:
        write_private(out, page.encode())

    def text() -> None:
        if out is not None:
            say(f"wrote {out}" + ("; print it, then destroy the file" if with_key else ""))
        else:
            sys.stdout.write(page)

    shown = {} if out is not None else {"page": page}
    answer({"keystore": name, "recipient": settings.recipient, "with_key": with_key, **shown}, text)


@app.command("read")
def read(
    page: Annotated[Path, typer.Argument(help="File into which the page was typed; - for standard input.")],
    out: Annotated[Path, typer.Option(help="The age identity file to write.")],
    passphrase: PassphraseOption = False,
) -> None:
    """Read a page that was typed in again, say which line is wrong, and write the age key."""
    _harden()
    try:
        text = sys.stdin.read() if str(page) == "-" else page.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationInvalid(f"cannot read {page}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationInvalid(f"{page} is not text") from None
    identity = read_page(text)
    age_keys.write_identity(out, identity, _new_passphrase() if passphrase else None)

    def told() -> None:
        say(f"wrote {out}: the age key of {identity.recipient}")
        say(f"compare it with `offline` in the roster; its fingerprint is {identity.key_id}")
        if str(page) != "-":
            say(f"now destroy {page}")

    key_id = identity.key_id
    answer({"recipient": identity.recipient, "key_id": key_id, "identity_file": str(out)}, told)


def _settings(name: str) -> OfflineSettings:
    configuration = OPTIONS.load()
    settings = parse_settings(name, configuration.keystore_terms(name).settings)
    if settings.type != "offline":
        raise ConfigurationInvalid(
            f"{configuration.source}: [keystores.{name}] is of type {settings.type}, not offline",
            next_step="name a keystore of type offline",
        )
    return cast("OfflineSettings", settings)


def _new_passphrase() -> str:
    typed: str = age_keys.ask_passphrase("New passphrase of the age key: ")
    if age_keys.ask_passphrase("The same again: ") != typed:
        raise ConfigurationInvalid("the two passphrases differ", next_step="try again; nothing was written")
    return typed


def _harden() -> None:
    """Keep this process's memory, which will hold a secret key, from core dumps, tracing and swap."""
    for warning in harden():
        OPTIONS.errors.print(f"note: {warning}", markup=False)
