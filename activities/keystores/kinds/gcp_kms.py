"""Google Cloud KMS: a symmetric CryptoKey wraps DEKs, bound by additional authenticated data.

Every transfer is checked with CRC32C in both directions, as Google asks for; a mismatch is a damaged transfer,
to be tried again. The version that wrapped is recorded; on Decrypt Google chooses the version itself, from the
ciphertext. The REST transport is used always, because gRPC does not survive a fork. Credentials come from the
SDK's own chain (Application Default Credentials), except that an `http://` endpoint, an emulator, gets none.

Sources: https://cloud.google.com/kms/docs/data-integrity-guidelines, https://cloud.google.com/kms/docs/key-states
and the fields of `google.cloud.kms.v1`. What Google does not tell apart: a key that may not be used and a key
that does not exist are both PERMISSION_DENIED to who may not list keys; a wrong key, altered ciphertext and
another context are all INVALID_ARGUMENT.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, TypeVar

import google.auth.exceptions
import requests
from google.api_core.exceptions import GoogleAPICallError
from google.auth.credentials import AnonymousCredentials
from google.cloud import kms_v1
from google.protobuf.json_format import ParseError
from google_crc32c import value as crc32c
from pydantic import Field

from activities.crypto.context import Context, context_bytes
from activities.keystores.kinds.base import BaseKeystore, KeyRef, KeystoreSettings, WrappedKey
from workflows.contracts.trust.errors import CiphertextInvalid, ConfigurationInvalid, MasterKeyError
from workflows.contracts.trust.service_errors import (
    KeyDisabled,
    KeyNotFound,
    KeyPendingDeletion,
    KeystoreAccessDenied,
    KeystoreThrottled,
    KeystoreUnavailable,
)

T = TypeVar("T")

_VERSION = "/cryptoKeyVersions/"
_KEY_NAME = r"^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$"

_HTTP: dict[int, type[MasterKeyError]] = {
    400: ConfigurationInvalid,
    401: KeystoreAccessDenied,
    403: KeystoreAccessDenied,
    404: KeyNotFound,
    429: KeystoreThrottled,
}

_STATES: dict[str, type[MasterKeyError]] = {
    "DISABLED": KeyDisabled,
    "DESTROY_SCHEDULED": KeyPendingDeletion,
    "DESTROYED": KeyNotFound,
    "GENERATION_FAILED": KeyNotFound,
    "IMPORT_FAILED": KeyNotFound,
    "EXTERNAL_DESTRUCTION_FAILED": KeyNotFound,
    "PENDING_EXTERNAL_DESTRUCTION": KeyPendingDeletion,
}

# FAILED_PRECONDITION names the state in its message, and the kind of violation in its details.
_STATE_IN_MESSAGE = re.compile(r"current state is:? ([A-Z_]+)")
_VIOLATION = "type.googleapis.com/google.rpc.PreconditionFailure"


class GcpKmsSettings(KeystoreSettings):
    """Settings of a Cloud KMS key.

    Attributes:
        key_name: `projects/P/locations/L/keyRings/R/cryptoKeys/K`, without version, as Google writes it.
    """

    type: Literal["gcp-kms"] = "gcp-kms"
    key_name: str = Field(pattern=_KEY_NAME)


class GcpKms(BaseKeystore[GcpKmsSettings]):
    """A Cloud KMS key as a `Keystore`."""

    SERVICE = "Cloud KMS"

    def __init__(self, name: str, settings: GcpKmsSettings) -> None:
        super().__init__(name, settings)
        self._opened: kms_v1.KeyManagementServiceClient | None = None

    def describe(self) -> KeyRef:
        """GetCryptoKey: the key and its primary version, if that is enabled.

        Raises:
            KeyDisabled, KeyPendingDeletion, KeyNotFound, KeystoreUnavailable: state of the primary version.
            ConfigurationInvalid: it is no symmetric encryption key, or goes by another name.
            KeystoreError: as for any call.
        """
        request = kms_v1.GetCryptoKeyRequest(name=self._settings.key_name)
        key = self._call(lambda kms: kms.get_crypto_key(request, retry=None, timeout=self._settings.timeout_seconds))
        purpose = _enum_name(key.purpose)
        if purpose != "ENCRYPT_DECRYPT":
            raise self._error(ConfigurationInvalid, f"needs purpose ENCRYPT_DECRYPT, not {purpose}")
        if not key.primary.name:
            raise self._error(KeyNotFound, "the key has no primary version")
        state = _enum_name(key.primary.state)
        if state != "ENABLED":
            raise self._error(_STATES.get(state, KeystoreUnavailable), f"primary version is {state}")
        return self._key_ref(key.primary.name)

    def _is_own(self, key: KeyRef) -> bool:
        return key.key_id == self._settings.key_name

    def _wrap(self, dek: bytes, context: Context) -> WrappedKey:
        """Encrypt: 32 bytes become a little over 100."""
        aad = context_bytes(context)
        request = kms_v1.EncryptRequest(
            name=self._settings.key_name,
            plaintext=dek,
            additional_authenticated_data=aad,
            plaintext_crc32c=crc32c(dek),
            additional_authenticated_data_crc32c=crc32c(aad),
        )
        answer = self._call(lambda kms: kms.encrypt(request, retry=None, timeout=self._settings.timeout_seconds))
        if not answer.verified_plaintext_crc32c or not answer.verified_additional_authenticated_data_crc32c:
            raise self._error(KeystoreUnavailable, "the request was damaged on its way (CRC32C not verified)")
        if answer.ciphertext_crc32c != crc32c(answer.ciphertext):
            raise self._error(KeystoreUnavailable, "the answer was damaged on its way (CRC32C)")
        return WrappedKey(answer.ciphertext, self._key_ref(answer.name))

    def _unwrap(self, wrapped: bytes, context: Context, key: KeyRef) -> bytes:
        """Decrypt; Google takes the version from the ciphertext, and says INVALID_ARGUMENT of what it cannot open."""
        aad = context_bytes(context)
        request = kms_v1.DecryptRequest(
            name=self._settings.key_name,
            ciphertext=wrapped,
            additional_authenticated_data=aad,
            ciphertext_crc32c=crc32c(wrapped),
            additional_authenticated_data_crc32c=crc32c(aad),
        )
        answer = self._call(
            lambda kms: kms.decrypt(request, retry=None, timeout=self._settings.timeout_seconds),
            invalid_argument=CiphertextInvalid,
        )
        if answer.plaintext_crc32c != crc32c(answer.plaintext):
            raise self._error(KeystoreUnavailable, "the answer was damaged on its way (CRC32C)")
        return bytes(answer.plaintext)

    def _key_ref(self, version_name: str) -> KeyRef:
        """The key and version of an answer, which must be of the key that was asked for."""
        key_name, _, version = version_name.partition(_VERSION)
        if key_name != self._settings.key_name or not version:
            raise self._error(
                ConfigurationInvalid, f"asked for {self._settings.key_name}, answered for {key_name or 'no key'}"
            )
        return KeyRef(key_name, version)

    def _client(self) -> kms_v1.KeyManagementServiceClient:
        if self._opened is None:
            endpoint = self._settings.endpoint
            emulated = endpoint is not None and endpoint.startswith("http://")
            self._opened = kms_v1.KeyManagementServiceClient(
                transport="rest",
                credentials=AnonymousCredentials() if emulated else None,  # type: ignore[no-untyped-call]
                client_options={"api_endpoint": endpoint} if endpoint else None,
            )
            if self._settings.ca_file:
                # The SDK offers no other way; this is the session of the calls, not that of the credentials.
                self._opened.transport._session.verify = str(self._settings.ca_file)  # type: ignore[attr-defined]
        return self._opened

    def _call(
        self,
        ask: Callable[[kms_v1.KeyManagementServiceClient], T],
        invalid_argument: type[MasterKeyError] = ConfigurationInvalid,
    ) -> T:
        try:
            return ask(self._client())
        except GoogleAPICallError as error:
            raise self._translate(error, invalid_argument) from None
        except google.auth.exceptions.TransportError as error:
            raise self._error(KeystoreUnavailable, type(error).__name__) from None
        except google.auth.exceptions.GoogleAuthError as error:
            kind = KeystoreUnavailable if error.retryable else KeystoreAccessDenied
            raise self._error(kind, f"no credentials: {type(error).__name__}") from None
        except (requests.RequestException, ParseError) as error:
            raise self._error(KeystoreUnavailable, type(error).__name__) from None

    def _translate(self, error: GoogleAPICallError, invalid_argument: type[MasterKeyError]) -> MasterKeyError:
        http = int(error.code or 0)
        status, message, violations = _payload(error)
        if status == "FAILED_PRECONDITION":
            state = _STATE_IN_MESSAGE.search(message)
            if state:
                return self._error(_STATES.get(state[1], KeystoreUnavailable), f"{status}: key version is {state[1]}")
            kind: type[MasterKeyError] = KeyDisabled if "KEY_DISABLED" in violations else KeystoreUnavailable
            return self._error(kind, " ".join([status, *violations]))
        if status == "INVALID_ARGUMENT":
            # A checksum that does not match what arrived means a damaged transfer, not a damaged ciphertext.
            kind = KeystoreUnavailable if "crc32c" in message.lower() else invalid_argument
            return self._error(kind, status)
        kind = _HTTP.get(http, ConfigurationInvalid if 400 < http < 500 else KeystoreUnavailable)
        if http in (408, 409, 499):
            kind = KeystoreUnavailable
        return self._error(kind, status or f"HTTP {http}")


def _enum_name(value: int) -> str:
    """Name of an enumeration's value; its number when it is newer than this SDK."""
    return str(getattr(value, "name", value))


def _payload(error: GoogleAPICallError) -> tuple[str, str, list[str]]:
    """Status name, message and types of precondition violations of an answer, each empty if absent."""
    try:
        body = error.response.json()["error"]
        status, message = str(body.get("status", "")), str(body.get("message", ""))
        violations = [
            str(violation.get("type", ""))
            for detail in body.get("details", ())
            if detail.get("@type") == _VIOLATION
            for violation in detail.get("violations", ())
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        # Not Google's JSON: a proxy or a load balancer answered.
        return "", "", []
    return status, message, violations
