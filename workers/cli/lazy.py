"""Commands that are imported when they are called: the list of commands is known without any of them.

With a command's module come Temporal, the ledger or a keystore's SDK; so modules import what they need at their top.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from workflows.contracts.trust.errors import ConfigurationInvalid

_EXTRAS = {"pyrage": "offline"}
"""What installs a module that only some commands need."""


class _Lazy(TyperCommand):
    """A command whose module is imported when it is called, or its own help is asked for."""

    def __init__(self, name: str, place: str, words: str) -> None:
        super().__init__(name, help=words)
        self._place = place

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the command itself: from here on it takes this one's place."""
        return load(self._place).make_context(info_name, args, parent, **extra)


def group_of(commands: Mapping[str, tuple[str, str]]) -> type[TyperGroup]:
    """The class of a `typer.Typer` that lists these commands after its own.

    Args:
        commands: by name: where each is, as `load` takes it, and what it is for, in its own words.
    """

    class Commands(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            for name, (place, words) in commands.items():
                self.add_command(_Lazy(name, place, words))

    return Commands


def load(place: str) -> Any:
    """Import a command.

    Args:
        place: `MODULE:NAME` in `workers.cli`, a function or a `typer.Typer`.

    Raises:
        ConfigurationInvalid: it needs an optional package that is not installed.
    """
    module, _, name = place.partition(":")
    try:
        found = getattr(import_module(f"workers.cli.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise ConfigurationInvalid(
            f"the Python module {error.name!r} is not installed here",
            next_step=f"install openkcm-masterkey[{_EXTRAS[error.name]}]",
        ) from None
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command()(found)
        found = single
    return get_command(found)
