"""The command line's entry point: options that stand anywhere, commands, and exit codes.

Exit 0 done, 1 refused or failed, 2 usage.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from activities.oneshot.installed import run_only_installed_code
from workers.cli.lazy import group_of
from workers.output import OPTIONS, answer, refuse, say
from workflows.contracts.trust.errors import MasterKeyError

COMMANDS = {
    "demo": ("demo:demo", "The main jobs on the embedded stack, on this machine."),
    "dev": (
        "demo:dev",
        "The embedded stack, kept up: Temporal with its web UI, ledger, emulators, all workers.",
    ),
    "init": ("init:init", "Create a MasterKey, once the governance quorum has approved."),
    "status": ("status:status", "What protects a MasterKey, and what is running."),
    "approve": ("decide:approve", "Sign, as a custodian, that a ceremony may go on."),
    "reject": ("decide:reject", "Sign, as a custodian, that a ceremony shall not go on; this stands permanently."),
    "contribute": (
        "contribute:contribute",
        "Give what a ceremony wants of your offline keystore; keep it running until it says that it is done.",
    ),
    "drill": (
        "drill:drill",
        "Prove that every shard still opens; exit 1 if one does not. Opens none, and needs no custodian.",
    ),
    "seal": (
        "seal:seal",
        "Emergency stop: nobody is served until a quorum lifts it. Exit 1 if somebody did not hear of it.",
    ),
    "reshard": (
        "reshard:reshard",
        "Protect a MasterKey again: other numbers, keystores, custodians or mode, or only newer key versions.",
    ),
    "destroy": (
        "orders:destroy",
        "Destroy the ciphertexts of a retired protection, once the governance quorum has approved.",
    ),
    "recover": (
        "recover:recover",
        "Disaster recovery: assess, propose, wait for the quorum, reconstruct, protect, prove, commit, report.",
    ),
    "unseal": (
        "unseal:app",
        "Receive a MasterKey: in sss mode once the custodians have approved, in auto-unseal mode at once.",
    ),
    "worker": ("worker:app", "Run one role in one process."),
    "ledger": ("ledger:app", "The ledger's database."),
    "roster": ("roster:app", "Who everyone is: the signed, versioned roster."),
    "ceremony": ("ceremonies:app", "What is running, and what waits for whom."),
    "offline": ("offline:app", "The keys of a keystore that has a custodian instead of a worker."),
    "bundle": ("bundle:app", "The ledger as one portable file."),
    "audit": ("audit:app", "What happened, and proof of it."),
}
"""Each command, in the order in which they are listed: a function or group of `workers.cli`, and what it is for."""

app = typer.Typer(
    name="masterkey",
    help="Protects, releases and recovers a root key.",
    cls=group_of(COMMANDS),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _options(
    config: Annotated[Path, typer.Option("--config", help="The configuration file.")] = Path("masterkey.toml"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Say which version, build and code this is.")] = False,
) -> None:
    """Options of every command; they may also stand after its name."""
    OPTIONS.config, OPTIONS.json = config, as_json
    if version:
        raise typer.BadParameter("--version stands alone")


def hoist(arguments: Sequence[str]) -> list[str]:
    """Move `--json` and `--config FILE` to the front, so that they may stand after the command's name."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*front, *rest, word, *words]
        if word == "--json" or word.startswith("--config="):
            front.append(word)
        elif word == "--config":
            front += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            rest.append(word)
    return [*front, *rest]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    # Libraries speak only when something is wrong.
    for library in ("alembic", "azure", "botocore", "google", "urllib3"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        run_only_installed_code()
        words = hoist(sys.argv[1:] if arguments is None else arguments)
        if [word for word in words if word != "--json"] == ["--version"]:
            OPTIONS.json = "--json" in words
            _say_version()
        else:
            app(args=words, prog_name="masterkey")
    except MasterKeyError as error:
        refuse(error)
        _exit(1)
    except SystemExit as ended:
        _exit(ended.code if isinstance(ended.code, int) else 1)


def _say_version() -> None:
    # Here and not above: no other command line asks for a digest of all code.
    from workers.builds import build_id, product_version, software

    data = {"version": product_version(), "build": build_id(), "code": software()}

    def text() -> None:
        say(f"masterkey {data['version']}")
        say(f"build {data['build']}   (the workflow code: ceremonies stay on the build that began them)")
        say(f"code {data['code']}    (everything installed: signed into the manifests that a strongroom makes)")

    answer(data, text)


def _exit(code: int) -> NoReturn:
    # Not sys.exit: a thread of Temporal's Rust core may call back while the interpreter is torn down, which
    # aborts the process ("PyGILState_Release: thread state must be current") after its work was done.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
