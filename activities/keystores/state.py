"""What a keystore worker remembers by itself: a small directory that no orchestrator can reach.

It keeps the newest roster version that it has seen; for each MasterKey the key check value that was first
committed or released, and the lowest epoch that it still serves; and the orders to stop. Numbers only ever rise, and
a stop that was lifted stays lifted: an old order, or an old lift, that is sent again changes nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from workflows.contracts.trust.canonical import Message
from workflows.contracts.trust.errors import ConfigurationInvalid, ManifestInvalid, Stopped
from workflows.contracts.trust.protection import Manifest


class MasterKeyState(Message):
    """What is remembered of one MasterKey.

    Attributes:
        kcv: its key check value at the first commit or release.
        epochs: for each purpose, the lowest epoch that is still served.
    """

    kcv: str
    epochs: dict[str, int] = Field(default_factory=dict)


StopState = Literal["in-force", "lifted"]


class WorkerState(Message):
    """Everything that is remembered.

    Attributes:
        stops: for each MasterKey, the digest of every stop or lifted stop that was heard of.
    """

    roster_number: int = 0
    master_keys: dict[str, MasterKeyState] = Field(default_factory=dict)
    stops: dict[str, dict[str, StopState]] = Field(default_factory=dict)

    def stops_in_force(self, master_key: str) -> tuple[str, ...]:
        """Digests of the stops of a MasterKey that were not lifted."""
        return tuple(sorted(digest for digest, state in self.stops.get(master_key, {}).items() if state == "in-force"))

    def check_serving(self, master_key: str) -> None:
        """Refuse to serve a MasterKey that somebody has ordered to stop.

        Raises:
            Stopped: it is.
        """
        if stops := self.stops_in_force(master_key):
            raise Stopped(
                f"this keystore does not serve {master_key}: a custodian ordered to stop ({', '.join(stops)})",
                subject=master_key,
            )

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

    def note_key(self, manifest: Manifest) -> None:
        """Remember which MasterKey goes by this name, unless one is remembered; the epochs that are served stay.

        A release is no proof that the other keystores of the protection can give back theirs, so it retires nothing.

        Raises:
            ManifestInvalid: it contradicts what is remembered.
        """
        if manifest.master_key in self.read().master_keys:
            self.read().check_manifest(manifest)
            return
        with self._locked():
            state = self.read()
            state.check_manifest(manifest)
            entry = state.master_keys.get(manifest.master_key, MasterKeyState(kcv=manifest.kcv))
            self._write(state.model_copy(update={"master_keys": {**state.master_keys, manifest.master_key: entry}}))

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

    def note_retired(self, manifest: Manifest) -> None:
        """Remember that a protection serves no more, and none takes its place: its epoch is refused from now on.

        Raises:
            ManifestInvalid: it is of another MasterKey by the same name.
        """
        with self._locked():
            state = self.read()
            known = state.master_keys.get(manifest.master_key)
            if known is not None and known.epochs.get(manifest.purpose, 1) > manifest.epoch:
                return
            state.check_manifest(manifest)
            epochs = {**(known.epochs if known else {}), manifest.purpose: manifest.epoch + 1}
            entry = MasterKeyState(kcv=manifest.kcv, epochs=epochs)
            self._write(state.model_copy(update={"master_keys": {**state.master_keys, manifest.master_key: entry}}))

    def note_stop(self, master_key: str, stop: str) -> None:
        """Remember an order to stop, unless it was lifted before."""
        self._note_stops(master_key, {stop: "in-force"})

    def note_lift(self, master_key: str, stops: Sequence[str]) -> None:
        """Remember that these stops were lifted; also those that were never heard of, so that they come too late."""
        self._note_stops(master_key, dict.fromkeys(stops, "lifted"))

    def _note_stops(self, master_key: str, told: Mapping[str, StopState]) -> None:
        with self._locked():
            state = self.read()
            known = state.stops.get(master_key, {})
            merged = {**told, **known, **{stop: "lifted" for stop, now in told.items() if now == "lifted"}}
            self._write(state.model_copy(update={"stops": {**state.stops, master_key: merged}}))

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
        # The new name lies in the directory: without this a power cut brings back the state before a stop.
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
