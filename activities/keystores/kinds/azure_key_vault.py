"""Azure Key Vault and Managed HSM: an RSA key wraps DEKs with RSA-OAEP-256, an AES key with A256GCM.

Every operation goes to the service, none is done locally with a public key: the SDK's `CryptographyClient`
would wrap locally, ask nobody, and not say which version it used. So the SDK's own `KeyClient.send_request` is
used, for its authentication, time-outs and TLS. Key Vault itself wraps with a disabled key and refuses only to
unwrap (Azure/azure-sdk-for-python issue 45342): a wrap therefore reads the key first, and checks its state.

The version that wrapped is recorded, and an unwrap asks for exactly that one, whatever was rotated since.
Neither expiry nor activation date prevents an unwrap, in Key Vault as here. A soft-deleted key is "not found"
to everybody who uses it; only its entry among the deleted keys tells the difference.

A backup restored into another vault is the same key under another id, which nothing here can tell.

Permissions needed: keys/get and wrapKey, unwrapKey (RSA) or encrypt, decrypt (AES). Credentials come from
`DefaultAzureCredential`, which says "authentication failed" of an unreachable identity service too. Source:
https://learn.microsoft.com/rest/api/keyvault/keys/ (2025-07-01) and .../key-vault/general/rest-error-codes.
"""

from __future__ import annotations

import re
import time
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from azure.core.credentials import AccessToken, TokenCredential
from azure.core.exceptions import AzureError, ClientAuthenticationError
from azure.core.rest import HttpRequest, HttpResponse
from azure.identity import DefaultAzureCredential
from azure.keyvault.keys import KeyClient
from pydantic import model_validator

from activities.crypto.context import Context, bind_context, context_bytes
from activities.crypto.envelope import DEK_BYTES
from activities.keystores.kinds.base import (
    BaseKeystore,
    KeyRef,
    KeystoreSettings,
    SecretReference,
    WrappedKey,
    secret_reference,
)
from workflows.contracts.trust.errors import CiphertextInvalid, ConfigurationInvalid, MasterKeyError
from workflows.contracts.trust.service_errors import (
    KeyDisabled,
    KeyNotFound,
    KeyPendingDeletion,
    KeystoreAccessDenied,
    KeystoreThrottled,
    KeystoreUnavailable,
)

OAEP_FORMAT, GCM_FORMAT = b"\x01", b"\x02"
"""First byte of a wrapped DEK: an RSA ciphertext (256, 384 or 512 bytes), or iv (12), tag (16), ciphertext (32)."""

_IV_BYTES, _TAG_BYTES = 12, 16
_RSA_CIPHERTEXT_BYTES = (256, 384, 512)
_KEY_URL = re.compile(
    r"^https://(?P<host>[A-Za-z0-9.-]+(?::[0-9]+)?)/keys/(?P<name>[A-Za-z0-9-]{1,127})(?:/(?P<version>[0-9a-f]{32}))?/?$"
)
_VERSION = re.compile(r"^[0-9a-f]{32}$")
_CODE = re.compile(r"^[A-Za-z0-9_]{1,64}$")
_RSA_OPERATIONS, _AES_OPERATIONS = {"wrapKey", "unwrapKey"}, {"encrypt", "decrypt"}

_CODES: dict[str, type[MasterKeyError]] = {
    "KeyDisabled": KeyDisabled,
    "ObjectIsDeletedButRecoverable": KeyPendingDeletion,
    "ObjectIsBeingDeleted": KeyPendingDeletion,
    "ObjectIsBeingRecovered": KeystoreUnavailable,
}
"""What the inner error code tells; for the rest the HTTP status does."""


class AzureKeyVaultSettings(KeystoreSettings):
    """Settings of a key in Key Vault or a Managed HSM.

    Attributes:
        key_id: the key's URL, `https://VAULT.vault.azure.net/keys/NAME` or
            `https://HSM.managedhsm.azure.net/keys/NAME`; with `/VERSION`, wraps use that one, else the current.
        endpoint: an `https` URL to connect to instead of `key_id`'s host.
        token_env: environment variable of a fixed bearer token, for an emulator or a gateway.
        token_file: file of that token. Refused without `endpoint`: Azure itself takes no fixed tokens.
    """

    type: Literal["azure-key-vault"] = "azure-key-vault"
    key_id: str
    token_env: str | None = None
    token_file: Path | None = None

    @model_validator(mode="after")
    def _consistent(self) -> AzureKeyVaultSettings:
        if not _KEY_URL.match(self.key_id):
            raise ValueError("key_id is not the URL of a key: https://HOST/keys/NAME or https://HOST/keys/NAME/VERSION")
        if self.endpoint is not None and not self.endpoint.startswith("https://"):
            raise ValueError("endpoint: the SDK sends tokens over https only")
        if self.token is not None and self.endpoint is None:
            raise ValueError("a fixed token is for an endpoint only: set endpoint, or leave the token out")
        return self

    @property
    def parts(self) -> tuple[str, str, str]:
        """Resolved key id (lower case, no version), name, and the pinned version or ""."""
        return _resolve(self.key_id)

    @property
    def token(self) -> SecretReference | None:
        """Where the fixed token is to be read, if there is one."""
        return secret_reference("token", self.token_env, self.token_file)


class AzureKeyVault(BaseKeystore[AzureKeyVaultSettings]):
    """A key in Key Vault or a Managed HSM as a `Keystore`."""

    SERVICE = "Azure Key Vault"

    def __init__(self, name: str, settings: AzureKeyVaultSettings) -> None:
        super().__init__(name, settings)
        self._key_id, self._key_name, self._pinned = settings.parts

    def describe(self) -> KeyRef:
        """Get the key: its URL and version, if it is enabled, valid now, and of a kind that wraps.

        Raises:
            KeyDisabled: it is disabled, not yet valid, or expired.
            ConfigurationInvalid: it is of another kind, or its operations do not allow wrapping.
            KeystoreError: as for any call.
        """
        return self._usable_key(self._client())[0]

    def _is_own(self, key: KeyRef) -> bool:
        return key.key_id == self._key_id

    def _wrap(self, dek: bytes, context: Context) -> WrappedKey:
        """Wrap: 32 bytes become 257 to 513 under an RSA key, 61 under an AES key; KeyDisabled as in `describe`."""
        client = self._client()
        key, is_rsa = self._usable_key(client)
        if is_rsa:
            # RSA-OAEP takes no associated data: the context's hash travels inside.
            body = {"alg": "RSA-OAEP-256", "value": _encode(bind_context(dek, context))}
            answer = self._operate(client, key, "wrapkey", body)
            wrapped = OAEP_FORMAT + self._bytes(answer, "value", *_RSA_CIPHERTEXT_BYTES)
        else:
            body = {"alg": "A256GCM", "value": _encode(dek), "aad": _encode(context_bytes(context))}
            answer = self._operate(client, key, "encrypt", body)
            sizes = {"iv": _IV_BYTES, "tag": _TAG_BYTES, "value": DEK_BYTES}
            wrapped = GCM_FORMAT + b"".join(self._bytes(answer, field, size) for field, size in sizes.items())
        return WrappedKey(wrapped, key, "rsa-oaep" if is_rsa else "aes-gcm")

    def _unwrap(self, wrapped: bytes, context: Context, key: KeyRef) -> bytes:
        if not _VERSION.match(key.key_version):
            raise self._error(CiphertextInvalid, "the key version that was recorded is none of Key Vault")
        form, data = wrapped[:1], wrapped[1:]
        if form == OAEP_FORMAT and len(data) in _RSA_CIPHERTEXT_BYTES:
            answer = self._operate(self._client(), key, "unwrapkey", {"alg": "RSA-OAEP-256", "value": _encode(data)})
            return self._unbind(self._bytes(answer, "value"), context)
        if form == GCM_FORMAT and len(data) == _IV_BYTES + _TAG_BYTES + DEK_BYTES:
            body = {
                "alg": "A256GCM",
                "iv": _encode(data[:_IV_BYTES]),
                "tag": _encode(data[_IV_BYTES : _IV_BYTES + _TAG_BYTES]),
                "value": _encode(data[_IV_BYTES + _TAG_BYTES :]),
                "aad": _encode(context_bytes(context)),
            }
            return self._bytes(self._operate(self._client(), key, "decrypt", body), "value", DEK_BYTES)
        raise self._error(CiphertextInvalid, "no wrapped DEK has this form and length")

    def _usable_key(self, client: KeyClient) -> tuple[KeyRef, bool]:
        """The key that wraps now, and whether it is an RSA key."""
        bundle = self._ask(client, "GET", f"/keys/{self._key_name}/{self._pinned}")
        key, attributes = bundle.get("key"), bundle.get("attributes")
        if not isinstance(key, dict) or not isinstance(attributes, dict):
            raise self._error(KeystoreUnavailable, "the answer is not one of Key Vault")
        key_id, _, version = _resolve(str(key.get("kid")))
        if key_id != self._key_id or not version:
            raise self._error(KeystoreUnavailable, "the answer is about another key than the one asked for")
        if attributes.get("enabled") is not True:
            raise self._error(KeyDisabled, "the key is disabled")
        now = time.time()
        if now < attributes.get("nbf", now) or now >= attributes.get("exp", now + 1):
            what = "the key is not yet valid" if now < attributes.get("nbf", now) else "the key has expired"
            raise self._error(KeyDisabled, what, next_step="change its activation or expiry date, or rotate it")
        kind, size = key.get("kty"), attributes.get("key_size", 256)
        is_rsa = kind in ("RSA", "RSA-HSM")
        if not is_rsa and (kind != "oct-HSM" or size != 256):
            raise self._error(ConfigurationInvalid, f"needs an RSA or a 256-bit oct-HSM key, not {kind}")
        missing = (_RSA_OPERATIONS if is_rsa else _AES_OPERATIONS) - set(key.get("key_ops") or ())
        if missing:
            raise self._error(ConfigurationInvalid, f"the key's operations lack {', '.join(sorted(missing))}")
        return KeyRef(key_id, version), is_rsa

    def _operate(self, client: KeyClient, key: KeyRef, operation: str, body: dict[str, str]) -> dict[str, Any]:
        answer = self._ask(client, "POST", f"/keys/{self._key_name}/{key.key_version}/{operation}", body)
        key_id, _, version = _resolve(str(answer.get("kid")))
        if (key_id, version) != (key.key_id, key.key_version):
            raise self._error(KeystoreUnavailable, "another key or version answered than the one asked for")
        return answer

    def _client(self) -> KeyClient:
        """A client for one call: it keeps a token, which is not to outlive the call."""
        settings, (connect, read) = self._settings, self._settings.timeouts
        limits: dict[str, Any] = {"connection_timeout": connect, "read_timeout": read, "retry_total": 0}
        credential: TokenCredential
        if settings.token is not None:
            credential = _FixedToken(settings.token.read(f"keystore {self._name}"))
        else:
            credential = DefaultAzureCredential(process_timeout=max(1, int(settings.timeout_seconds)), **limits)
        return KeyClient(
            settings.endpoint or self._key_id.partition("/keys/")[0],
            credential,
            # Else a service could ask for a token that opens another one. A fixed token opens only its own.
            verify_challenge_resource=settings.token is None,
            connection_verify=settings.authority,
            permit_redirects=False,
            **limits,
        )

    def _ask(self, client: KeyClient, method: str, path: str, body: Mapping[str, str] | None = None) -> dict[str, Any]:
        response = self._send(client, HttpRequest(method, path, json=body))
        content = _json(response)
        if response.status_code == 404 and "error" in content:
            raise self._missing(client)
        if response.status_code != 200:
            raise self._error_of(response.status_code, content, opening=path.endswith(("/unwrapkey", "/decrypt")))
        return content

    def _send(self, client: KeyClient, request: HttpRequest) -> HttpResponse:
        try:
            return client.send_request(request)
        except ClientAuthenticationError as error:
            raise self._error(KeystoreAccessDenied, f"no token: {type(error).__name__}") from None
        except AzureError as error:
            raise self._error(KeystoreUnavailable, type(error).__name__) from None
        except ValueError:
            # The SDK's own check: a token would go to a host that is none of the resource's.
            raise self._error(KeystoreAccessDenied, "the challenge names another service than the key's") from None

    def _missing(self, client: KeyClient) -> MasterKeyError:
        """What "not found" means: only the list of deleted keys tells."""
        try:
            deleted = self._send(client, HttpRequest("GET", f"/deletedkeys/{self._key_name}")).status_code == 200
        except MasterKeyError:
            deleted = False
        if deleted:
            return self._error(
                KeyPendingDeletion, "the key is soft-deleted", next_step="recover it before it is purged"
            )
        return self._error(KeyNotFound, "no such key or version")

    def _error_of(self, status: int, content: Mapping[str, Any], *, opening: bool) -> MasterKeyError:
        """The error for an answer other than 200; `opening` a ciphertext, 400 is a verdict on it."""
        codes = _error_codes(content)
        what = f"HTTP {status}" + "".join(f" {code}" for code in codes)
        for code in codes:
            if code in _CODES:
                return self._error(_CODES[code], what)
        if status == 400:
            return self._error(CiphertextInvalid if opening else ConfigurationInvalid, what)
        if status in (401, 403):
            return self._error(KeystoreAccessDenied, what)
        return self._error(KeystoreThrottled if status == 429 else KeystoreUnavailable, what)

    def _bytes(self, answer: Mapping[str, Any], field: str, *lengths: int) -> bytes:
        """A field of an answer, decoded; of one of these lengths, if any are given."""
        try:
            data = _decode(answer[field])
        except (KeyError, TypeError, ValueError):
            data = b""
        if not data or (lengths and len(data) not in lengths):
            raise self._error(KeystoreUnavailable, f"the answer's {field} is not what was asked for")
        return data


class _FixedToken:
    """A credential that is one token, whoever asks."""

    def __init__(self, token: str) -> None:
        self._token = token

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3600)


def _resolve(url: str) -> tuple[str, str, str]:
    """Key id without version (names and hosts ignore case), name, and version or ""; empty if it is no key URL."""
    found = _KEY_URL.match(url)
    if not found:
        return "", "", ""
    return f"https://{found['host']}/keys/{found['name']}".lower(), found["name"], found["version"] or ""


def _json(response: HttpResponse) -> dict[str, Any]:
    try:
        content = response.json()
    except (ValueError, AzureError):
        content = None
    return content if isinstance(content, dict) else {}


def _error_codes(content: Mapping[str, Any]) -> list[str]:
    """The error's code and its inner codes, outermost first; never its message, which quotes the request."""
    codes: list[str] = []
    error = content.get("error")
    while isinstance(error, dict) and len(codes) < 4:
        code = error.get("code")
        codes += [code] if isinstance(code, str) and _CODE.match(code) else []
        error = error.get("innererror") or error.get("innerError")
    return codes


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    return b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
