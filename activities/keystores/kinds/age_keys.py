"""Secret age keys, and the identity file of the one who can decrypt. Encrypting is `activities.crypto.age_wrap`.

An identity file is what `age-keygen` writes, or the same encrypted by `age -p`. Whoever calls this holds a secret:
a one-shot process, or a command that makes or copies a key and exits.
"""

from __future__ import annotations

import getpass
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyrage  # type: ignore[import-untyped]

from activities.crypto.age_wrap import POST_QUANTUM, SSH, key_id
from activities.identity import check_private
from activities.private import write_private
from workflows.contracts.trust.errors import ConfigurationInvalid
from workflows.contracts.trust.service_errors import KeystoreAccessDenied

SECRET_PREFIX = "AGE-SECRET-KEY-1"  # noqa: S105 - what every secret key begins with
SECRET_CHARACTERS = 58
"""Length of what follows the prefix: Bech32 of 32 bytes, and its checksum."""

_ENCRYPTED = (b"age-encryption.org/v1\n", b"-----BEGIN AGE ENCRYPTED FILE-----")
_LONGEST_FILE = 65_536


@dataclass(frozen=True, repr=False)
class AgeIdentity:
    """A secret age key; nothing shows it but `secret`.

    Attributes:
        recipient: `age1...`, 62 characters: what is encrypted to it.
    """

    _key: Any
    recipient: str

    @classmethod
    def generate(cls) -> AgeIdentity:
        """A new key, from the operating system's random numbers."""
        key = pyrage.x25519.Identity.generate()
        return cls(key, str(key.to_public()))

    @classmethod
    def parse(cls, secret: str) -> AgeIdentity:
        """The key of `AGE-SECRET-KEY-1...`, 74 characters.

        Raises:
            ValueError: it is none, or was mistyped; the text does not quote it.
        """
        if secret.startswith("AGE-SECRET-KEY-PQ-1"):
            raise ValueError(POST_QUANTUM)
        if "PRIVATE KEY" in secret or secret.startswith("ssh-"):
            raise ValueError(SSH)
        if not secret.startswith(SECRET_PREFIX):
            raise ValueError(f"a secret age key begins with {SECRET_PREFIX}")
        try:
            key = pyrage.x25519.Identity.from_str(secret)
        except pyrage.IdentityError:
            raise ValueError("the secret age key was altered or mistyped") from None
        return cls(key, str(key.to_public()))

    @property
    def key_id(self) -> str:
        """As plans and manifests name it: `age:sha256:` and 64 hexadecimal digits."""
        return key_id(self.recipient)

    @property
    def secret(self) -> str:
        """`AGE-SECRET-KEY-1...`, 74 characters."""
        return str(self._key)

    def decrypt(self, ciphertext: bytes) -> bytes:
        """Decrypt an age file, binary.

        Raises:
            ValueError: it was altered, or encrypted to another key.
        """
        try:
            return bytes(pyrage.decrypt(ciphertext, [self._key]))
        except pyrage.DecryptError:
            raise ValueError("altered, or encrypted to another key") from None


def read_identity(path: Path, passphrase: Callable[[], str]) -> AgeIdentity:
    """The one key in an identity file.

    Args:
        path: a file for this user alone: an identity file, or one that `age -p` made of it.
        passphrase: called if the file is encrypted.

    Raises:
        ConfigurationInvalid: the file is missing, readable by others, too long, or no identity file of one key.
        KeystoreAccessDenied: the passphrase does not open it.
    """
    try:
        check_private(path)
        with path.open("rb") as file:
            data = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise ConfigurationInvalid(
            f"cannot read the age identity {path}: {error.strerror}",
            next_step="restore it from its page with `masterkey offline read`, or from a backup",
        ) from None
    if data.startswith(_ENCRYPTED):
        data = _decrypt_file(path, data, passphrase())
    try:
        if len(data) > _LONGEST_FILE:
            raise ValueError("it is too long")
        lines = [line.strip() for line in data.decode("utf-8").splitlines()]
        secrets = [line for line in lines if line and not line.startswith("#")]
        if any("PRIVATE KEY" in line for line in secrets):
            raise ValueError(SSH)
        if len(secrets) != 1:
            raise ValueError(f"it holds {len(secrets)} keys, and exactly one is expected")
        return AgeIdentity.parse(secrets[0])
    except UnicodeDecodeError:
        what = "it is not text"
    except ValueError as error:
        what = str(error)
    raise ConfigurationInvalid(
        f"{path} is not an age identity file: {what}", next_step="use the file that `masterkey offline keygen` made"
    )


def write_identity(path: Path, identity: AgeIdentity, passphrase: str | None) -> None:
    """Write an identity file (mode 0600), encrypted if there is a passphrase, as `age -p` does (scrypt).

    Raises:
        ConfigurationInvalid: the file exists already, or cannot be written; keys are never overwritten.
    """
    text = f"# public key: {identity.recipient}\n{identity.secret}\n".encode()
    data = text if passphrase is None else bytes(pyrage.passphrase.encrypt(text, passphrase))
    write_private(path, data)


def ask_passphrase(prompt: str) -> str:
    """A passphrase, typed on this process's terminal without being shown.

    Raises:
        ConfigurationInvalid: there is no terminal, or nothing was typed.
    """
    with warnings.catch_warnings():
        # `getpass` would warn, and then show what is typed, or read it from a pipe.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            typed = getpass.getpass(prompt)
        except (getpass.GetPassWarning, EOFError, OSError):
            raise ConfigurationInvalid(
                "there is no terminal to type the passphrase on",
                next_step="run it on a terminal, or name the passphrase with passphrase_file or passphrase_env",
            ) from None
    if not typed:
        raise ConfigurationInvalid("no passphrase was typed", next_step="try again")
    return typed


def _decrypt_file(path: Path, data: bytes, passphrase: str) -> bytes:
    try:
        return bytes(pyrage.passphrase.decrypt(data, passphrase))
    except pyrage.DecryptError as error:
        if "Excessive work" in str(error):
            what = "it was encrypted with more work than this machine is allowed to spend"
        else:
            what = "the passphrase is another one, or the file was altered"
    raise KeystoreAccessDenied(
        f"the age identity {path} does not open: {what}",
        next_step="try again, or restore it from its page with `masterkey offline read`",
    )
