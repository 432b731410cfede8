"""The command `masterkey`."""

from workers.cli.app import main

__all__ = ["main"]
