"""OpenBao or Vault Transit: an `aes256-gcm96` key wraps DEKs, bound by associated data.

The version that wrapped is the one in the ciphertext's prefix (`vault:v3:...`); it is recorded, and an unwrap
refuses any other. Nothing is cached: a token is read, or a login made, for every call. Let logins give batch
tokens, which leave no lease behind.

Wrapping asks for the key first, because Transit *creates* a key that it does not know when a token may do so
(`create` on `encrypt/NAME`), and a key made by accident protects nothing that was planned.

Source: https://openbao.org/api-docs/secret/transit/. What Transit does not tell apart: wrong key, altered
ciphertext and another context are one error (HTTP 400; 500 in some versions of Vault, hashicorp/vault issue 10842);
a token that has expired and a policy that forbids are both 403.
"""

from __future__ import annotations

import netrc  # noqa: F401 - requests loads it at its first call: here it is loaded before the fork
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import hvac
import hvac.exceptions
import requests
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from activities.crypto.context import Context, context_bytes
from activities.keystores.kinds.base import (
    BaseKeystore,
    KeyRef,
    KeystoreSettings,
    SecretReference,
    WrappedKey,
    protected_url,
    secret_reference,
)
from workflows.contracts.trust.canonical import decode64, encode64
from workflows.contracts.trust.errors import CiphertextInvalid, ConfigurationInvalid, MasterKeyError
from workflows.contracts.trust.service_errors import (
    KeyDisabled,
    KeyNotFound,
    KeyPendingDeletion,
    KeystoreAccessDenied,
    KeystoreThrottled,
    KeystoreUnavailable,
)

KEY_TYPE = "aes256-gcm96"
"""The one type used: AES-256-GCM with a random nonce, which takes associated data."""

_CIPHERTEXT = re.compile(rb"^vault:v([1-9][0-9]{0,9}):[A-Za-z0-9+/]+={0,2}$")
_PORTS = {"http": 80, "https": 443}

_KINDS: tuple[tuple[type[hvac.exceptions.VaultError], type[MasterKeyError], str], ...] = (
    (hvac.exceptions.Unauthorized, KeystoreAccessDenied, "HTTP 401"),
    (hvac.exceptions.Forbidden, KeystoreAccessDenied, "HTTP 403, permission denied"),
    (hvac.exceptions.InvalidPath, KeyNotFound, "HTTP 404, no such key, mount or namespace"),
    (hvac.exceptions.RateLimitExceeded, KeystoreThrottled, "HTTP 429"),
    (hvac.exceptions.InternalServerError, KeystoreUnavailable, "HTTP 500"),
    (hvac.exceptions.VaultNotInitialized, KeystoreUnavailable, "HTTP 501, not initialised"),
    (hvac.exceptions.BadGateway, KeystoreUnavailable, "HTTP 502"),
    (hvac.exceptions.VaultDown, KeystoreUnavailable, "HTTP 503, sealed or in maintenance"),
)

# Transit has no error codes: these words of its HTTP 400 answers are all there is (OpenBao 2.7).
_WORDS: tuple[tuple[str, type[MasterKeyError], str], ...] = (
    ("encryption key not found", KeyNotFound, "encryption key not found"),
    ("version is too new", KeyNotFound, "the key has no such version: deleted and made again, or restored"),
    ("disallowed by policy (too old)", KeyDisabled, "this version is below min_decryption_version"),
    ("soft-deleted key", KeyPendingDeletion, "the key is soft-deleted"),
    ("message authentication failed", CiphertextInvalid, "message authentication failed"),
    ("invalid ciphertext", CiphertextInvalid, "invalid ciphertext"),
)

PathSegment = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")]
MountPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$")]


class TransitSettings(KeystoreSettings):
    """Settings of a Transit key.

    Attributes:
        address: URL of the server; part of the key's id. To reach the same server elsewhere, set `endpoint`.
        key_name: name of the key.
        mount: where Transit is mounted.
        namespace: the namespace, if one.
        auth: how to log in.
        auth_mount: where that method is mounted; its own name unless set.
        token_env: `token`: environment variable of the token; `BAO_TOKEN` if neither is set.
        token_file: `token`: file of the token.
        role_id: `approle`: the role's id.
        secret_id_env: `approle`: environment variable of the secret id.
        secret_id_file: `approle`: file of the secret id.
        role: `kubernetes`: name of the role.
        jwt_file: `kubernetes`: file of the service account's token.
    """

    type: Literal["transit"] = "transit"
    address: Annotated[str, AfterValidator(protected_url)]
    key_name: PathSegment
    mount: MountPath = "transit"
    namespace: MountPath | None = None
    auth: Literal["token", "approle", "kubernetes"] = "token"
    auth_mount: MountPath | None = None
    token_env: str | None = None
    token_file: Path | None = None
    role_id: str | None = None
    secret_id_env: str | None = None
    secret_id_file: Path | None = None
    role: str | None = None
    jwt_file: Path = Field(default=Path("/var/run/secrets/kubernetes.io/serviceaccount/token"))

    @model_validator(mode="after")
    def _one_way_in(self) -> TransitSettings:
        url = urlsplit(self.address)
        if url.scheme not in _PORTS or not url.hostname or url.query or url.fragment or url.username:
            raise ValueError("address is not the URL of a server")
        if self.auth == "token":
            secret_reference("token", self.token_env, self.token_file)
        if self.auth == "approle" and (
            not self.role_id or (self.secret_id_env is None) == (self.secret_id_file is None)
        ):
            raise ValueError("auth approle needs role_id and exactly one of secret_id_env and secret_id_file")
        if self.auth == "kubernetes" and not self.role:
            raise ValueError("auth kubernetes needs role")
        return self

    @property
    def key_id(self) -> str:
        """Normalised: `https://host:8200/namespace/mount/keys/name`."""
        url = urlsplit(self.address)
        host = f"[{url.hostname}]" if ":" in str(url.hostname) else url.hostname
        base = f"{url.scheme}://{host}:{url.port or _PORTS[url.scheme]}{url.path.rstrip('/')}"
        return "/".join(part for part in (base, self.namespace, self.mount, "keys", self.key_name) if part)

    @property
    def secret(self) -> SecretReference:
        """Where the secret of the method is to be read."""
        if self.auth == "kubernetes":
            return SecretReference(file=self.jwt_file)
        if self.auth == "approle":
            return SecretReference(env=self.secret_id_env, file=self.secret_id_file)
        return SecretReference(env=self.token_env or (None if self.token_file else "BAO_TOKEN"), file=self.token_file)


class Transit(BaseKeystore[TransitSettings]):
    """A Transit key as a `Keystore`."""

    SERVICE = "Transit"

    def describe(self) -> KeyRef:
        """Read the key: its id and latest version, if it is of the right type and not deleted.

        Raises:
            KeyPendingDeletion: it is soft-deleted.
            ConfigurationInvalid: it is of another type, or derived.
            KeystoreError: as for any call.
        """
        return self._describe(self._login())

    def _is_own(self, key: KeyRef) -> bool:
        return key.key_id == self._settings.key_id

    def _wrap(self, dek: bytes, context: Context) -> WrappedKey:
        """Encrypt: 32 bytes become about 90, ASCII."""
        client = self._login()
        self._describe(client)
        data = self._call(
            lambda: client.secrets.transit.encrypt_data(
                self._settings.key_name,
                plaintext=encode64(dek),
                associated_data=encode64(context_bytes(context)),
                mount_point=self._settings.mount,
            )
        )
        wrapped = str(data.get("ciphertext", "")).encode()
        version = _version(wrapped)
        if not version:
            raise self._error(KeystoreUnavailable, "the answer has no ciphertext")
        return WrappedKey(wrapped, KeyRef(self._settings.key_id, version))

    def _unwrap(self, wrapped: bytes, context: Context, key: KeyRef) -> bytes:
        if not key.key_version or _version(wrapped) != key.key_version:
            raise self._error(CiphertextInvalid, "is not of the key version that was recorded")
        client = self._login()
        data = self._call(
            lambda: client.secrets.transit.decrypt_data(
                self._settings.key_name,
                ciphertext=wrapped.decode("ascii"),
                associated_data=encode64(context_bytes(context)),
                mount_point=self._settings.mount,
            )
        )
        try:
            return decode64(str(data.get("plaintext", "")))
        except ValueError:
            return b""

    def _describe(self, client: hvac.Client) -> KeyRef:
        transit, settings = client.secrets.transit, self._settings
        data = self._call(
            lambda: transit.read_key(settings.key_name, mount_point=settings.mount)  # type: ignore[no-untyped-call]
        )
        if data.get("soft_deleted"):
            raise self._error(KeyPendingDeletion, "the key is soft-deleted")
        if data.get("type") != KEY_TYPE or data.get("derived"):
            what = "a derived key" if data.get("derived") else data.get("type")
            raise self._error(ConfigurationInvalid, f"needs a key of type {KEY_TYPE}, not {what}")
        return KeyRef(settings.key_id, str(data.get("latest_version", "")))

    def _login(self) -> hvac.Client:
        settings = self._settings
        secret = settings.secret.read(f"keystore {self._name}")
        client = hvac.Client(
            url=settings.endpoint or settings.address,
            # Never None: hvac would look for a token in its own variables and files.
            token=secret if settings.auth == "token" else "",
            namespace=settings.namespace,
            verify=settings.authority,
            # hvac hands this to requests, which takes a pair too: to connect, and to wait for data.
            timeout=settings.timeouts,  # type: ignore[arg-type]
        )
        if settings.auth != "token":
            client.token = self._token(client, secret)
        return client

    def _token(self, client: hvac.Client, secret: str) -> str:
        settings = self._settings
        mount = settings.auth_mount or settings.auth

        def login() -> Any:
            if settings.auth == "approle":
                return client.auth.approle.login(settings.role_id, secret, use_token=False, mount_point=mount)
            return client.auth.kubernetes.login(settings.role, secret, use_token=False, mount_point=mount)

        try:
            return str(self._call(login, part="auth").get("client_token", ""))
        except (ConfigurationInvalid, KeyNotFound):
            # HTTP 400 "invalid role or secret ID", 404 "no handler for route".
            raise self._error(KeystoreAccessDenied, f"the {settings.auth} login at {mount} was refused") from None

    def _call(self, ask: Callable[[], Any], part: str = "data") -> dict[str, Any]:
        try:
            answer = ask()
        except hvac.exceptions.VaultError as error:
            raise self._translate(error) from None
        except requests.RequestException as error:
            raise self._error(KeystoreUnavailable, type(error).__name__) from None
        data = answer.get(part) if isinstance(answer, dict) else None
        if not isinstance(data, dict):
            raise self._error(KeystoreUnavailable, "the answer is not one of Transit")
        return data

    def _translate(self, error: hvac.exceptions.VaultError) -> MasterKeyError:
        text = str(error.args[0]) if error.args else ""
        if isinstance(error, hvac.exceptions.InvalidRequest | hvac.exceptions.InternalServerError):
            for words, kind, what in _WORDS:
                if words in text:
                    return self._error(kind, what)
        if isinstance(error, hvac.exceptions.InvalidRequest):
            return self._error(ConfigurationInvalid, "HTTP 400")
        for raised, kind, what in _KINDS:
            if isinstance(error, raised):
                return self._error(kind, what)
        return self._error(KeystoreUnavailable, "unexpected HTTP status")


def _version(wrapped: bytes) -> str:
    """The key version in a ciphertext's prefix, or "" if it is no Transit ciphertext."""
    found = _CIPHERTEXT.match(wrapped)
    return found[1].decode() if found else ""
