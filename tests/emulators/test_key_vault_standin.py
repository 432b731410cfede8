"""The Key Vault stand-in against recordings of the service: each recorded request is replayed to it.

Compared is the form of the answers: status, header, names and types of fields, form of ids, lengths. Values differ,
but for one that must not: the stand-in decrypts what the real Managed HSM encrypted under an imported key.
"""

from __future__ import annotations

import http.client
import json
import re
import stat
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from workers.local.key_vault import KeyVault, start_key_vault
from workers.local.process import ServiceFailed

RECORDINGS = Path(__file__).parent.parent / "data" / "azure-key-vault"
FLAVOURS = {"vault-wrap-unwrap": "vault", "managed-hsm-encrypt-decrypt": "managed-hsm"}
QUERY = "?api-version=2025-07-01"


def exchanges(recording: str) -> list[dict[str, Any]]:
    """The requests and answers of a recording."""
    found: list[dict[str, Any]] = json.loads((RECORDINGS / f"{recording}.json").read_text(encoding="utf-8"))[
        "exchanges"
    ]
    return found


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyVault]:
    vault = start_key_vault(tmp_path_factory.mktemp("vault"))
    yield vault
    vault.service.stop()


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyVault]:
    hsm = start_key_vault(tmp_path_factory.mktemp("hsm"), flavour="managed-hsm")
    yield hsm
    hsm.service.stop()


def send(
    vault: KeyVault, method: str, path: str, body: object = None, *, token: str | None = None
) -> tuple[int, http.client.HTTPMessage, Any]:
    """One request, as plain as it gets; gives back status, headers and parsed body (None if empty)."""
    url = urlsplit(vault.service.endpoint)
    connection = http.client.HTTPSConnection(str(url.hostname), url.port, timeout=10, context=vault.trust())
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    return answer.status, answer.headers, json.loads(data) if data else None


def shape(value: Any, name: str = "") -> Any:
    """What is compared of a value: types, names, the form of ids, the length of what is base64url."""
    if isinstance(value, dict):
        return {key: shape(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return sorted(value)
    if name == "kid":
        return re.sub(r"^https://[^/]+", "https://HOST", re.sub(r"[0-9a-f]{32}$", "VERSION", value))
    if name in ("value", "n", "e", "iv", "tag", "aad"):
        return len(urlsafe_b64decode(value + "=" * (-len(value) % 4)))
    if name in ("alg", "kty", "code", "recoveryLevel", "hsmPlatform", "key_size", "recoverableDays"):
        return value
    return type(value).__name__


@pytest.mark.parametrize("recording", FLAVOURS)
def test_every_recorded_request_gets_an_answer_of_the_recorded_form(
    recording: str, vault: KeyVault, hsm: KeyVault
) -> None:
    service = {"vault": vault, "managed-hsm": hsm}[FLAVOURS[recording]]
    token = service.token_file.read_text(encoding="ascii")
    # What the service chose itself and later requests refer to: the key's version, and the ciphertexts.
    ours: dict[str, str] = {}
    for exchange in exchanges(recording):
        asked, expected = exchange["request"], exchange["response"]
        path = asked["path"]
        for theirs, own in ours.items():
            path = path.replace(theirs, own)
        body = {key: ours.get(str(value), value) for key, value in asked["body"].items()} if asked["body"] else None
        authorised = asked.get("authorization", "yes") is not None
        status, headers, answer = send(service, asked["method"], path, body, token=token if authorised else None)
        assert status == expected["status"]
        assert shape(answer) == shape(expected["body"]), path
        for header, value in expected.get("headers", {}).items():
            assert headers[header] == value
        if authorised:
            kid = ("key", "kid") if "key" in answer else ("kid",)
            ours[version(expected["body"], kid)] = version(answer, kid)
            ours |= {expected["body"][key]: answer[key] for key in ("value", "iv", "tag") if key in expected["body"]}


def version(body: Any, path: tuple[str, ...]) -> str:
    """The key version in a key's id."""
    for name in path:
        body = body[name]
    return str(body).rpartition("/")[2]


def test_it_decrypts_what_the_real_managed_hsm_encrypted_under_the_same_key(hsm: KeyVault) -> None:
    imported, _, decrypted = (found for found in exchanges("managed-hsm-encrypt-decrypt") if found["request"]["body"])
    hsm.ask("PUT", "/keys/imported", imported["request"]["body"])
    answer = hsm.ask("POST", "/keys/imported/decrypt", decrypted["request"]["body"])
    assert answer["value"] == decrypted["response"]["body"]["value"]


def test_without_its_token_it_answers_nothing_but_a_challenge(vault: KeyVault) -> None:
    vault.create_key("guarded", size=2048)
    for token in (None, "wrong"):
        status, headers, answer = send(vault, "GET", f"/keys/guarded{QUERY}", token=token)
        assert status == 401
        assert headers["WWW-Authenticate"].startswith('Bearer authorization="https://')
        assert set(answer) == {"error"}


def test_only_its_owner_may_read_its_token_and_its_state_and_no_tls_key_is_left(tmp_path: Path) -> None:
    vault = start_key_vault(tmp_path, state=tmp_path / "state.json")
    try:
        vault.create_key("k", size=2048)
    finally:
        vault.service.stop()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes["token"] == modes["state.json"] == 0o600
    assert set(modes) == {"token", "state.json", "ca.pem", "key-vault.log"}


def test_keys_survive_a_restart_on_another_port_when_it_has_a_state_file_and_a_name(tmp_path: Path) -> None:
    kids: list[dict[str, str]] = []
    for _ in range(2):
        vault = start_key_vault(tmp_path, url="https://dev.key-vault.example", state=tmp_path / "state.json")
        try:
            if not kids:
                vault.create_key("k", size=2048)
            kids.append(vault.ask("GET", "/keys/k")["key"])
        finally:
            vault.service.stop()
    assert kids[0] == kids[1]
    assert kids[0]["kid"].startswith("https://dev.key-vault.example/keys/k/")


def test_a_deleted_key_is_not_found_its_name_is_taken_and_it_can_be_recovered(vault: KeyVault) -> None:
    token = vault.token_file.read_text(encoding="ascii")
    vault.create_key("gone", size=2048)
    deleted = vault.ask("DELETE", "/keys/gone")
    assert {"recoveryId", "deletedDate", "scheduledPurgeDate", "key", "attributes"} == set(deleted)
    status, _, answer = send(vault, "GET", f"/keys/gone{QUERY}", token=token)
    assert (status, answer["error"]["code"]) == (404, "KeyNotFound")
    status, _, answer = send(vault, "POST", f"/keys/gone/create{QUERY}", {"kty": "RSA"}, token=token)
    assert (status, answer["error"]["innererror"]["code"]) == (409, "ObjectIsDeletedButRecoverable")
    vault.ask("POST", "/deletedkeys/gone/recover")
    assert vault.ask("GET", "/keys/gone")["key"] == deleted["key"]


def test_a_disabled_key_still_wraps_and_no_longer_unwraps_as_with_the_service(vault: KeyVault) -> None:
    # Azure/azure-sdk-for-python issue 45342.
    vault.create_key("disabled", size=2048)
    wrapped = vault.ask("POST", "/keys/disabled/wrapkey", {"alg": "RSA-OAEP-256", "value": "AAAA"})["value"]
    vault.set_enabled("disabled", False)
    vault.ask("POST", "/keys/disabled/wrapkey", {"alg": "RSA-OAEP-256", "value": "AAAA"})
    with pytest.raises(ServiceFailed, match="HTTP 403"):
        vault.ask("POST", "/keys/disabled/unwrapkey", {"alg": "RSA-OAEP-256", "value": wrapped})


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/keys/x/create", {"kty": "oct-HSM"}, 400),
        ("POST", "/keys/x/create", {"kty": "EC"}, 400),
        ("POST", "/keys/k/wrapkey", {"alg": "A256GCM", "value": "AAAA"}, 400),
        ("POST", "/keys/k/wrapkey", {"alg": "RSA-OAEP", "value": "not base64url!"}, 400),
        ("POST", "/keys/k/wrapkey", {"alg": "RSA-OAEP"}, 400),
        ("POST", "/keys/k/wrapkey", ["not", "an", "object"], 400),
        ("POST", "/keys/missing/wrapkey", {"alg": "RSA-OAEP", "value": "AAAA"}, 404),
        ("POST", "/keys/k/sign", {"alg": "RS256", "value": "AAAA"}, 405),
        ("GET", "/secrets/k", None, 405),
    ],
)
def test_what_it_does_not_know_it_refuses(vault: KeyVault, method: str, path: str, body: object, status: int) -> None:
    vault.create_key("k", size=2048)
    answer = send(vault, method, path + QUERY, body, token=vault.token_file.read_text(encoding="ascii"))
    assert answer[0] == status
    assert set(answer[2]["error"]) >= {"code", "message"}
    assert send(vault, "GET", "/keys/k", token=vault.token_file.read_text(encoding="ascii"))[0] == 400, "no api-version"
