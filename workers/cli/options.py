"""Arguments and options that stand in many commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from workers.output import AUTO_UNSEAL

NameArgument = Annotated[str, typer.Argument(help="Name of the MasterKey.")]
CeremonyArgument = Annotated[str, typer.Argument(help="Id of a ceremony.")]
DeadlineOption = Annotated[float, typer.Option(help="How long the quorum may take.")]
KeyOption = Annotated[Path, typer.Option(help="Your SSH private key, or its public half if an agent holds it.")]
StrongroomOption = Annotated[str, typer.Option(help="Name of the strongroom; the roster's first by default.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, showing progress.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Sign without asking.")]


def mode_of(word: str | None) -> str | None:
    """The mode as documents record it: `auto-unseal` is recorded as `seal`."""
    return "seal" if word == AUTO_UNSEAL else word
