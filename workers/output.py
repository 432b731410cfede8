"""How the command line speaks: words for people, or one JSON object for programs; errors in one line."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from rich.console import Console

from workflows.contracts.trust.errors import MasterKeyError

if TYPE_CHECKING:
    from workers.config import Configuration
    from workflows.contracts.trust.chain import RosterChain

P = ParamSpec("P")
T = TypeVar("T")

AUTO_UNSEAL = "auto-unseal"
"""What people call the mode `seal`: `masterkey seal` is something else, the emergency stop."""


@dataclass
class Options:
    """The options that every command has.

    Attributes:
        config: the configuration file.
        json: print one JSON object on standard output, and nothing else there.
    """

    config: Path = Path("masterkey.toml")
    json: bool = False
    console: Console = field(default_factory=lambda: Console(soft_wrap=True, highlight=False))
    errors: Console = field(default_factory=lambda: Console(stderr=True, soft_wrap=True, highlight=False))

    def load(self) -> Configuration:
        """The configuration; raises ConfigurationInvalid."""
        # Here and not above: the list of commands and every `--help` need no configuration.
        from workers.config import Configuration

        return Configuration.load(self.config)

    def roster(self) -> RosterChain:
        """The roster, verified from what the configuration pins of it."""
        return self.load().roster_source().load()


OPTIONS = Options()
"""Set once by `main` from the command line."""


def answer(data: dict[str, Any], text: Callable[[], None]) -> None:
    """Give a command's result: as JSON, or by calling `text`, which prints it for people."""
    if OPTIONS.json:
        sys.stdout.write(json.dumps({"ok": True, **data}) + "\n")
    else:
        text()


def plain(text: str) -> str:
    """`text` without what could move a cursor or hide a word: an orchestrator is not trusted with a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def shown(mode: str) -> str:
    """A mode as people read it."""
    return AUTO_UNSEAL if mode == "seal" else mode


def say(message: str) -> None:
    """A line about what is going on: for people, and never on standard output when that is for JSON."""
    (OPTIONS.errors if OPTIONS.json else OPTIONS.console).print(plain(message), markup=False)


def refuse(error: MasterKeyError) -> None:
    """Report an error: one line on standard error, and an object on standard output under `--json`."""
    line = " ".join(error.diagnostics.split())
    OPTIONS.errors.print(f"masterkey: {line}", markup=False)
    if OPTIONS.json:
        body = {
            "ok": False,
            "error": type(error).__name__,
            "message": error.message,
            "next_step": error.next_step,
            "subject": error.subject,
        }
        sys.stdout.write(json.dumps(body) + "\n")


def asynchronous(work: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """A command from the coroutine that does its work."""

    @wraps(work)
    def command(*arguments: P.args, **options: P.kwargs) -> None:
        run(work(*arguments, **options))

    return command


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's asynchronous work."""
    return asyncio.run(work)
