"""Transit against OpenBao itself, with a token that may use one key; faults through the proxy."""

from __future__ import annotations

import secrets
import stat
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from activities.keystores.kinds.base import KeyRef
from activities.keystores.kinds.transit import Transit, TransitSettings
from deploy.emulators.fault_proxy import Answer, Change, Delay, FaultProxy, Hang, Reset
from tests.keystores.contract import CONTEXT, KeystoreContract, new_dek
from workers.local.openbao import OpenBao, start_openbao
from workers.local.process import ServiceFailed, free_port
from workflows.contracts.trust.errors import CiphertextInvalid, ConfigurationInvalid, MasterKeyError
from workflows.contracts.trust.service_errors import (
    KeyDisabled,
    KeyNotFound,
    KeyPendingDeletion,
    KeystoreAccessDenied,
    KeystoreThrottled,
    KeystoreUnavailable,
)


def opened(bao: OpenBao, key_name: str, folder: Path, **settings: object) -> Transit:
    """The keystore of a key, with a token of its own."""
    token = bao.write_token(key_name, folder / f"{key_name}.token")
    fields = {"address": bao.service.endpoint, "key_name": key_name, "token_file": token, "timeout_seconds": 4}
    return Transit("bao-fra", TransitSettings.model_validate({**fields, **settings}))


@pytest.fixture(scope="session")
def keys(openbao: OpenBao) -> None:
    for name in ("wrap", "other"):
        openbao.create_key(name)


@pytest.fixture
def keystore(openbao: OpenBao, keys: None, tmp_path: Path) -> Transit:
    return opened(openbao, "wrap", tmp_path)


@pytest.fixture
def other_keystore(openbao: OpenBao, keys: None, tmp_path: Path) -> Transit:
    return opened(openbao, "other", tmp_path)


@pytest.fixture
def missing_keystore(openbao: OpenBao, tmp_path: Path) -> Transit:
    return opened(openbao, "missing", tmp_path)


@pytest.fixture
def proxied(openbao: OpenBao, openbao_proxy: FaultProxy, keys: None, tmp_path: Path) -> Transit:
    return opened(openbao, "wrap", tmp_path, endpoint=openbao_proxy.url)


@pytest.fixture
def own_key(openbao: OpenBao) -> str:
    """A key for one test."""
    name = f"own-{secrets.token_hex(4)}"
    openbao.create_key(name)
    return name


class TestContract(KeystoreContract):
    """OpenBao passes without exception."""


def test_the_recorded_key_is_its_address_and_its_version(openbao: OpenBao, keystore: Transit) -> None:
    expected = KeyRef(f"{openbao.service.endpoint}/transit/keys/wrap", "1")
    assert keystore.describe() == expected
    assert keystore.wrap(new_dek(), CONTEXT).key == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"address": "HTTPS://Bao.Example/"}, "https://bao.example:443/transit/keys/k"),
        ({"address": "https://bao.example:8200"}, "https://bao.example:8200/transit/keys/k"),
        (
            {"address": "https://[::1]:8200", "namespace": "a/b", "mount": "t/u"},
            "https://[::1]:8200/a/b/t/u/keys/k",
        ),
        (
            {"address": "https://bao.example:8200", "endpoint": "http://127.0.0.1:1"},
            "https://bao.example:8200/transit/keys/k",
        ),
    ],
    ids=["case and default port", "port", "namespace and mount", "an endpoint is no identity"],
)
def test_one_key_has_one_id(fields: dict[str, str], expected: str) -> None:
    assert TransitSettings.model_validate({"key_name": "k", **fields}).key_id == expected


def test_a_rotated_key_wraps_with_its_new_version_and_still_opens_the_old(
    openbao: OpenBao, own_key: str, tmp_path: Path
) -> None:
    keystore, dek = opened(openbao, own_key, tmp_path), new_dek()
    old = keystore.wrap(dek, CONTEXT)
    openbao.ask("POST", f"transit/keys/{own_key}/rotate")
    new = keystore.wrap(dek, CONTEXT)
    assert (old.key.key_version, new.key.key_version) == ("1", "2")
    assert keystore.describe().key_version == "2"
    assert keystore.unwrap(old.wrapped, CONTEXT, old.key) == dek
    assert keystore.unwrap(new.wrapped, CONTEXT, new.key) == dek
    with pytest.raises(CiphertextInvalid):
        keystore.unwrap(old.wrapped, CONTEXT, new.key)


def test_a_version_below_the_minimum_is_disabled(openbao: OpenBao, own_key: str, tmp_path: Path) -> None:
    keystore = opened(openbao, own_key, tmp_path)
    old = keystore.wrap(new_dek(), CONTEXT)
    openbao.ask("POST", f"transit/keys/{own_key}/rotate")
    openbao.ask("POST", f"transit/keys/{own_key}/config", {"min_decryption_version": 2})
    with pytest.raises(KeyDisabled):
        keystore.unwrap(old.wrapped, CONTEXT, old.key)


def test_a_soft_deleted_key_is_pending_deletion(openbao: OpenBao, own_key: str, tmp_path: Path) -> None:
    keystore = opened(openbao, own_key, tmp_path)
    wrapped = keystore.wrap(new_dek(), CONTEXT)
    openbao.ask("DELETE", f"transit/keys/{own_key}/soft-delete")
    with pytest.raises(KeyPendingDeletion):
        keystore.describe()
    with pytest.raises(KeyPendingDeletion):
        keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)


def test_a_deleted_key_is_not_found_and_no_wrap_makes_it_anew(openbao: OpenBao, own_key: str, tmp_path: Path) -> None:
    keystore = opened(openbao, own_key, tmp_path)
    wrapped = keystore.wrap(new_dek(), CONTEXT)
    openbao.ask("POST", f"transit/keys/{own_key}/config", {"deletion_allowed": True})
    openbao.ask("DELETE", f"transit/keys/{own_key}")
    with pytest.raises(KeyNotFound):
        keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)

    openbao.ask("POST", "transit/config/keys", {"disable_upsert": False})
    try:
        (tmp_path / "root").write_text(openbao.root_token)
        mighty = opened(openbao, own_key, tmp_path, token_file=tmp_path / "root")
        with pytest.raises(KeyNotFound):
            mighty.wrap(new_dek(), CONTEXT)
    finally:
        openbao.ask("POST", "transit/config/keys", {"disable_upsert": True})
    with pytest.raises(ServiceFailed):
        openbao.ask("GET", f"transit/keys/{own_key}")


def test_a_version_that_a_key_made_again_does_not_have_is_not_found(
    openbao: OpenBao, own_key: str, tmp_path: Path
) -> None:
    keystore = opened(openbao, own_key, tmp_path)
    wrapped = keystore.wrap(new_dek(), CONTEXT)
    ahead = wrapped.wrapped.replace(b"vault:v1:", b"vault:v2:")
    with pytest.raises(KeyNotFound):
        keystore.unwrap(ahead, CONTEXT, KeyRef(wrapped.key.key_id, "2"))


def test_a_key_of_another_type_is_refused(openbao: OpenBao, tmp_path: Path) -> None:
    openbao.create_key("rsa", key_type="rsa-2048")
    openbao.ask("POST", "transit/keys/derived", {"derived": True})
    for name in ("rsa", "derived"):
        keystore = opened(openbao, name, tmp_path)
        with pytest.raises(ConfigurationInvalid):
            keystore.describe()
        with pytest.raises(ConfigurationInvalid):
            keystore.wrap(new_dek(), CONTEXT)


@pytest.mark.parametrize("token", ["wrong", "of another key"])
def test_a_token_that_may_not_is_denied(openbao: OpenBao, keys: None, tmp_path: Path, token: str) -> None:
    file = openbao.write_token("other", tmp_path / "token")
    if token == "wrong":
        file.write_text("s.wrong")
    keystore = opened(openbao, "wrap", tmp_path, token_file=file)
    with pytest.raises(KeystoreAccessDenied):
        keystore.describe()
    with pytest.raises(KeystoreAccessDenied):
        keystore.wrap(new_dek(), CONTEXT)


def test_the_token_is_read_at_the_call(openbao: OpenBao, keys: None, tmp_path: Path) -> None:
    keystore = opened(openbao, "wrap", tmp_path, token_file=tmp_path / "later")
    with pytest.raises(ConfigurationInvalid):
        keystore.describe()
    openbao.write_token("wrap", tmp_path / "later")
    assert keystore.describe().key_version == "1"


def test_a_token_comes_from_the_environment_too(
    openbao: OpenBao, keys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keystore = opened(openbao, "wrap", tmp_path, token_file=None)
    monkeypatch.setenv("VAULT_TOKEN", openbao.root_token)
    monkeypatch.delenv("BAO_TOKEN", raising=False)
    with pytest.raises(ConfigurationInvalid):
        keystore.describe()
    monkeypatch.setenv("BAO_TOKEN", openbao.write_token("wrap", tmp_path / "token").read_text())
    assert keystore.describe().key_version == "1"


def test_the_workers_token_is_for_its_owner_and_its_key_only(openbao: OpenBao, keys: None, tmp_path: Path) -> None:
    file = openbao.write_token("wrap", tmp_path / "token")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    worker = OpenBao(openbao.service, file.read_text())
    assert worker.ask("GET", "transit/keys/wrap")["data"]["name"] == "wrap"
    for method, path in (
        ("GET", "transit/keys/other"),
        ("POST", "transit/keys/wrap/rotate"),
        ("DELETE", "transit/keys/wrap"),
        ("GET", "transit/export/encryption-key/wrap"),
        ("GET", "sys/policies/acl/wrap"),
    ):
        with pytest.raises(ServiceFailed, match="403"):
            worker.ask(method, path)


@pytest.fixture(scope="session")
def approle(openbao: OpenBao, keys: None) -> tuple[str, str]:
    """Role id and secret id of a role that may use the key `wrap`."""
    openbao.allow("wrap")
    openbao.ask("POST", "sys/auth/workers", {"type": "approle"})
    openbao.ask("POST", "auth/workers/role/fra", {"token_policies": ["wrap"], "token_type": "batch"})
    role_id = openbao.ask("GET", "auth/workers/role/fra/role-id")["data"]["role_id"]
    return role_id, openbao.ask("POST", "auth/workers/role/fra/secret-id", {})["data"]["secret_id"]


def test_a_worker_logs_in_with_an_app_role(openbao: OpenBao, approle: tuple[str, str], tmp_path: Path) -> None:
    secret = tmp_path / "secret-id"
    role = {"auth": "approle", "auth_mount": "workers", "role_id": approle[0], "secret_id_file": secret}
    keystore, dek = opened(openbao, "wrap", tmp_path, token_file=None, **role), new_dek()
    secret.write_text(approle[1] + "\n")
    wrapped = keystore.wrap(dek, CONTEXT)
    assert keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key) == dek
    secret.write_text("wrong")
    with pytest.raises(KeystoreAccessDenied):
        keystore.describe()
    elsewhere = opened(openbao, "wrap", tmp_path, token_file=None, **{**role, "auth_mount": "nowhere"})
    with pytest.raises(KeystoreAccessDenied):
        elsewhere.describe()


def test_a_worker_logs_in_with_its_kubernetes_account(
    openbao: OpenBao, openbao_proxy: FaultProxy, tmp_path: Path
) -> None:
    (tmp_path / "jwt").write_text("a.service.account")
    account = {"auth": "kubernetes", "role": "fra", "jwt_file": tmp_path / "jwt", "token_file": None}
    keystore = opened(openbao, "wrap", tmp_path, endpoint=openbao_proxy.url, **account)
    # There is no Kubernetes here: the answer of the login is a recorded one.
    login = b'{"auth": {"client_token": "s.of-the-login", "token_policies": ["wrap"]}, "data": null}'
    openbao_proxy.rule = Answer(200, {"Content-Type": "application/json"}, login, match="/v1/auth/kubernetes/login")
    with pytest.raises(KeystoreAccessDenied):
        keystore.describe()
    asked, read = openbao_proxy.requests
    assert asked.json() == {"role": "fra", "jwt": "a.service.account"}
    assert read.headers["X-Vault-Token"] == "s.of-the-login"


def errors(status: int, text: str = "a message of OpenBao") -> Answer:
    return Answer(status, {"Content-Type": "application/json"}, f'{{"errors": ["{text}"]}}'.encode())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (errors(400, "cipher: message authentication failed"), CiphertextInvalid),
        # Some versions of Vault (hashicorp/vault issue 10842).
        (errors(500, r"1 error occurred:\n\t* cipher: message authentication failed\n\n"), CiphertextInvalid),
        (errors(400), ConfigurationInvalid),
        (errors(403), KeystoreAccessDenied),
        (errors(404), KeyNotFound),
        (errors(412), KeystoreUnavailable),
        (errors(429), KeystoreThrottled),
        (errors(500), KeystoreUnavailable),
        (errors(502), KeystoreUnavailable),
        (errors(503, "Vault is sealed"), KeystoreUnavailable),
        (errors(504), KeystoreUnavailable),
        (Answer(503, {"Content-Type": "text/html"}, b"<html>a load balancer</html>"), KeystoreUnavailable),
        (Answer(200, {"Content-Type": "text/html"}, b"<html>a captive portal</html>"), KeystoreUnavailable),
        (Answer(204), KeystoreUnavailable),
        (Change({"data": {"plaintext": "c2hvcnQ="}}), CiphertextInvalid),
        (Change({"data": {"plaintext": "?"}}), CiphertextInvalid),
        (Reset(), KeystoreUnavailable),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_an_answer_becomes_the_error_that_it_means(
    proxied: Transit, openbao_proxy: FaultProxy, answer: Answer, expected: type[MasterKeyError]
) -> None:
    wrapped = proxied.wrap(new_dek(), CONTEXT)
    openbao_proxy.requests.clear()
    openbao_proxy.rule = answer
    with pytest.raises(expected) as caught:
        proxied.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)
    assert caught.value.subject == "bao-fra"
    assert "bao-fra" in caught.value.message
    assert "a message of OpenBao" not in caught.value.message
    assert len(openbao_proxy.requests) == 1, "the workflow retries, not the SDK"


def test_too_many_requests_are_throttled(openbao: OpenBao, own_key: str, tmp_path: Path) -> None:
    keystore = opened(openbao, own_key, tmp_path)
    openbao.ask("POST", f"sys/quotas/rate-limit/{own_key}", {"rate": 1, "interval": "60s", "path": "transit"})
    try:
        keystore.describe()
        with pytest.raises(KeystoreThrottled):
            keystore.describe()
    finally:
        openbao.ask("DELETE", f"sys/quotas/rate-limit/{own_key}")


def test_a_sealed_server_is_an_outage(tmp_path: Path) -> None:
    bao = start_openbao(tmp_path)
    try:
        bao.create_key("wrap")
        keystore = opened(bao, "wrap", tmp_path)
        assert keystore.describe().key_version == "1"
        bao.ask("PUT", "sys/seal")
        with pytest.raises(KeystoreUnavailable):
            keystore.describe()
    finally:
        bao.service.stop()


def test_a_refused_connection_is_an_outage(openbao: OpenBao, keys: None, tmp_path: Path) -> None:
    with pytest.raises(KeystoreUnavailable):
        opened(openbao, "wrap", tmp_path, endpoint=f"http://127.0.0.1:{free_port()}").describe()


@pytest.mark.parametrize("rule", [Hang(), Delay(3.0)], ids=["it never answers", "it answers too late"])
def test_a_call_that_hangs_ends_in_time(
    openbao: OpenBao, openbao_proxy: FaultProxy, keys: None, tmp_path: Path, rule: Hang | Delay
) -> None:
    keystore = opened(openbao, "wrap", tmp_path, endpoint=openbao_proxy.url, timeout_seconds=0.6)
    openbao_proxy.rule = rule
    started = time.monotonic()
    with pytest.raises(KeystoreUnavailable):
        keystore.wrap(new_dek(), CONTEXT)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "fields",
    [
        {"address": "bao.example:8200"},
        {"key_name": "../other"},
        {"token_env": "A", "token_file": "b"},
        {"auth": "approle", "role_id": "r"},
        {"auth": "kubernetes"},
        {"token": "s.secret"},
    ],
    ids=["no URL", "a path as name", "two tokens", "no secret id", "no role", "a secret in the configuration"],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        TransitSettings.model_validate({"address": "https://bao.example:8200", "key_name": "k", **fields})
