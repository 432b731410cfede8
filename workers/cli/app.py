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
from workers.cli import (
    audit,
    builds,
    bundle,
    ceremonies,
    contribute,
    decide,
    demo,
    drill,
    offline,
    recover,
    reshard,
    roster,
    run_workers,
    seal,
    unseal,
)
from workers.output import OPTIONS, answer, refuse, say
from workflows.contracts.trust.errors import MasterKeyError

app = typer.Typer(
    name="masterkey",
    help="Protects, releases and recovers a root key.",
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


app.command("demo")(demo.demo)
app.command("dev")(demo.dev)
run_workers.worker_app.command("builds")(builds.builds)
run_workers.worker_app.command("promote")(builds.promote)
ceremonies.app.command("end")(builds.end)
ceremonies.app.command("move")(builds.move)
app.add_typer(run_workers.worker_app, name="worker")
app.add_typer(run_workers.ledger_app, name="ledger")
app.add_typer(roster.app, name="roster")
app.command("init")(ceremonies.init)
app.command("status")(ceremonies.status)
app.add_typer(ceremonies.app, name="ceremony")
app.command("approve")(decide.approve)
app.command("reject")(decide.reject)
app.command("contribute")(contribute.contribute)
app.add_typer(offline.app, name="offline")
app.command("drill")(drill.drill)
app.add_typer(bundle.app, name="bundle")
app.add_typer(audit.app, name="audit")
app.command("seal")(seal.seal)
app.command("reshard")(reshard.reshard)
app.command("destroy")(reshard.destroy)
app.command("recover")(recover.recover)
app.command("unseal", context_settings={"allow_extra_args": True, "ignore_unknown_options": False})(unseal.unseal)


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
