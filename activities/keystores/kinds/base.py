"""What every kind of keystore is: a key that wraps and unwraps 32-byte DEKs, bound to a context.

A module for each kind offers one settings model and one class, a `BaseKeystore`; a new kind touches no old file but
the table in `activities.keystores.kinds.registry`. Calls block: each runs in a one-shot process of its own. SDK
retries are off, because the workflow retries, and every call has a time-out.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from activities.crypto.context import Context, unbind_context
from activities.crypto.envelope import DEK_BYTES
from workflows.contracts.trust.errors import CiphertextInvalid, ConfigurationInvalid, MasterKeyError
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

    @property
    def timeouts(self) -> tuple[float, float]:
        """Seconds to connect, and to wait for data: together `timeout_seconds`."""
        return self.timeout_seconds / 4, self.timeout_seconds * 3 / 4

    @property
    def authority(self) -> str | bool:
        """What TLS trusts, as SDKs take it: the file named in `ca_file`, or True for the system's authorities."""
        return str(self.ca_file) if self.ca_file else True


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


def secret_reference(what: str, env: str | None, file: Path | None) -> SecretReference | None:
    """A secret that may be named in `{what}_env` or in `{what}_file`; None if it is in neither.

    Raises:
        ValueError: it is in both.
    """
    if env is not None and file is not None:
        raise ValueError(f"set only one of {what}_env and {what}_file")
    return None if env is None and file is None else SecretReference(env=env, file=file)


S = TypeVar("S", bound=KeystoreSettings)


class BaseKeystore(ABC, Generic[S]):
    """What the kinds share: what goes in and out is checked, and how an error speaks.

    Attributes:
        SERVICE: what the service is called in messages.
        LONGEST: no wrapped DEK of this kind is longer, bytes.
    """

    SERVICE: ClassVar[str]
    LONGEST: ClassVar[int] = 65_536

    def __init__(self, name: str, settings: S) -> None:
        self._name = name
        self._settings = settings

    @abstractmethod
    def describe(self) -> KeyRef:
        """As `Keystore.describe`."""

    def wrap(self, dek: bytes, context: Context) -> WrappedKey:
        """As `Keystore.wrap`.

        Raises:
            ValueError: the DEK is not 32 bytes long.
        """
        if len(dek) != DEK_BYTES:
            raise ValueError(f"a DEK is {DEK_BYTES} bytes")
        return self._wrap(dek, context)

    def unwrap(self, wrapped: bytes, context: Context, key: KeyRef) -> bytes:
        """As `Keystore.unwrap`.

        Raises:
            CiphertextInvalid: another key than the configured one is recorded, or this is not what it wrapped.
        """
        if not self._is_own(key):
            raise self._error(CiphertextInvalid, "was wrapped by another key than the configured one")
        if not 0 < len(wrapped) <= self.LONGEST:
            raise self._error(CiphertextInvalid, "no wrapped DEK has this length")
        dek = self._unwrap(wrapped, context, key)
        if len(dek) != DEK_BYTES:
            raise self._error(CiphertextInvalid, f"does not hold {DEK_BYTES} bytes")
        return dek

    @abstractmethod
    def _is_own(self, key: KeyRef) -> bool:
        """Whether this is the configured key, as far as can be told without asking the service."""

    @abstractmethod
    def _wrap(self, dek: bytes, context: Context) -> WrappedKey:
        """Wrap 32 bytes."""

    @abstractmethod
    def _unwrap(self, wrapped: bytes, context: Context, key: KeyRef) -> bytes:
        """Unwrap with exactly the key, and the version of it, that was recorded."""

    def _unbind(self, plain: bytes, context: Context) -> bytes:
        """The DEK in what `bind_context` made, where the service authenticates no context."""
        dek = unbind_context(plain, context)
        if dek is None:
            raise self._error(CiphertextInvalid, "was wrapped with another context")
        return dek

    def _error(self, kind: type[MasterKeyError], what: str, next_step: str = "") -> MasterKeyError:
        return kind(f"keystore {self._name} ({self.SERVICE}): {what}", next_step=next_step, subject=self._name)
