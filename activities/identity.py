"""Identities of workers and recipients: OpenSSH Ed25519 keys in files, and SSH signatures made with them."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from workflows.contracts.trust.canonical import Document, Signed
from workflows.contracts.trust.errors import ConfigurationInvalid
from workflows.contracts.trust.signatures import armour, fingerprint


class Identity:
    """A private Ed25519 key that signs documents in the `ssh-keygen -Y sign` format."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        self.fingerprint = fingerprint(self.public_key)

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read an unencrypted OpenSSH Ed25519 private key.

        Raises:
            ConfigurationInvalid: the file is missing, readable by others, encrypted, or another kind of key.
        """
        try:
            check_private(path)
            key = load_ssh_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise ConfigurationInvalid(f"cannot read the identity key {path}: {error.strerror}") from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ConfigurationInvalid(
                f"{path} is not an unencrypted OpenSSH private key",
                next_step="make one with: ssh-keygen -t ed25519 -N '' -f FILE",
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationInvalid(f"the identity key {path} is not an Ed25519 key")
        return cls(key)

    def sign(self, document: Document) -> Signed:
        """Sign the canonical bytes of a document, in the namespace of its type."""
        data = document.canonical()
        return Signed(document=data.decode(), signature=self.sign_bytes(data, document.TYPE))

    def sign_bytes(self, data: bytes, namespace: str) -> str:
        """An armoured SSH signature (OpenSSH PROTOCOL.sshsig), Ed25519 over SHA-512."""
        digest = hashlib.sha512(data).digest()
        to_sign = b"SSHSIG" + b"".join(map(_string, (namespace.encode(), b"", b"sha512", digest)))
        signature = _string(b"ssh-ed25519") + _string(self._key.sign(to_sign))
        public = _string(b"ssh-ed25519") + _string(self._key.public_key().public_bytes_raw())
        parts = (public, namespace.encode(), b"", b"sha512", signature)
        return armour(b"SSHSIG" + struct.pack(">I", 1) + b"".join(map(_string, parts)))


def check_private(path: Path) -> None:
    """Check that a private key's file is for this process alone.

    A file that belongs to another user may be readable by our group: that is how Kubernetes hands a secret
    to a process that is not root (`fsGroup`).

    Raises:
        ConfigurationInvalid: others can read or write it.
        OSError: there is no such file.
    """
    status = path.stat()
    allowed = 0o700 if status.st_uid == os.geteuid() else 0o740
    if status.st_mode & 0o777 & ~allowed:
        raise ConfigurationInvalid(f"the key {path} can be read by others", next_step=f"run: chmod 600 {path}")


def generate_identity(path: Path) -> Identity:
    """Make a new Ed25519 key in OpenSSH form at `path` (mode 0600) and `path`.pub.

    Raises:
        ConfigurationInvalid: the file exists already; keys are never overwritten.
    """
    key = Ed25519PrivateKey.generate()
    identity = Identity(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        raise ConfigurationInvalid(f"{path} exists already", next_step="choose another file") from None
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.with_name(path.name + ".pub").write_text(identity.public_key + "\n", encoding="utf-8")
    return identity


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
