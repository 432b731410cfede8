"""How a person agrees, and signs: the words were shown before, and nothing is signed without a yes."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from workers.client.ssh import sign_with_key
from workflows.contracts.trust.canonical import Document, Signed
from workflows.contracts.trust.errors import ApprovalInvalid, ConfigurationInvalid


def need_terminal(*, yes: bool, doing: str = "sign") -> None:
    """Refuse to go on where nobody can be asked, and `--yes` was not given.

    Raises:
        ConfigurationInvalid: there is no terminal.
    """
    if not yes and not sys.stdin.isatty():
        raise ConfigurationInvalid("nobody can be asked here", next_step=f"add --yes to {doing} without asking")


def confirm(question: str, *, yes: bool, declined: str = "not signed", unchanged: str = "nothing was sent") -> None:
    """Ask whether to go on, unless they have said so on the command line.

    Raises:
        ConfigurationInvalid: nobody can be asked.
        ApprovalInvalid: they said no; it says what did not happen, and what is as before.
    """
    need_terminal(yes=yes)
    if not yes and not typer.confirm(question, err=True):
        raise ApprovalInvalid(declined, next_step=unchanged)


def sign(document: Document, key: Path, *, yes: bool, unchanged: str = "nothing was sent") -> Signed:
    """Sign a document whose words were shown, if its signer agrees; raises as `confirm` and `sign_with_key`."""
    confirm(f"\nSign this with {key}?", yes=yes, unchanged=unchanged)
    data = document.canonical()
    return Signed(document=data.decode(), signature=sign_with_key(data, key, document.TYPE))
