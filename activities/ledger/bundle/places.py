"""Places where bundles are kept, and the folder among them (see `bucket` for the other). One bundle is one file.

A file is there whole or not at all. Its name tells how long its event log is, so that the newest is the last.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from workflows.contracts.trust.import_approval import BundleHead
from workflows.contracts.trust.service_errors import BundleUnavailable

_NAME = re.compile(r"^masterkey-([0-9]{6,})-[0-9a-f]{12}\.json$")
_LEFT_BEHIND_SECONDS = 3600
_log = logging.getLogger(__name__)


class Place(Protocol):
    """Somewhere to put bundles."""

    def write(self, name: str, data: bytes) -> str:
        """Write a bundle, whole or not at all; the same again changes nothing.

        Returns:
            Where it is now, for people.

        Raises:
            BundleUnavailable: it could not be written.
        """
        ...


def file_name(head: BundleHead) -> str:
    """The name of a bundle's file: `masterkey-000123-` and 12 hexadecimal digits of the last event's digest."""
    return f"masterkey-{head.events:06d}-{head.digest.removeprefix('sha256:')[:12]}.json"


def surplus(names: Iterable[str], keep: int, written: str) -> list[str]:
    """Of the names in a place, those of bundles that are more than the newest `keep`; never the one just written."""
    numbered = [(int(match.group(1)), name) for name in names if (match := _NAME.match(name))]
    return [name for _, name in sorted(numbered, reverse=True)[keep:] if name != written]


def write_everywhere(places: Sequence[Place], name: str, data: bytes) -> tuple[str, ...]:
    """Write a bundle to every place, also to those after one that fails.

    Returns:
        Where it is now.

    Raises:
        BundleUnavailable: naming the places that failed.
    """
    written, failed = [], []
    for place in places:
        try:
            written.append(place.write(name, data))
        except BundleUnavailable as error:
            failed.append(error)
    if failed:
        raise BundleUnavailable(
            "; ".join(error.message for error in failed), next_step=failed[0].next_step, subject=failed[0].subject
        )
    return tuple(written)


@dataclass(frozen=True)
class Folder:
    """A folder on this host. It and the files in it are for their owner only.

    Attributes:
        directory: made when it is not there.
        keep: how many of the newest are kept; all if None.
    """

    directory: Path
    keep: int | None = None

    def write(self, name: str, data: bytes) -> str:
        """See `Place.write`."""
        path = self.directory / name
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_file(path, data)
        except OSError as error:
            raise BundleUnavailable(
                f"cannot write the bundle {path}: {error.strerror}", subject=str(self.directory)
            ) from None
        self._tidy(name)
        return str(path)

    def _tidy(self, written: str) -> None:
        # The bundle is safe by now: what cannot be tidied up is no reason to fail.
        try:
            for entry in self.directory.glob(".masterkey-*.new"):
                if entry.stat().st_mtime < time.time() - _LEFT_BEHIND_SECONDS:
                    entry.unlink(missing_ok=True)
            if self.keep is not None:
                for name in surplus(os.listdir(self.directory), self.keep, written):
                    (self.directory / name).unlink(missing_ok=True)
        except OSError as error:
            _log.warning("old bundles in %s were not deleted: %s", self.directory, error.strerror)


def write_file(path: Path, data: bytes) -> None:
    """Write a file, mode 0600, that is there whole or not at all, also after a power cut.

    Raises:
        OSError: it could not be written; what was there before is untouched.
    """
    number, temporary = tempfile.mkstemp(dir=path.parent, prefix=".masterkey-", suffix=".new")
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
