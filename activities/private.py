"""Files that only their owner may read: keys, PINs, tokens."""

from __future__ import annotations

import os
from pathlib import Path

from workflows.contracts.trust.errors import ConfigurationInvalid


def write_private(path: Path, data: bytes) -> None:
    """Write a new file that only its owner may read (mode 0600); it is on the disk when this returns.

    Raises:
        ConfigurationInvalid: the file exists already, or cannot be written; keys are never overwritten.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise ConfigurationInvalid(f"{path} exists already", next_step="choose another place") from None
    except OSError as error:
        raise ConfigurationInvalid(f"cannot write {path}: {error.strerror}") from None
