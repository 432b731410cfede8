"""`masterkey demo` and `masterkey dev`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    keep: Annotated[Path | None, typer.Option(help="Leave files and logs in this folder.")] = None,
) -> None:
    """The whole tour on the embedded stack, on this machine."""
    from workers.local.demo import run_demo

    run_demo(keep)


def dev(
    folder: Annotated[Path, typer.Option(help="Holds databases, keys, configuration and logs.")] = Path("run"),
) -> None:
    """The embedded stack, kept up: Temporal with its web UI, ledger, emulators, all workers."""
    from workers.local.dev import run_dev

    run_dev(folder)
