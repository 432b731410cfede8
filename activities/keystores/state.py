"""What a keystore worker remembers by itself: a small directory that no orchestrator can reach.

It keeps the newest roster version that it has seen, and for each MasterKey the key check value that was
first committed and the lowest epoch that it still serves. Numbers only ever rise.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, ValidationError

from workflows.contracts.canonical import Message
from workflows.contracts.documents import Manifest
from workflows.contracts.errors import ConfigurationInvalid, ManifestInvalid


class MasterKeyState(Message):
    """What is remembered of one MasterKey.

    Attributes:
        kcv: its key check value at the first commit.
        epochs: for each purpose, the lowest epoch that is still served.
    """

    kcv: str
    epochs: dict[str, int] = Field(default_factory=dict)


class WorkerState(Message):
    """Everything that is remembered."""

    roster_number: int = 0
    master_keys: dict[str, MasterKeyState] = Field(default_factory=dict)

    def check_manifest(self, manifest: Manifest) -> None:
        """Refuse a manifest that is older than what is in force, or of another MasterKey by the same name.

        Raises:
            ManifestInvalid: it is.
        """
        known = self.master_keys.get(manifest.master_key)
        if known is None:
            return
        lowest = known.epochs.get(manifest.purpose, 1)
        if manifest.epoch < lowest:
            raise ManifestInvalid(
                f"the manifest is of epoch {manifest.epoch}; this keystore serves {lowest} and newer",
                subject=manifest.master_key,
            )
        if manifest.kcv != known.kcv:
            raise ManifestInvalid(
                f"the manifest describes another MasterKey than the {manifest.master_key} that was committed",
                subject=manifest.master_key,
            )


class StateDirectory:
    """The directory of one keystore worker's state; changes are atomic and exclusive between processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "state.json"

    def read(self) -> WorkerState:
        """The present state; empty if none was written yet.

        Raises:
            ConfigurationInvalid: the file cannot be read; it is never silently started anew.
        """
        try:
            return WorkerState.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return WorkerState()
        except (OSError, ValidationError):
            raise ConfigurationInvalid(
                f"the keystore worker's state {self._file} cannot be read",
                next_step="restore it from a backup: it protects against rolled-back rosters and manifests",
            ) from None

    def note_roster(self, number: int) -> None:
        """Remember that this roster version exists."""
        if number > self.read().roster_number:
            with self._locked():
                state = self.read()
                newest = max(number, state.roster_number)
                self._write(state.model_copy(update={"roster_number": newest}))

    def note_commit(self, manifest: Manifest) -> None:
        """Remember a manifest that is in force: its key check value, and its epoch as the lowest served.

        Raises:
            ManifestInvalid: it contradicts what is remembered.
        """
        remembered = self.read().master_keys.get(manifest.master_key)
        if remembered and (remembered.kcv, remembered.epochs.get(manifest.purpose)) == (manifest.kcv, manifest.epoch):
            return
        with self._locked():
            state = self.read()
            state.check_manifest(manifest)
            known = state.master_keys.get(manifest.master_key)
            epochs = {**(known.epochs if known else {}), manifest.purpose: manifest.epoch}
            entry = MasterKeyState(kcv=manifest.kcv, epochs=epochs)
            master_keys = {**state.master_keys, manifest.master_key: entry}
            self._write(state.model_copy(update={"master_keys": master_keys}))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (self._directory / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise ConfigurationInvalid(
                f"the keystore worker's state directory {self._directory} cannot be written: {error.strerror}",
                next_step="make it writable for this worker; what it remembers protects against roll-back",
            ) from None

    def _write(self, state: WorkerState) -> None:
        temporary = self._file.with_suffix(".new")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(state.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._file)
