"""Azure Key Vault and Managed HSM against the stand-in, and against recorded answers; faults through the proxy."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from azure.keyvault.keys import KeyClient
from pydantic import ValidationError

from activities.keystores.kinds import azure_key_vault
from activities.keystores.kinds.azure_key_vault import AzureKeyVault, AzureKeyVaultSettings
from activities.keystores.kinds.base import KeyRef
from deploy.emulators.fault_proxy import Answer, Change, Hang, Reset
from tests.keystores.contract import CONTEXT, KeystoreContract, altered, new_dek
from tests.keystores.tls_proxy import TlsFaultProxy
from workers.local.key_vault import KeyVault
from workers.local.process import free_port
from workflows.contracts.trust.errors import CiphertextInvalid, ConfigurationInvalid, MasterKeyError
from workflows.contracts.trust.service_errors import (
    KeyDisabled,
    KeyNotFound,
    KeyPendingDeletion,
    KeystoreAccessDenied,
    KeystoreThrottled,
    KeystoreUnavailable,
)

RECORDINGS = Path(__file__).parent.parent / "data" / "azure-key-vault"
TIMEOUT = 2.0


def opened(vault: KeyVault, key_name: str, **changes: object) -> AzureKeyVault:
    """The keystore of a key."""
    table = {**vault.settings(f"{vault.url}/keys/{key_name}"), "timeout_seconds": TIMEOUT, **changes}
    return AzureKeyVault("azure-ams", AzureKeyVaultSettings.model_validate(table))


@pytest.fixture(scope="session")
def keys(key_vault: KeyVault, managed_hsm: KeyVault) -> None:
    for name in ("wrap", "other"):
        key_vault.create_key(name, size=2048)
        managed_hsm.create_key(name, "oct-HSM")


@pytest.fixture
def own_key(key_vault: KeyVault) -> str:
    """A key for one test."""
    name = f"own-{secrets.token_hex(4)}"
    key_vault.create_key(name, size=2048)
    return name


@pytest.fixture
def proxied(key_vault: KeyVault, key_vault_proxy: TlsFaultProxy, keys: None) -> AzureKeyVault:
    return through(key_vault, key_vault_proxy, "wrap")


def through(vault: KeyVault, proxy: TlsFaultProxy, key_name: str) -> AzureKeyVault:
    """The keystore of a key, by way of the proxy."""
    return opened(vault, key_name, endpoint=proxy.url, ca_file=str(proxy.ca_file))


class TestKeyVault(KeystoreContract):
    """An RSA key in a vault."""

    @pytest.fixture
    def keystore(self, key_vault: KeyVault, keys: None) -> AzureKeyVault:
        return opened(key_vault, "wrap")

    @pytest.fixture
    def other_keystore(self, key_vault: KeyVault, keys: None) -> AzureKeyVault:
        return opened(key_vault, "other")

    @pytest.fixture
    def missing_keystore(self, key_vault: KeyVault) -> AzureKeyVault:
        return opened(key_vault, "missing")


class TestManagedHsm(KeystoreContract):
    """An AES key in a Managed HSM."""

    @pytest.fixture
    def keystore(self, managed_hsm: KeyVault, keys: None) -> AzureKeyVault:
        return opened(managed_hsm, "wrap")

    @pytest.fixture
    def other_keystore(self, managed_hsm: KeyVault, keys: None) -> AzureKeyVault:
        return opened(managed_hsm, "other")

    @pytest.fixture
    def missing_keystore(self, managed_hsm: KeyVault) -> AzureKeyVault:
        return opened(managed_hsm, "missing")


# --- keys and versions -----------------------------------------------------------------------------------


def test_the_recorded_key_is_its_url_in_lower_case_and_its_version(key_vault: KeyVault, keys: None) -> None:
    shouted = AzureKeyVaultSettings.model_validate(
        {**key_vault.settings(f"{key_vault.url}/keys/WRAP"), "timeout_seconds": TIMEOUT}
    )
    described = AzureKeyVault("azure-ams", shouted).describe()
    assert described == opened(key_vault, "wrap").describe()
    assert described.key_id == f"{key_vault.url}/keys/wrap"
    assert len(described.key_version) == 32


def test_a_dek_wrapped_before_a_rotation_is_unwrapped_with_the_version_that_wrapped_it(
    key_vault: KeyVault, key_vault_proxy: TlsFaultProxy, own_key: str
) -> None:
    keystore, dek = through(key_vault, key_vault_proxy, own_key), new_dek()
    before = keystore.wrap(dek, CONTEXT)
    key_vault.create_key(own_key, size=2048)
    after = keystore.wrap(dek, CONTEXT)
    assert after.key.key_id == before.key.key_id
    assert after.key.key_version != before.key.key_version
    key_vault_proxy.requests.clear()
    assert keystore.unwrap(before.wrapped, CONTEXT, before.key) == dek
    assert before.key.key_version in key_vault_proxy.requests[-1].path
    with pytest.raises(CiphertextInvalid):
        keystore.unwrap(before.wrapped, CONTEXT, after.key)


def test_a_pinned_version_goes_on_wrapping_after_a_rotation(key_vault: KeyVault, own_key: str) -> None:
    pinned = opened(key_vault, own_key).describe().key_version
    key_vault.create_key(own_key, size=2048)
    keystore = opened(key_vault, f"{own_key}/{pinned}")
    assert (
        keystore.describe()
        == keystore.wrap(new_dek(), CONTEXT).key
        == KeyRef(f"{key_vault.url}/keys/{own_key}", pinned)
    )


def test_a_version_that_does_not_exist_is_not_found(key_vault: KeyVault, keys: None) -> None:
    keystore = opened(key_vault, "wrap")
    wrapped = keystore.wrap(new_dek(), CONTEXT)
    with pytest.raises(KeyNotFound):
        keystore.unwrap(wrapped.wrapped, CONTEXT, KeyRef(wrapped.key.key_id, "0" * 32))


@pytest.mark.parametrize("version", ["", "../other", "latest", "0" * 31])
def test_what_is_no_version_is_not_even_asked_for(
    proxied: AzureKeyVault, key_vault_proxy: TlsFaultProxy, version: str
) -> None:
    wrapped = proxied.wrap(new_dek(), CONTEXT)
    key_vault_proxy.requests.clear()
    with pytest.raises(CiphertextInvalid):
        proxied.unwrap(wrapped.wrapped, CONTEXT, KeyRef(wrapped.key.key_id, version))
    assert not key_vault_proxy.requests


def test_the_service_wraps_and_not_the_sdk(proxied: AzureKeyVault, key_vault_proxy: TlsFaultProxy) -> None:
    wrapped = proxied.wrap(new_dek(), CONTEXT)
    wraps = [sent for sent in key_vault_proxy.requests if "/wrapkey" in sent.path]
    assert [sent.json()["alg"] for sent in wraps] == ["RSA-OAEP-256"]
    assert wrapped.key.key_version in wraps[0].path


def test_the_two_kinds_of_ciphertext_are_told_apart(key_vault: KeyVault, managed_hsm: KeyVault, keys: None) -> None:
    vault, hsm = opened(key_vault, "wrap"), opened(managed_hsm, "wrap")
    of_vault, of_hsm = vault.wrap(new_dek(), CONTEXT), hsm.wrap(new_dek(), CONTEXT)
    assert (of_vault.mechanism, len(of_vault.wrapped)) == ("rsa-oaep", 257)
    assert (of_hsm.mechanism, len(of_hsm.wrapped)) == ("aes-gcm", 61)
    with pytest.raises(CiphertextInvalid):
        hsm.unwrap(of_vault.wrapped, CONTEXT, of_hsm.key)
    with pytest.raises(CiphertextInvalid):
        vault.unwrap(of_hsm.wrapped, CONTEXT, of_vault.key)


# --- states ----------------------------------------------------------------------------------------------


def test_a_disabled_key_neither_wraps_nor_unwraps(key_vault: KeyVault, own_key: str) -> None:
    keystore, dek = opened(key_vault, own_key), new_dek()
    wrapped = keystore.wrap(dek, CONTEXT)
    key_vault.set_enabled(own_key, False)
    for call in (keystore.describe, partial(keystore.wrap, dek, CONTEXT)):
        with pytest.raises(KeyDisabled):
            call()
    with pytest.raises(KeyDisabled, match="KeyDisabled"):
        keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)
    key_vault.set_enabled(own_key, True)
    assert keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key) == dek


@pytest.mark.parametrize(("attribute", "shift"), [("exp", -60), ("nbf", 3600)], ids=["expired", "not yet valid"])
def test_outside_its_dates_a_key_unwraps_and_does_not_wrap(
    key_vault: KeyVault, own_key: str, attribute: str, shift: int
) -> None:
    keystore, dek = opened(key_vault, own_key), new_dek()
    wrapped = keystore.wrap(dek, CONTEXT)
    key_vault.ask("PATCH", f"/keys/{own_key}", {"attributes": {attribute: int(time.time()) + shift}})
    with pytest.raises(KeyDisabled):
        keystore.wrap(dek, CONTEXT)
    assert keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key) == dek


def test_a_soft_deleted_key_is_pending_deletion_until_it_is_recovered(key_vault: KeyVault, own_key: str) -> None:
    keystore, dek = opened(key_vault, own_key), new_dek()
    wrapped = keystore.wrap(dek, CONTEXT)
    key_vault.ask("DELETE", f"/keys/{own_key}")
    with pytest.raises(KeyPendingDeletion):
        keystore.describe()
    with pytest.raises(KeyPendingDeletion):
        keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)
    key_vault.ask("POST", f"/deletedkeys/{own_key}/recover")
    assert keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key) == dek


def test_whoever_may_not_see_deleted_keys_is_told_that_the_key_is_not_found(
    key_vault: KeyVault, key_vault_proxy: TlsFaultProxy, own_key: str
) -> None:
    key_vault.ask("DELETE", f"/keys/{own_key}")
    key_vault_proxy.rule = Answer(403, body=error("Forbidden", "ForbiddenByRbac"), match="GET /deletedkeys")
    with pytest.raises(KeyNotFound):
        through(key_vault, key_vault_proxy, own_key).describe()


@pytest.mark.parametrize("change", [{"kty": "EC"}, {"kty": "oct"}, {"key_ops": ["sign"]}, {"key_ops": ["wrapKey"]}])
def test_a_key_that_is_not_for_wrapping_is_refused(
    proxied: AzureKeyVault, key_vault: KeyVault, key_vault_proxy: TlsFaultProxy, change: dict[str, Any]
) -> None:
    key = key_vault.ask("GET", "/keys/wrap")["key"]
    key_vault_proxy.rule = Change({"key": {**key, **change}}, match="GET /keys")
    with pytest.raises(ConfigurationInvalid):
        proxied.describe()


# --- what can go wrong -----------------------------------------------------------------------------------


def error(code: str, *inner: str) -> bytes:
    """An error body as Key Vault writes it."""
    body: dict[str, Any] = {"code": code, "message": "A message that quotes\r\nthe request: SECRET"}
    if inner:
        body["innererror"] = {"code": inner[0]}
    return json.dumps({"error": body}).encode()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, error("BadParameter"), CiphertextInvalid),
        (401, error("Unauthorized"), KeystoreAccessDenied),
        (403, error("Forbidden", "KeyDisabled"), KeyDisabled),
        (403, error("Forbidden", "AccessDenied"), KeystoreAccessDenied),
        (403, error("Forbidden", "ForbiddenByRbac"), KeystoreAccessDenied),
        (403, error("Forbidden", "ForbiddenByFirewall"), KeystoreAccessDenied),
        (409, error("Conflict", "ObjectIsDeletedButRecoverable"), KeyPendingDeletion),
        (409, error("Conflict", "ObjectIsBeingRecovered"), KeystoreUnavailable),
        (404, b"<html>a gateway's own page</html>", KeystoreUnavailable),
        (408, b"", KeystoreUnavailable),
        (429, error("Throttled"), KeystoreThrottled),
        (500, error("InternalServerError"), KeystoreUnavailable),
        (502, b"<html>", KeystoreUnavailable),
        (503, error("ServiceUnavailable"), KeystoreUnavailable),
        (200, b"not JSON", KeystoreUnavailable),
    ],
)
def test_an_error_answer_becomes_one_of_ours_and_is_not_quoted(
    proxied: AzureKeyVault,
    key_vault_proxy: TlsFaultProxy,
    status: int,
    body: bytes,
    expected: type[MasterKeyError],
) -> None:
    wrapped = proxied.wrap(new_dek(), CONTEXT)
    key_vault_proxy.requests.clear()
    key_vault_proxy.rule = Answer(status, body=body, match="/unwrapkey")
    with pytest.raises(expected) as caught:
        proxied.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)
    assert type(caught.value) is expected
    assert "SECRET" not in caught.value.diagnostics
    assert "azure-ams" in caught.value.message
    assert sum("/unwrapkey" in sent.path for sent in key_vault_proxy.requests) == 1, "the workflow retries, not the SDK"


def test_a_redirection_is_not_followed(proxied: AzureKeyVault, key_vault_proxy: TlsFaultProxy) -> None:
    key_vault_proxy.rule = Answer(307, {"Location": f"{key_vault_proxy.url}/elsewhere"}, match="GET /keys")
    with pytest.raises(KeystoreUnavailable, match="HTTP 307"):
        proxied.describe()
    assert not [sent for sent in key_vault_proxy.requests if "elsewhere" in sent.path]


def test_a_refused_wrap_is_a_matter_of_configuration(proxied: AzureKeyVault, key_vault_proxy: TlsFaultProxy) -> None:
    key_vault_proxy.rule = Answer(400, body=error("BadParameter"), match="/wrapkey")
    with pytest.raises(ConfigurationInvalid, match="HTTP 400 BadParameter"):
        proxied.wrap(new_dek(), CONTEXT)


@pytest.mark.parametrize("field", ["kid", "value"])
def test_an_answer_about_something_else_is_not_taken(
    proxied: AzureKeyVault, key_vault_proxy: TlsFaultProxy, field: str
) -> None:
    foreign = {"kid": f"https://elsewhere.vault.azure.net/keys/wrap/{'0' * 32}", "value": "AAAA"}
    key_vault_proxy.rule = Change({field: foreign[field]}, match="/wrapkey")
    with pytest.raises(KeystoreUnavailable):
        proxied.wrap(new_dek(), CONTEXT)


def test_a_service_that_hangs_is_given_up_within_the_time_limit(
    proxied: AzureKeyVault, key_vault_proxy: TlsFaultProxy
) -> None:
    key_vault_proxy.rule = Hang()
    started = time.monotonic()
    with pytest.raises(KeystoreUnavailable):
        proxied.describe()
    assert time.monotonic() - started < TIMEOUT + 0.5


def test_a_reset_connection_means_unavailable(proxied: AzureKeyVault, key_vault_proxy: TlsFaultProxy) -> None:
    key_vault_proxy.rule = Reset()
    with pytest.raises(KeystoreUnavailable):
        proxied.describe()


def test_a_refused_connection_means_unavailable(key_vault: KeyVault) -> None:
    with pytest.raises(KeystoreUnavailable):
        opened(key_vault, "wrap", endpoint=f"https://127.0.0.1:{free_port()}").describe()


def test_a_certificate_of_nobody_we_trust_ends_the_call_before_a_token_is_sent(
    key_vault: KeyVault, key_vault_proxy: TlsFaultProxy, keys: None
) -> None:
    with pytest.raises(KeystoreUnavailable):
        opened(key_vault, "wrap", endpoint=key_vault_proxy.url).describe()
    assert not key_vault_proxy.requests


def test_a_wrong_token_means_access_denied(key_vault: KeyVault, keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "wrong")
    with pytest.raises(KeystoreAccessDenied, match="HTTP 401"):
        opened(key_vault, "wrap", token_file=None, token_env="VAULT_TOKEN").describe()


def test_the_token_is_sent_only_in_answer_to_a_challenge_and_without_the_request_before_it(
    proxied: AzureKeyVault, key_vault_proxy: TlsFaultProxy
) -> None:
    proxied.describe()
    key_vault_proxy.requests.clear()
    azure_key_vault_challenges_forgotten()
    proxied.describe()
    first, second = key_vault_proxy.requests
    assert "Authorization" not in first.headers
    assert second.headers["Authorization"].startswith("Bearer ")


def azure_key_vault_challenges_forgotten() -> None:
    """Forget what the SDK has learnt in this process; each real call has a process of its own."""
    from azure.keyvault.keys._shared import http_challenge_cache

    http_challenge_cache.clear()


def test_azure_credentials_are_not_sent_to_a_host_that_is_none_of_azures(key_vault: KeyVault, keys: None) -> None:
    azure_key_vault_challenges_forgotten()
    with pytest.raises(KeystoreAccessDenied, match="another service"):
        opened(key_vault, "wrap", token_file=None).describe()


def test_no_credentials_means_access_denied(key_vault: KeyVault, keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        azure_key_vault, "KeyClient", lambda *a, **k: KeyClient(*a, **{**k, "verify_challenge_resource": False})
    )
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    for variable in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(KeystoreAccessDenied, match="no token"):
        opened(key_vault, "wrap", token_file=None).describe()


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_id": "https://v.vault.azure.net/secrets/wrap"}, "not the URL of a key"),
        ({"key_id": "http://v.vault.azure.net/keys/wrap"}, "not the URL of a key"),
        ({"key_id": "https://v.vault.azure.net/keys/wrap/latest"}, "not the URL of a key"),
        ({"key_id": "https://user@v.vault.azure.net/keys/wrap"}, "not the URL of a key"),
        ({"endpoint": "http://127.0.0.1:1"}, "https only"),
        ({"token_env": "T"}, "set endpoint"),
        ({"token_env": "T", "token_file": "t", "endpoint": "https://127.0.0.1:1"}, "only one"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, str], message: str) -> None:
    table = {"key_id": "https://v.vault.azure.net/keys/wrap", **changes}
    with pytest.raises(ValidationError, match=message):
        AzureKeyVaultSettings.model_validate(table)


def test_making_a_keystore_reads_no_token_and_connects_to_nothing(tmp_path: Path) -> None:
    settings = AzureKeyVaultSettings(
        key_id="https://v.vault.azure.net/keys/wrap",
        endpoint=f"https://127.0.0.1:{free_port()}",
        token_file=tmp_path / "missing",
    )
    keystore = AzureKeyVault("azure-ams", settings)
    with pytest.raises(ConfigurationInvalid, match="missing"):
        keystore.describe()


# --- what the service itself once answered ---------------------------------------------------------------


def recorded(name: str) -> list[dict[str, Any]]:
    """The exchanges of a recording that were authorised."""
    exchanges = json.loads((RECORDINGS / f"{name}.json").read_text(encoding="utf-8"))["exchanges"]
    return [exchange for exchange in exchanges if exchange["response"]["status"] == 200]


class Replayed:
    """A keystore whose service says what Azure once said."""

    def __init__(self, vault: KeyVault, proxy: TlsFaultProxy, name: str) -> None:
        self.made, self.closed, self.opened = (exchange["response"]["body"] for exchange in recorded(name))
        self.key_id, _, self.version = self.made["key"]["kid"].rpartition("/")
        self._proxy = proxy
        table = {**vault.settings(self.key_id), "endpoint": proxy.url, "ca_file": str(proxy.ca_file)}
        self.keystore = AzureKeyVault("azure-ams", AzureKeyVaultSettings.model_validate(table))

    def say(self, answer: dict[str, Any]) -> None:
        """Answer every authorised request so."""
        self._proxy.rule = Answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())


@pytest.fixture(params=["vault-wrap-unwrap", "managed-hsm-encrypt-decrypt"])
def replayed(request: pytest.FixtureRequest, key_vault: KeyVault, key_vault_proxy: TlsFaultProxy) -> Iterator[Replayed]:
    yield Replayed(key_vault, key_vault_proxy, request.param)
    azure_key_vault_challenges_forgotten()


def test_a_recorded_key_is_understood(replayed: Replayed) -> None:
    replayed.say(replayed.made)
    assert replayed.keystore.describe() == KeyRef(replayed.key_id, replayed.version)


def test_a_recorded_answer_to_a_wrap_is_read_and_one_of_another_length_is_not_taken_for_a_dek(
    replayed: Replayed,
) -> None:
    # One body that is both the key and the answer to the wrap: what is asked for, is read.
    replayed.say({**replayed.made, **replayed.closed})
    if "iv" in replayed.closed:
        # The recording encrypts more than 32 bytes, which a DEK never is.
        with pytest.raises(KeystoreUnavailable, match="value"):
            replayed.keystore.wrap(new_dek(), CONTEXT)
    else:
        wrapped = replayed.keystore.wrap(new_dek(), CONTEXT)
        assert wrapped.key == KeyRef(replayed.key_id, replayed.version)
        assert len(wrapped.wrapped) == 257


def test_a_recorded_answer_to_an_unwrap_is_not_taken_for_a_dek(replayed: Replayed) -> None:
    replayed.say(replayed.opened)
    wrapped = b"\x02" + bytes(60) if "iv" in replayed.closed else b"\x01" + bytes(256)
    with pytest.raises((CiphertextInvalid, KeystoreUnavailable)):
        replayed.keystore.unwrap(wrapped, CONTEXT, KeyRef(replayed.key_id, replayed.version))


def test_an_altered_version_byte_is_refused(key_vault: KeyVault, keys: None) -> None:
    keystore = opened(key_vault, "wrap")
    wrapped = keystore.wrap(new_dek(), CONTEXT)
    for form in (b"\x00", b"\x02", b"\xff"):
        with pytest.raises(CiphertextInvalid):
            keystore.unwrap(form + wrapped.wrapped[1:], CONTEXT, wrapped.key)
    with pytest.raises(CiphertextInvalid):
        keystore.unwrap(altered(wrapped, "middle byte"), CONTEXT, wrapped.key)
