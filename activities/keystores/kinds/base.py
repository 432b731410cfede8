"""What every kind of keystore is: a key that wraps and unwraps 32-byte DEKs, bound to a context.

A module for each kind offers one settings model and one class; a new kind touches no old file but the
table in `activities.keystores.kinds.registry`. Calls block: each runs in a one-shot process of its own. SDK
retries are off, because the workflow retries, and every call has a time-out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from activities.crypto.context import Context
from workflows.contracts.trust.errors import ConfigurationInvalid
from workflows.contracts.trust.fields import Mechanism


@dataclass(frozen=True)
class KeyRef:
    """The key that a keystore really uses.

    Attributes:
        key_id: resolved id, without version: an ARN, a URL, a resource name, or token and object id. Two
            keystores with the same `key_id` are the same key, whatever alias was configured.
        key_version: the version that wraps now, or "" where the service has none or does not tell.
    """

    key_id: str
    key_version: str = ""


@dataclass(frozen=True)
class WrappedKey:
    """A wrapped DEK, the key and version that wrapped it, and how.

    Attributes:
        wrapped: what the service, or this kind's own small format, made of it.
        key: what wrapped it.
        mechanism: `rsa-oaep` is not safe against a quantum computer; `status` counts such shards.
    """

    wrapped: bytes
    key: KeyRef
    mechanism: Mechanism = "aes-gcm"


class Keystore(Protocol):
    """One configured KMS or HSM key.

    Every method raises `KeystoreError`s for what the service says, and `ConfigurationInvalid` for what only
    the worker's administrator can mend (a key of the wrong kind, a secret that is not there).
    """

    def describe(self) -> KeyRef:
        """Resolve the key, and prove that it is there, enabled, and may be used."""

    def wrap(self, dek: bytes, context: Context) -> WrappedKey:
        """Wrap a 32-byte DEK under the key's current version, bound to `context`."""

    def unwrap(self, wrapped: bytes, context: Context, key: KeyRef) -> bytes:
        """Give back the DEK (32 bytes) that `key`, and that version of it, wrapped with `context`."""


def protected_url(url: str) -> str:
    """A URL over which a DEK may travel: `https`, or `http` to this machine alone.

    Raises:
        ValueError: it is neither.
    """
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return url
    if parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1"):
        return url
    raise ValueError("an https URL is expected; plain http only to 127.0.0.1, because data keys travel over it")


class KeystoreSettings(BaseModel):
    """What every kind's settings share. Secrets are only ever named here, never held.

    Attributes:
        timeout_seconds: limit for one call to the service, connecting included.
        endpoint: a private endpoint or an emulator, instead of the service's own address.
        ca_file: PEM file of the certificate authority to trust for `endpoint`, instead of the system's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    type: str
    timeout_seconds: Annotated[float, Field(gt=0, le=120)] = 10.0
    endpoint: Annotated[str, AfterValidator(protected_url)] | None = None
    ca_file: Path | None = None


class SecretReference(BaseModel):
    """A secret by reference: an environment variable or a file, exactly one of the two."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    env: str | None = None
    file: Path | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> SecretReference:
        if (self.env is None) == (self.file is None):
            raise ValueError("name exactly one: an environment variable or a file")
        return self

    def read(self, what: str) -> str:
        """The secret itself, trailing newline removed.

        Raises:
            ConfigurationInvalid: the variable is not set, or the file is missing, unreadable or empty.
        """
        if self.env is not None:
            value = os.environ.get(self.env, "")
            source = f"environment variable {self.env}"
        else:
            source = f"file {self.file}"
            try:
                value = Path(str(self.file)).read_text(encoding="utf-8").rstrip("\r\n")
            except OSError as error:
                raise ConfigurationInvalid(f"{what}: cannot read {source}: {error.strerror}") from None
        if not value:
            raise ConfigurationInvalid(f"{what}: {source} is empty", next_step="set it for this worker")
        return value
