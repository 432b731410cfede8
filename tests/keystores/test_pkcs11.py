"""PKCS#11 against SoftHSM, with two tokens of the same label; what SoftHSM never does, a scripted module does."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pkcs11
import pytest
from pkcs11 import exceptions as failures
from pydantic import ValidationError

from activities.keystores.kinds.base import KeyRef
from activities.keystores.kinds.pkcs11 import Pkcs11Keystore, Pkcs11Settings
from tests.keystores.contract import CONTEXT, KeystoreContract, new_dek
from workers.local.softhsm import SoftToken, make_token
from workflows.contracts.trust.errors import CiphertextInvalid, ConfigurationInvalid, MasterKeyError
from workflows.contracts.trust.service_errors import (
    KeyNotFound,
    KeystoreAccessDenied,
    KeystoreThrottled,
    KeystoreUnavailable,
)


def opened(token: SoftToken, label: str, **changes: object) -> Pkcs11Keystore:
    """The keystore of a key; with the one OAEP hash that SoftHSM knows."""
    table = {**token.settings(label), "oaep_hash": "sha1", **changes}
    return Pkcs11Keystore("hsm-fra", Pkcs11Settings.model_validate(table))


@pytest.fixture
def own_key(soft_token: SoftToken) -> str:
    """An AES key for one test."""
    label = f"own-{secrets.token_hex(4)}"
    soft_token.make_key(label)
    return label


class TestAesKey(KeystoreContract):
    """AES-GCM; the other key is on the other token."""

    @pytest.fixture
    def keystore(self, soft_token: SoftToken) -> Pkcs11Keystore:
        return opened(soft_token, "wrap")

    @pytest.fixture
    def other_keystore(self, soft_token: SoftToken, soft_tokens: tuple[SoftToken, SoftToken]) -> Pkcs11Keystore:
        return opened(soft_tokens[1], "wrap")

    @pytest.fixture
    def missing_keystore(self, soft_token: SoftToken) -> Pkcs11Keystore:
        return opened(soft_token, "missing")


class TestRsaKey(KeystoreContract):
    """RSA-OAEP; the other key is on the other token."""

    @pytest.fixture
    def keystore(self, soft_token: SoftToken) -> Pkcs11Keystore:
        return opened(soft_token, "wrap-rsa")

    @pytest.fixture
    def other_keystore(self, soft_token: SoftToken, soft_tokens: tuple[SoftToken, SoftToken]) -> Pkcs11Keystore:
        return opened(soft_tokens[1], "wrap-rsa")

    @pytest.fixture
    def missing_keystore(self, soft_token: SoftToken) -> Pkcs11Keystore:
        return opened(soft_token, "missing", mechanism="rsa-oaep")


# --- which key -------------------------------------------------------------------------------------------


def test_two_ways_to_name_a_key_resolve_to_the_same_id(soft_token: SoftToken) -> None:
    soft_token.make_key("by-label", identifier="0badcafe")
    by_label, by_id = opened(soft_token, "by-label"), opened(soft_token, "", key_label=None, key_id="0BADCAFE")
    assert by_label.describe() == by_id.describe()
    assert by_label.describe().key_id == f"pkcs11:serial={soft_token.serial};id=%0b%ad%ca%fe;type=secret-key"
    dek = new_dek()
    wrapped = by_label.wrap(dek, CONTEXT)
    assert by_id.unwrap(wrapped.wrapped, CONTEXT, wrapped.key) == dek


def test_of_two_tokens_with_one_label_the_serial_number_tells_which(
    soft_token: SoftToken, soft_tokens: tuple[SoftToken, SoftToken]
) -> None:
    one, two = (opened(token, "wrap").describe() for token in soft_tokens)
    assert one.key_id != two.key_id
    with pytest.raises(ConfigurationInvalid, match="token_serial"):
        opened(soft_token, "wrap", token_serial=None, token_label="masterkey").describe()
    assert opened(soft_token, "wrap", token_label="masterkey").describe() == one


def test_of_two_keys_with_one_label_the_id_or_the_mechanism_tells_which(soft_token: SoftToken) -> None:
    for identifier in ("0001", "0002"):
        soft_token.make_key("twin", identifier=identifier)
    soft_token.make_key("twin", "rsa", identifier="0003")
    with pytest.raises(ConfigurationInvalid, match="more than one key"):
        opened(soft_token, "twin").describe()
    assert "%00%02" in opened(soft_token, "twin", key_id="0002").describe().key_id
    assert opened(soft_token, "twin", mechanism="rsa-oaep").describe().key_id.endswith("id=%00%03;type=private")


def test_a_key_that_shares_its_id_with_another_is_refused(soft_token: SoftToken) -> None:
    for label in ("same-id-one", "same-id-two"):
        soft_token.make_key(label, identifier="5a5a")
    with pytest.raises(ConfigurationInvalid, match="CKA_ID"):
        opened(soft_token, "same-id-one").describe()


def test_a_key_made_anew_under_its_old_id_is_noticed(soft_token: SoftToken) -> None:
    soft_token.make_key("anew", identifier="a0e0")
    keystore = opened(soft_token, "anew")
    wrapped = keystore.wrap(new_dek(), CONTEXT)
    destroy(soft_token, "anew")
    with pytest.raises(KeyNotFound):
        keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)
    soft_token.make_key("anew", identifier="a0e0")
    assert keystore.describe().key_id == wrapped.key.key_id
    with pytest.raises(KeyNotFound, match="made anew"):
        keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)


def destroy(token: SoftToken, label: str) -> None:
    """Destroy a key."""
    library = pkcs11.lib(str(token.module))
    found = next(slot.get_token() for slot in library.get_slots() if slot.get_token().serial.decode() == token.serial)
    session = found.open(rw=True, user_pin=token.pin_file.read_text())
    next(session.get_objects({pkcs11.Attribute.LABEL: label})).destroy()
    library.finalize()


def test_what_a_token_wrapped_is_unwrapped_by_the_one_that_was_restored_from_it(soft_token: SoftToken) -> None:
    dek = new_dek()
    keystore = opened(soft_token, "wrap")
    wrapped = keystore.wrap(dek, CONTEXT)
    of_former = KeyRef(wrapped.key.key_id.replace(soft_token.serial, "F0%2012/a"), wrapped.key.key_version)
    with pytest.raises(CiphertextInvalid):
        keystore.unwrap(wrapped.wrapped, CONTEXT, of_former)
    restored = opened(soft_token, "wrap", former_serials=["F0 12/a"])
    assert restored.unwrap(wrapped.wrapped, CONTEXT, of_former) == dek
    assert restored.unwrap(wrapped.wrapped, CONTEXT, wrapped.key) == dek


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("aes", {"EXTRACTABLE": True}),
        ("aes", {"SENSITIVE": False}),
        ("rsa", {"EXTRACTABLE": True}),
    ],
)
def test_a_key_that_can_leave_the_token_is_refused(
    soft_token: SoftToken, kind: str, attributes: dict[str, Any]
) -> None:
    label = f"loose-{secrets.token_hex(4)}"
    soft_token.make_key(label, kind, **attributes)
    for call in (opened(soft_token, label).describe, lambda: opened(soft_token, label).wrap(new_dek(), CONTEXT)):
        with pytest.raises(ConfigurationInvalid, match="can leave the token"):
            call()


@pytest.mark.parametrize("attributes", [{"VALUE_LEN": 16}, {"DECRYPT": False}, {"ENCRYPT": False}])
def test_a_key_that_is_not_for_wrapping_is_refused(soft_token: SoftToken, attributes: dict[str, Any]) -> None:
    label = f"unfit-{secrets.token_hex(4)}"
    soft_token.make_key(label, **attributes)
    with pytest.raises(ConfigurationInvalid, match="AES-256"):
        opened(soft_token, label).describe()


# --- what a wrapped DEK is -------------------------------------------------------------------------------


def test_a_wrapped_dek_says_in_its_first_byte_how_it_was_wrapped(soft_token: SoftToken) -> None:
    aes, rsa = (opened(soft_token, label).wrap(new_dek(), CONTEXT) for label in ("wrap", "wrap-rsa"))
    assert (aes.mechanism, aes.wrapped[:1], len(aes.wrapped)) == ("aes-gcm", b"\x01", 61)
    assert (rsa.mechanism, rsa.wrapped[:1], len(rsa.wrapped)) == ("rsa-oaep", b"\x02", 385)
    for label, wrapped in (("wrap", aes), ("wrap-rsa", rsa)):
        for form in (b"\x00", b"\x01", b"\x02", b"\xff"):
            if form != wrapped.wrapped[:1]:
                with pytest.raises(CiphertextInvalid):
                    opened(soft_token, label).unwrap(form + wrapped.wrapped[1:], CONTEXT, wrapped.key)


def test_a_hash_that_the_token_does_not_know_is_a_matter_of_configuration(soft_token: SoftToken) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        opened(soft_token, "wrap-rsa", oaep_hash="sha256").wrap(new_dek(), CONTEXT)
    assert "oaep_hash" in caught.value.next_step


def test_what_was_wrapped_with_another_hash_than_is_configured_now_still_opens(soft_token: SoftToken) -> None:
    dek = new_dek()
    wrapped = opened(soft_token, "wrap-rsa").wrap(dek, CONTEXT)
    assert opened(soft_token, "wrap-rsa", oaep_hash="sha512").unwrap(wrapped.wrapped, CONTEXT, wrapped.key) == dek


# --- what can go wrong -----------------------------------------------------------------------------------


def test_a_wrong_pin_means_access_denied_and_is_not_told(soft_token: SoftToken, tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    pin.write_text("13579246")
    with pytest.raises(KeystoreAccessDenied, match="PinIncorrect") as caught:
        opened(soft_token, "wrap", pin_file=str(pin)).describe()
    assert "13579246" not in caught.value.diagnostics
    opened(soft_token, "wrap").describe()


def test_a_pin_that_is_not_set_is_a_matter_of_configuration(
    soft_token: SoftToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HSM_PIN", raising=False)
    with pytest.raises(ConfigurationInvalid, match="HSM_PIN"):
        opened(soft_token, "wrap", pin_file=None, pin_env="HSM_PIN").describe()


def test_a_token_that_is_not_there_means_unavailable(soft_token: SoftToken) -> None:
    with pytest.raises(KeystoreUnavailable, match="no such token"):
        opened(soft_token, "wrap", token_serial="0000").describe()


def test_a_module_that_does_not_start_means_unavailable(soft_token: SoftToken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTHSM2_CONF", "/nowhere")
    with pytest.raises(KeystoreUnavailable, match="GeneralError"):
        opened(soft_token, "wrap").describe()


def test_a_file_that_is_no_module_is_a_matter_of_configuration(soft_token: SoftToken, tmp_path: Path) -> None:
    for module in (tmp_path / "missing.so", soft_token.pin_file):
        with pytest.raises(ConfigurationInvalid, match="module"):
            opened(soft_token, "wrap", module=str(module)).describe()


def test_a_token_that_opens_nothing_any_more_is_unavailable_and_no_ciphertext_is_blamed(
    soft_token: SoftToken, monkeypatch: pytest.MonkeyPatch
) -> None:
    keystore = opened(soft_token, "wrap")
    wrapped = keystore.wrap(new_dek(), CONTEXT)
    find = keystore._key

    def broken(session: Any) -> Any:
        dead: Any = SimpleNamespace(decrypt=lambda *_, **__: fail(failures.GeneralError()))
        return replace(find(session), opens=dead)

    monkeypatch.setattr(keystore, "_key", broken)
    with pytest.raises(KeystoreUnavailable, match="GeneralError"):
        keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key)


class ScriptedModule:
    """A module that behaves as SoftHSM's, but for one function, which the test has written."""

    def __init__(self, *, flags: pkcs11.TokenFlag = pkcs11.TokenFlag.RNG, login: Callable[[], Any]) -> None:
        self.finalized = False
        self.logins = 0
        self._flags = flags
        self._login = login

    def get_slots(self, token_present: bool) -> list[Any]:
        token = SimpleNamespace(label="masterkey", serial=b"1", flags=self._flags, open=self._open)
        absent = SimpleNamespace(get_token=lambda: fail(failures.TokenNotPresent()))
        return [absent, SimpleNamespace(get_token=lambda: token)]

    def _open(self, user_pin: str) -> Any:
        self.logins += 1
        return self._login()

    def finalize(self) -> None:
        self.finalized = True
        raise failures.DeviceRemoved


def fail(error: BaseException) -> Any:
    """Raise, where only an expression fits."""
    raise error


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[ScriptedModule], Pkcs11Keystore]:
    """A keystore on a scripted module."""
    monkeypatch.setenv("HSM_PIN", "2468")

    def opened_on(module: ScriptedModule) -> Pkcs11Keystore:
        monkeypatch.setattr(pkcs11, "lib", lambda _: module)
        path = tmp_path / "module.so"
        path.touch()
        settings = Pkcs11Settings(module=path, token_label="masterkey", key_label="wrap", pin_env="HSM_PIN")
        return Pkcs11Keystore("hsm-fra", settings)

    return opened_on


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (failures.PinIncorrect(), KeystoreAccessDenied),
        (failures.PinLocked(), KeystoreAccessDenied),
        (failures.PinExpired(), KeystoreAccessDenied),
        (failures.UserNotLoggedIn(), KeystoreAccessDenied),
        (failures.UserPinNotInitialized(), KeystoreAccessDenied),
        (failures.SessionCount(), KeystoreThrottled),
        (failures.KeyHandleInvalid(), KeyNotFound),
        (failures.EncryptedDataInvalid(), CiphertextInvalid),
        (failures.MechanismInvalid(), ConfigurationInvalid),
        (failures.MechanismParamInvalid(), ConfigurationInvalid),
        (failures.DeviceError(), KeystoreUnavailable),
        (failures.DeviceRemoved(), KeystoreUnavailable),
        (failures.DeviceMemory(), KeystoreUnavailable),
        (failures.FunctionFailed(), KeystoreUnavailable),
        (failures.TokenNotPresent(), KeystoreUnavailable),
        (failures.SessionHandleInvalid(), KeystoreUnavailable),
        (failures.PKCS11Error("Unmapped error code 0x42"), CiphertextInvalid),
        (failures.PKCS11Error("Unmapped error code 0x68"), ConfigurationInvalid),
        (failures.PKCS11Error("Unmapped error code 0x80000123"), KeystoreUnavailable),
    ],
    ids=repr,
)
def test_what_a_token_answers_becomes_one_of_our_errors(
    scripted: Callable[[ScriptedModule], Pkcs11Keystore], error: Exception, expected: type[MasterKeyError]
) -> None:
    module = ScriptedModule(login=lambda: fail(error))
    with pytest.raises(expected) as caught:
        scripted(module).describe()
    assert type(caught.value) is expected
    assert caught.value.subject == "hsm-fra"
    assert module.finalized


@pytest.mark.parametrize("flag", [pkcs11.TokenFlag.USER_PIN_FINAL_TRY, pkcs11.TokenFlag.USER_PIN_LOCKED])
def test_the_last_try_before_a_token_locks_itself_is_not_made(
    scripted: Callable[[ScriptedModule], Pkcs11Keystore], flag: pkcs11.TokenFlag
) -> None:
    module = ScriptedModule(flags=flag | pkcs11.TokenFlag.RNG, login=lambda: fail(failures.PinLocked()))
    with pytest.raises(KeystoreAccessDenied, match="one try left"):
        scripted(module).describe()
    assert not module.logins


# --- settings and processes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_label": None}, "token_label or token_serial"),
        ({"key_label": None}, "key_label or key_id"),
        ({"pin_env": None}, "exactly one"),
        ({"pin_file": "p"}, "exactly one"),
        ({"key_id": "xyz"}, "key_id"),
        ({"oaep_hash": "md5"}, "oaep_hash"),
        ({"endpoint": "https://hsm.example"}, "vendor's means"),
        ({"pin": "1234"}, "pin"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    table = {"module": "/m.so", "token_label": "t", "key_label": "k", "pin_env": "P", **changes}
    with pytest.raises(ValidationError, match=message):
        Pkcs11Settings.model_validate(table)


def test_making_a_keystore_loads_no_module(soft_token: SoftToken) -> None:
    script = (
        "import json, sys\n"
        "from activities.keystores.kinds.registry import open_keystore, parse_settings\n"
        "open_keystore('hsm', parse_settings('hsm', json.loads(sys.argv[1])))\n"
        "print('softhsm' in open('/proc/self/maps').read())"
    )
    table = json.dumps(soft_token.settings("wrap"))
    done = subprocess.run([sys.executable, "-c", script, table], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_token_made_before_is_found_again(soft_tokens: tuple[SoftToken, SoftToken]) -> None:
    again = make_token(soft_tokens[0].pin_file.parent, name="one")
    assert again == soft_tokens[0]
    assert again.pin_file.stat().st_mode & 0o777 == 0o600
