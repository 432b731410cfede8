"""`masterkey demo` and `masterkey dev`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workers.local.demo import run_demo
from workers.local.dev import run_dev


def demo(
    keep: Annotated[Path | None, typer.Option(help="Leave files and logs in this folder.")] = None,
) -> None:
    """The main jobs on the embedded stack, on this machine."""
    run_demo(keep)


def dev(
    folder: Annotated[Path, typer.Option(help="Holds databases, keys, configuration and logs.")] = Path("run"),
) -> None:
    """The embedded stack, kept up: Temporal with its web UI, ledger, emulators, all workers."""
    run_dev(folder)
