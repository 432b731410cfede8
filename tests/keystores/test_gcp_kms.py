"""Cloud KMS against drongo; what drongo does not do, against recorded answers of Google through the proxy.

The wording of the refusals is Google's: FAILED_PRECONDITION with its violation as `gcloud` shows it for a
disabled version, INVALID_ARGUMENT and PERMISSION_DENIED as in public issue threads.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

import google.auth
import pytest
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from google_crc32c import value as crc32c
from pydantic import ValidationError

from activities.crypto.context import context_bytes
from activities.keystores.kinds.base import KeyRef
from activities.keystores.kinds.gcp_kms import GcpKms, GcpKmsSettings
from deploy.emulators.fault_proxy import Answer, Change, Delay, FaultProxy, Hang, Reset
from tests.keystores.contract import CONTEXT, KeystoreContract, new_dek
from workers.local.drongo import KEY_RING, create_crypto_key
from workers.local.process import Service, free_port
from workflows.contracts.trust.errors import CiphertextInvalid, ConfigurationInvalid, MasterKeyError
from workflows.contracts.trust.service_errors import (
    KeyDisabled,
    KeyNotFound,
    KeyPendingDeletion,
    KeystoreAccessDenied,
    KeystoreThrottled,
    KeystoreUnavailable,
)

VERSION = f"{KEY_RING}/cryptoKeys/wrap/cryptoKeyVersions/1"


def opened(key_name: str, endpoint: str, **settings: object) -> GcpKms:
    fields = {"key_name": key_name, "endpoint": endpoint, "timeout_seconds": 4, **settings}
    return GcpKms("gcp-zrh", GcpKmsSettings.model_validate(fields))


def refusal(http: int, status: str, message: str, details: list[Mapping[str, Any]] | None = None) -> Answer:
    """An error as Google writes it."""
    error = {"code": http, "message": message, "status": status, "details": details or []}
    return Answer(http, {"Content-Type": "application/json"}, json.dumps({"error": error}).encode())


def not_enabled(state: str, message: str = f"{VERSION} is not enabled, current state is: {{}}.") -> Answer:
    violation = {"type": f"KEY_{state}", "subject": VERSION}
    detail = {"@type": "type.googleapis.com/google.rpc.PreconditionFailure", "violations": [violation]}
    return refusal(400, "FAILED_PRECONDITION", message.format(state), [detail])


@pytest.fixture(scope="session")
def key_name(drongo: Service) -> str:
    return create_crypto_key(drongo.endpoint, "wrap")


@pytest.fixture
def keystore(drongo: Service, key_name: str) -> GcpKms:
    return opened(key_name, drongo.endpoint)


@pytest.fixture
def other_keystore(drongo: Service) -> GcpKms:
    return opened(create_crypto_key(drongo.endpoint, "other"), drongo.endpoint)


@pytest.fixture
def missing_keystore(drongo: Service) -> GcpKms:
    return opened(f"{KEY_RING}/cryptoKeys/missing", drongo.endpoint)


@pytest.fixture
def proxied(drongo_proxy: FaultProxy, key_name: str) -> GcpKms:
    return opened(key_name, drongo_proxy.url)


class TestContract(KeystoreContract):
    def test_every_wrap_is_fresh(self) -> None:  # type: ignore[override]
        pytest.skip("drongo encodes instead of encrypting: its ciphertexts are all alike")

    def test_what_was_wrapped_is_unwrapped_by_its_primary_version(self, keystore: GcpKms, key_name: str) -> None:
        assert keystore.describe() == KeyRef(key_name, "1")
        assert keystore.wrap(new_dek(), CONTEXT).key == KeyRef(key_name, "1")


def test_every_request_carries_its_checksums(proxied: GcpKms, drongo_proxy: FaultProxy) -> None:
    dek, aad = new_dek(), context_bytes(CONTEXT)
    wrapped = proxied.wrap(dek, CONTEXT)
    proxied.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)
    encrypt, decrypt = (request.json() for request in drongo_proxy.requests)
    assert base64.b64decode(encrypt["additionalAuthenticatedData"]) == aad
    assert base64.b64decode(decrypt["additionalAuthenticatedData"]) == aad
    assert int(encrypt["plaintextCrc32c"]) == crc32c(dek)
    assert int(encrypt["additionalAuthenticatedDataCrc32c"]) == crc32c(aad)
    assert int(decrypt["ciphertextCrc32c"]) == crc32c(wrapped.wrapped)
    assert int(decrypt["additionalAuthenticatedDataCrc32c"]) == crc32c(aad)


@pytest.mark.parametrize(
    "changed",
    [
        {"verifiedPlaintextCrc32c": False},
        {"verifiedPlaintextCrc32c": None},
        {"verifiedAdditionalAuthenticatedDataCrc32c": False},
        {"ciphertextCrc32c": "1"},
        {"ciphertextCrc32c": None},
        {"ciphertext": "QUFBQQ=="},
    ],
    ids=str,
)
def test_a_wrap_damaged_on_its_way_is_tried_again(
    proxied: GcpKms, drongo_proxy: FaultProxy, changed: dict[str, object]
) -> None:
    drongo_proxy.rule = Change(changed)
    with pytest.raises(KeystoreUnavailable):
        proxied.wrap(new_dek(), CONTEXT)


@pytest.mark.parametrize(
    "changed", [{"plaintextCrc32c": "1"}, {"plaintextCrc32c": None}, {"plaintext": "QUFBQQ=="}], ids=str
)
def test_an_unwrap_damaged_on_its_way_is_tried_again(
    proxied: GcpKms, drongo_proxy: FaultProxy, changed: dict[str, object]
) -> None:
    wrapped = proxied.wrap(new_dek(), CONTEXT)
    drongo_proxy.rule = Change(changed)
    with pytest.raises(KeystoreUnavailable):
        proxied.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)


def test_a_plaintext_of_another_length_is_refused(proxied: GcpKms, drongo_proxy: FaultProxy) -> None:
    wrapped = proxied.wrap(new_dek(), CONTEXT)
    short = {"plaintext": base64.b64encode(b"short").decode(), "plaintextCrc32c": str(crc32c(b"short"))}
    drongo_proxy.rule = Change(short)
    with pytest.raises(CiphertextInvalid):
        proxied.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)


def test_the_version_that_wrapped_is_recorded(proxied: GcpKms, drongo_proxy: FaultProxy, key_name: str) -> None:
    drongo_proxy.rule = Change({"name": f"{key_name}/cryptoKeyVersions/7"})
    assert proxied.wrap(new_dek(), CONTEXT).key == KeyRef(key_name, "7")


def test_a_wrap_by_another_key_than_the_configured_one_is_refused(proxied: GcpKms, drongo_proxy: FaultProxy) -> None:
    drongo_proxy.rule = Change({"name": f"{KEY_RING}/cryptoKeys/other/cryptoKeyVersions/1"})
    with pytest.raises(ConfigurationInvalid):
        proxied.wrap(new_dek(), CONTEXT)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refusal(400, "INVALID_ARGUMENT", "Decryption failed: verify that 'name' refers to ..."), CiphertextInvalid),
        (refusal(400, "INVALID_ARGUMENT", "The checksum in ciphertext_crc32c did not match ..."), KeystoreUnavailable),
        (not_enabled("DISABLED"), KeyDisabled),
        (not_enabled("DISABLED", "some other wording"), KeyDisabled),
        (not_enabled("DESTROY_SCHEDULED"), KeyPendingDeletion),
        (not_enabled("DESTROYED"), KeyNotFound),
        (refusal(400, "FAILED_PRECONDITION", "an external key manager is not reachable"), KeystoreUnavailable),
        (refusal(401, "UNAUTHENTICATED", "Request had invalid credentials."), KeystoreAccessDenied),
        (refusal(403, "PERMISSION_DENIED", "Permission ... denied (or it may not exist)."), KeystoreAccessDenied),
        (refusal(404, "NOT_FOUND", "CryptoKey ... not found."), KeyNotFound),
        (refusal(429, "RESOURCE_EXHAUSTED", "Quota exceeded for ..."), KeystoreThrottled),
        (refusal(409, "ABORTED", "..."), KeystoreUnavailable),
        (refusal(500, "INTERNAL", "..."), KeystoreUnavailable),
        (refusal(503, "UNAVAILABLE", "The service is currently unavailable."), KeystoreUnavailable),
        (refusal(504, "DEADLINE_EXCEEDED", "..."), KeystoreUnavailable),
        (Answer(502, {"Content-Type": "text/html"}, b"<html>a load balancer</html>"), KeystoreUnavailable),
        (Answer(200, {"Content-Type": "text/html"}, b"<html>a captive portal</html>"), KeystoreUnavailable),
        (Reset(), KeystoreUnavailable),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_an_answer_of_google_becomes_the_error_that_it_means(
    proxied: GcpKms, drongo_proxy: FaultProxy, answer: Answer, expected: type[MasterKeyError]
) -> None:
    wrapped = proxied.wrap(new_dek(), CONTEXT)
    drongo_proxy.requests.clear()
    drongo_proxy.rule = answer
    with pytest.raises(expected) as caught:
        proxied.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)
    assert caught.value.subject == "gcp-zrh"
    assert "gcp-zrh" in caught.value.message
    assert KEY_RING not in caught.value.message, "no body of an answer in a message"
    assert len(drongo_proxy.requests) == 1, "the workflow retries, not the SDK"


def test_an_argument_that_is_invalid_when_wrapping_is_a_mistake_in_the_configuration(
    proxied: GcpKms, drongo_proxy: FaultProxy
) -> None:
    drongo_proxy.rule = refusal(400, "INVALID_ARGUMENT", "Resource name [...] is not valid")
    with pytest.raises(ConfigurationInvalid):
        proxied.wrap(new_dek(), CONTEXT)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("DISABLED", KeyDisabled),
        ("DESTROY_SCHEDULED", KeyPendingDeletion),
        ("DESTROYED", KeyNotFound),
        ("PENDING_IMPORT", KeystoreUnavailable),
        ("IMPORT_FAILED", KeyNotFound),
    ],
)
def test_describe_refuses_a_primary_version_that_cannot_be_used(
    proxied: GcpKms, drongo_proxy: FaultProxy, state: str, expected: type[MasterKeyError]
) -> None:
    drongo_proxy.rule = Change({"primary": {"name": VERSION, "state": state}})
    with pytest.raises(expected):
        proxied.describe()


def test_describe_refuses_a_key_without_primary_version(proxied: GcpKms, drongo_proxy: FaultProxy) -> None:
    drongo_proxy.rule = Change({"primary": None})
    with pytest.raises(KeyNotFound):
        proxied.describe()


def test_describe_refuses_a_key_of_another_purpose(proxied: GcpKms, drongo_proxy: FaultProxy) -> None:
    drongo_proxy.rule = Change({"purpose": "ASYMMETRIC_SIGN"})
    with pytest.raises(ConfigurationInvalid):
        proxied.describe()


@pytest.mark.parametrize(
    "failure",
    [
        DefaultCredentialsError("no credentials found"),  # type: ignore[no-untyped-call]
        RefreshError("invalid_grant"),  # type: ignore[no-untyped-call]
    ],
    ids=lambda value: type(value).__name__,
)
def test_missing_or_expired_credentials_deny_access_at_the_first_call(
    key_name: str, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(google.auth, "default", fail)
    keystore = opened(key_name, f"https://127.0.0.1:{free_port()}")
    with pytest.raises(KeystoreAccessDenied):
        keystore.describe()


def test_an_emulator_gets_no_credentials(proxied: GcpKms, drongo_proxy: FaultProxy) -> None:
    proxied.describe()
    assert "authorization" not in {name.lower() for name in drongo_proxy.requests[0].headers}


def test_a_refused_connection_is_an_outage(key_name: str) -> None:
    with pytest.raises(KeystoreUnavailable):
        opened(key_name, f"http://127.0.0.1:{free_port()}").describe()


@pytest.mark.parametrize("rule", [Hang(), Delay(3.0)], ids=["it never answers", "it answers too late"])
def test_a_call_that_hangs_ends_in_time(drongo_proxy: FaultProxy, key_name: str, rule: Hang | Delay) -> None:
    keystore = opened(key_name, drongo_proxy.url, timeout_seconds=0.5)
    drongo_proxy.rule = rule
    started = time.monotonic()
    with pytest.raises(KeystoreUnavailable):
        keystore.wrap(new_dek(), CONTEXT)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("key_name", ["wrap", VERSION, f"https://cloudkms.example/{VERSION}"])
def test_a_name_that_is_no_crypto_key_is_refused(key_name: str) -> None:
    with pytest.raises(ValidationError):
        GcpKmsSettings(key_name=key_name)
