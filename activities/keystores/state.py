"""What a keystore worker remembers by itself: a small directory that no orchestrator can reach.

It keeps the newest roster version that it has seen; for each MasterKey the key check value that was first
committed or released, and the lowest epoch that it still serves; and the orders to stop. Numbers only ever rise, and
a stop that was lifted stays lifted: an old order, or an old lift, that is sent again changes nothing.

A file that a newer version wrote is refused: to read what is known of it, and to write that, would forget the rest.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field

from workflows.contracts.trust.canonical import Part
from workflows.contracts.trust.errors import ConfigurationInvalid, ManifestInvalid
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.service_errors import Stopped

FORMAT: Literal[1] = 1
"""Of the file; it rises with every field that an older version must not lose."""


class MasterKeyState(Part):
    """What is remembered of one MasterKey.

    Attributes:
        kcv: its key check value at the first commit or release.
        epochs: for each purpose, the lowest epoch that is still served.
    """

    kcv: str
    epochs: dict[str, int] = Field(default_factory=dict)


StopState = Literal["in-force", "lifted"]


class WorkerState(Part):
    """Everything that is remembered.

    Attributes:
        format: of the file; files from before it was written are of the first.
        stops: for each MasterKey, the digest of every stop or lifted stop that was heard of.
    """

    format: Literal[1] = FORMAT
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

    def with_key(self, manifest: Manifest, *, lowest: int | None = None) -> WorkerState:
        """The same, and this manifest's MasterKey by its name; of its purpose, epochs below `lowest` are refused.

        Raises:
            ManifestInvalid: it contradicts what is remembered.
        """
        self.check_manifest(manifest)
        known = self.master_keys.get(manifest.master_key, MasterKeyState(kcv=manifest.kcv))
        epochs = known.epochs if lowest is None else {**known.epochs, manifest.purpose: lowest}
        entry = MasterKeyState(kcv=known.kcv, epochs=epochs)
        return self.model_copy(update={"master_keys": {**self.master_keys, manifest.master_key: entry}})

    def with_stops(self, master_key: str, told: Mapping[str, StopState]) -> WorkerState:
        """The same, and these stops, or lifted stops, of a MasterKey; what was lifted stays lifted."""
        known = self.stops.get(master_key, {})
        merged = {**told, **known, **{stop: "lifted" for stop, now in told.items() if now == "lifted"}}
        return self.model_copy(update={"stops": {**self.stops, master_key: merged}})


class StateDirectory:
    """The directory of one keystore worker's state; changes are atomic and exclusive between processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "state.json"

    def read(self) -> WorkerState:
        """The present state; empty if none was written yet.

        Raises:
            ConfigurationInvalid: the file cannot be read, or is of a newer version; it is never silently started anew.
        """
        try:
            data = self._file.read_bytes()
            self._refuse_newer(data)
            return WorkerState.model_validate_json(data)
        except FileNotFoundError:
            return WorkerState()
        except (OSError, ValueError):
            raise ConfigurationInvalid(
                f"the keystore worker's state {self._file} cannot be read",
                next_step="restore it from a backup: it protects against rolled-back rosters and manifests",
            ) from None

    def note_roster(self, number: int) -> None:
        """Remember that this roster version exists."""
        self._change(lambda state: state.model_copy(update={"roster_number": max(number, state.roster_number)}))

    def note_key(self, manifest: Manifest) -> None:
        """Remember which MasterKey goes by this name, unless one is remembered; the epochs that are served stay.

        A release is no proof that the other keystores of the protection can give back theirs, so it retires nothing.

        Raises:
            ManifestInvalid: it contradicts what is remembered.
        """
        self._change(lambda state: state.with_key(manifest))

    def note_commit(self, manifest: Manifest) -> None:
        """Remember a manifest that is in force: its key check value, and its epoch as the lowest served.

        Raises:
            ManifestInvalid: it contradicts what is remembered.
        """
        self._change(lambda state: state.with_key(manifest, lowest=manifest.epoch))

    def note_retired(self, manifest: Manifest) -> None:
        """Remember that a protection serves no more, and none takes its place: its epoch is refused from now on.

        Raises:
            ManifestInvalid: it is of another MasterKey by the same name.
        """

        def retired(state: WorkerState) -> WorkerState:
            known = state.master_keys.get(manifest.master_key)
            if known is not None and known.epochs.get(manifest.purpose, 1) > manifest.epoch:
                return state
            return state.with_key(manifest, lowest=manifest.epoch + 1)

        self._change(retired)

    def note_stop(self, master_key: str, stop: str) -> None:
        """Remember an order to stop, unless it was lifted before."""
        self._change(lambda state: state.with_stops(master_key, {stop: "in-force"}))

    def note_lift(self, master_key: str, stops: Sequence[str]) -> None:
        """Remember that these stops were lifted; also those that were never heard of, so that they come too late."""
        self._change(lambda state: state.with_stops(master_key, dict.fromkeys(stops, "lifted")))

    def _change(self, change: Callable[[WorkerState], WorkerState]) -> None:
        """Write what `change` makes of the present state; nothing is locked or written where it makes no difference."""
        if change(state := self.read()) == state:
            return
        with self._locked():
            self._write(change(self.read()))

    def _refuse_newer(self, data: bytes) -> None:
        found = json.loads(data).get("format", FORMAT) if data.startswith(b"{") else FORMAT
        if found != FORMAT:
            raise ConfigurationInvalid(
                f"the keystore worker's state {self._file} is of format {found}; this version knows {FORMAT}",
                next_step="run the newer version that wrote it: this one would forget what it does not know",
            )

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
