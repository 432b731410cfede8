"""An HSM over PKCS#11: an AES-256 key wraps DEKs with AES-GCM, or an RSA key with RSA-OAEP.

The key never leaves the token: it must be sensitive and not extractable. AES-GCM binds the context as associated
data. RSA-OAEP is for HSMs without AES-GCM, and for those that insist on an IV of their own (Thales Luna in FIPS
mode). Not every token takes OAEP's label (SoftHSM refuses it), so the context's hash travels inside.

A call loads the module, logs in, works and finalizes: it runs in a process of its own, and nothing of it is left
to be inherited by a fork. A module that hangs cannot be interrupted from inside: `timeout_seconds` is no limit
here, the worker kills the process. Logins fail closed: with one try left before the token locks itself, none is
made, so that no schedule of drills locks an HSM with a wrong PIN.

PKCS#11 has no key versions. Recorded instead is what tells that a key was made anew under the same id: the check
value of an AES key (CKA_CHECK_VALUE, 3 bytes), the hash of an RSA modulus; "" if the token does not tell.

Source: OASIS PKCS#11 2.40 and 3.0. Tokens differ in how they say "this does not decrypt": SoftHSM 2.6 answers
CKR_GENERAL_ERROR (softhsm/SoftHSMv2 issue 689), which is why such an answer is put to the test. It also knows
OAEP with SHA-1 only (issue 474): set `oaep_hash` to `sha1` there. Collisions of SHA-1 do not matter in OAEP.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast
from urllib.parse import quote_from_bytes

import pkcs11
import pkcs11.exceptions as failures
from pkcs11 import MGF, Attribute, GCMParams, KeyType, Mechanism, ObjectClass, TokenFlag
from pkcs11.types import Object, Session, Token
from pydantic import Field, StringConstraints, model_validator

from activities.crypto.context import Context, bind_context, context_bytes
from activities.crypto.envelope import DEK_BYTES
from activities.keystores.kinds.base import BaseKeystore, KeyRef, KeystoreSettings, SecretReference, WrappedKey
from workflows.contracts.trust.errors import CiphertextInvalid, ConfigurationInvalid, MasterKeyError
from workflows.contracts.trust.service_errors import (
    KeyNotFound,
    KeystoreAccessDenied,
    KeystoreThrottled,
    KeystoreUnavailable,
)

T = TypeVar("T")

GCM_FORMAT = b"\x01"
"""First byte of a wrapped DEK under an AES key: then iv (12), ciphertext (32), tag (16)."""

OAEP_FORMATS = {"sha1": b"\x02", "sha256": b"\x03", "sha384": b"\x04", "sha512": b"\x05"}
"""First byte of a wrapped DEK under an RSA key, by OAEP's hash: then the ciphertext, as long as the modulus."""

_OAEP: dict[bytes, tuple[Mechanism, MGF, None]] = {
    OAEP_FORMATS["sha1"]: (Mechanism.SHA_1, MGF.SHA1, None),
    OAEP_FORMATS["sha256"]: (Mechanism.SHA256, MGF.SHA256, None),
    OAEP_FORMATS["sha384"]: (Mechanism.SHA384, MGF.SHA384, None),
    OAEP_FORMATS["sha512"]: (Mechanism.SHA512, MGF.SHA512, None),
}
_IV_BYTES, _TAG_BYTES, _AES_KEY_BYTES, _MODULUS_BYTES = 12, 16, 32, 256
_UNMAPPED = re.compile(r"^Unmapped error code (0x[0-9a-f]+)$")

_KINDS: dict[type[MasterKeyError], tuple[type[failures.PKCS11Error], ...]] = {
    KeystoreAccessDenied: (
        failures.PinIncorrect,
        failures.PinInvalid,
        failures.PinLenRange,
        failures.PinExpired,
        failures.PinLocked,
        failures.UserNotLoggedIn,
        failures.UserPinNotInitialized,
        failures.UserTooManyTypes,
        failures.AnotherUserAlreadyLoggedIn,
    ),
    KeystoreThrottled: (failures.SessionCount,),
    KeyNotFound: (failures.KeyHandleInvalid, failures.ObjectHandleInvalid),
    CiphertextInvalid: (failures.EncryptedDataInvalid, failures.EncryptedDataLenRange),
    ConfigurationInvalid: (
        failures.ArgumentsBad,
        failures.DataInvalid,
        failures.DataLenRange,
        failures.FunctionNotSupported,
        failures.KeySizeRange,
        failures.KeyTypeInconsistent,
        failures.MechanismInvalid,
        failures.MechanismParamInvalid,
    ),
}
"""What an error of the token means; what is not here is `KeystoreUnavailable`: a device's or driver's failure."""

# CKR_AEAD_DECRYPT_FAILED, CKR_KEY_FUNCTION_NOT_PERMITTED: python-pkcs11 0.10 gives only their numbers.
_CODES: dict[str, type[MasterKeyError]] = {"0x42": CiphertextInvalid, "0x68": ConfigurationInvalid}

_AMBIGUOUS = (
    failures.ArgumentsBad,
    failures.DataInvalid,
    failures.DataLenRange,
    failures.FunctionFailed,
    failures.GeneralError,
)
"""What tokens also answer when they mean that a ciphertext does not decrypt."""

Hex = Annotated[str, StringConstraints(pattern=r"^([0-9A-Fa-f]{2})+$")]


class Pkcs11Settings(KeystoreSettings):
    """Settings of a key in an HSM.

    Attributes:
        module: path of the vendor's PKCS#11 library.
        token_label: label of the token.
        token_serial: serial number of the token; where two tokens share a label.
        former_serials: serials of tokens from which this one was restored: what they wrapped, it may unwrap.
        key_label: label of the key.
        key_id: CKA_ID of the key, hexadecimal; where two keys share a label.
        pin_env: environment variable of the user PIN.
        pin_file: file of the user PIN.
        mechanism: `auto` takes the one that the key is for.
        oaep_hash: hash of RSA-OAEP and its MGF1 for new wraps; an unwrap uses what the wrap used.
    """

    type: Literal["pkcs11"] = "pkcs11"
    module: Path
    token_label: str | None = None
    token_serial: str | None = None
    former_serials: tuple[str, ...] = ()
    key_label: str | None = None
    key_id: Hex | None = None
    pin_env: str | None = None
    pin_file: Path | None = None
    mechanism: Literal["auto", "aes-gcm", "rsa-oaep"] = "auto"
    oaep_hash: Annotated[str, Field(pattern=f"^({'|'.join(OAEP_FORMATS)})$")] = "sha256"

    @model_validator(mode="after")
    def _enough_to_find_the_key(self) -> Pkcs11Settings:
        if not self.token_label and not self.token_serial:
            raise ValueError("set token_label or token_serial")
        if not self.key_label and not self.key_id:
            raise ValueError("set key_label or key_id")
        if (self.pin_env is None) == (self.pin_file is None):
            raise ValueError("set exactly one of pin_env and pin_file")
        if self.endpoint is not None or self.ca_file is not None:
            raise ValueError("a PKCS#11 module is configured by its vendor's means, not with endpoint and ca_file")
        return self


@dataclass(frozen=True)
class _Key:
    """A key in an open session: the objects that open and close, one and the same for AES."""

    session: Session
    opens: Object
    closes: Object
    is_rsa: bool
    id: bytes
    version: str


class Pkcs11Keystore(BaseKeystore[Pkcs11Settings]):
    """A key in an HSM as a `Keystore`."""

    SERVICE = "PKCS#11"

    def describe(self) -> KeyRef:
        """Find the key: `pkcs11:serial=...;id=...;type=...` (RFC 7512), if it may be used and cannot leave.

        Raises:
            KeyNotFound: the token has no such key.
            ConfigurationInvalid: more than one fits, or it is not fit to wrap: size, use, sensitivity.
            KeystoreError: as for any call.
        """
        return self._on_token(lambda token, key: _reference(_serial(token), key))

    def _is_own(self, key: KeyRef) -> bool:
        # Only the token knows its serial number: `_unwrap` compares.
        return True

    def _wrap(self, dek: bytes, context: Context) -> WrappedKey:
        """Encrypt: 32 bytes become 61 under an AES key, 257 and more under an RSA key."""

        def encrypt(token: Token, key: _Key) -> WrappedKey:
            if key.is_rsa:
                form = OAEP_FORMATS[self._settings.oaep_hash]
                wrapped = form + _encrypt(key, *_oaep(form), bind_context(dek, context))
            else:
                iv = os.urandom(_IV_BYTES)
                wrapped = GCM_FORMAT + iv + _encrypt(key, *_gcm(iv, context), dek)
                if len(wrapped) != 1 + _IV_BYTES + DEK_BYTES + _TAG_BYTES:
                    raise self._error(ConfigurationInvalid, "the token adds an IV of its own: use an RSA key")
            return WrappedKey(wrapped, _reference(_serial(token), key), "rsa-oaep" if key.is_rsa else "aes-gcm")

        return self._on_token(encrypt)

    def _unwrap(self, wrapped: bytes, context: Context, key: KeyRef) -> bytes:
        def decrypt(token: Token, found: _Key) -> bytes:
            serials = (_serial(token), *self._settings.former_serials)
            if key.key_id not in [_reference(serial, found).key_id for serial in serials]:
                raise self._error(CiphertextInvalid, "was wrapped by another key than the configured one")
            if key.key_version != found.version:
                raise self._error(KeyNotFound, "the key was made anew since it wrapped this")
            form, data = wrapped[:1], wrapped[1:]
            if found.is_rsa and form in _OAEP and len(data) == len(found.opens[Attribute.MODULUS]):
                return self._unbind(self._decrypt(found, *_oaep(form), data), context)
            if not found.is_rsa and form == GCM_FORMAT and len(data) == _IV_BYTES + DEK_BYTES + _TAG_BYTES:
                return self._decrypt(found, *_gcm(data[:_IV_BYTES], context), data[_IV_BYTES:])
            raise self._error(CiphertextInvalid, "no wrapped DEK has this form and length")

        return self._on_token(decrypt)

    def _decrypt(self, key: _Key, mechanism: Mechanism, parameter: object, data: bytes) -> bytes:
        """Decrypt; an error that may mean the token or the ciphertext means the latter if all else decrypts."""

        def attempt() -> bytes:
            return bytes(cast(Any, key.opens).decrypt(data, mechanism=mechanism, mechanism_param=parameter))

        try:
            return attempt()
        except _AMBIGUOUS:
            probe = os.urandom(DEK_BYTES)
            sealed = _encrypt(key, mechanism, parameter, probe)
            opened = cast(Any, key.opens).decrypt(sealed, mechanism=mechanism, mechanism_param=parameter)
            if bytes(opened) != probe:
                raise self._error(KeystoreUnavailable, "the token does not decrypt what it encrypts") from None
        try:
            return attempt()
        except _AMBIGUOUS as error:
            raise self._error(CiphertextInvalid, f"does not decrypt: {type(error).__name__}") from None

    def _on_token(self, work: Callable[[Token, _Key], T]) -> T:
        """Load the module, log in, find the key, work, and close everything again."""
        pin = SecretReference(env=self._settings.pin_env, file=self._settings.pin_file).read(f"keystore {self._name}")
        library = self._load()
        try:
            token = self._token([slot.get_token for slot in library.get_slots(token_present=True)])
            return work(token, self._key(token.open(user_pin=pin)))
        except failures.PKCS11Error as error:
            raise self._translate(error) from None
        finally:
            # Closes the session and logs out. What it says no longer matters.
            with contextlib.suppress(failures.PKCS11Error):
                library.finalize()

    def _load(self) -> Any:
        if not self._settings.module.is_file():
            raise self._error(ConfigurationInvalid, f"there is no module {self._settings.module}")
        try:
            return pkcs11.lib(str(self._settings.module))
        except failures.PKCS11Error as error:
            if "while loading" in str(error):
                raise self._error(ConfigurationInvalid, f"{self._settings.module} is no PKCS#11 module") from None
            raise self._translate(error) from None

    def _token(self, slots: list[Callable[[], Token]]) -> Token:
        label, serial = self._settings.token_label, self._settings.token_serial
        found = []
        for get_token in slots:
            with contextlib.suppress(failures.TokenNotPresent, failures.TokenNotRecognised):
                token = get_token()
                if label in (None, token.label) and serial in (None, _serial(token)):
                    found.append(token)
        if not found:
            raise self._error(KeystoreUnavailable, "no such token is present")
        if len(found) > 1:
            raise self._error(ConfigurationInvalid, "more than one token has this label: set token_serial")
        if found[0].flags & (TokenFlag.USER_PIN_FINAL_TRY | TokenFlag.USER_PIN_LOCKED):
            what = "the user PIN is locked, or has one try left, which is not made here"
            raise self._error(KeystoreAccessDenied, what, "check the PIN, and log in once by the vendor's means")
        return found[0]

    def _key(self, session: Session) -> _Key:
        settings = self._settings
        wanted: dict[Attribute, Any] = {Attribute.TOKEN: True}
        wanted |= {Attribute.LABEL: settings.key_label} if settings.key_label else {}
        wanted |= {Attribute.ID: bytes.fromhex(settings.key_id)} if settings.key_id else {}
        aes = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.AES}
        rsa = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.KEY_TYPE: KeyType.RSA}
        kinds = {"aes-gcm": [aes], "rsa-oaep": [rsa], "auto": [aes, rsa]}[settings.mechanism]
        found = [(key, kind) for kind in kinds for key in session.get_objects({**wanted, **kind})]
        if not found:
            raise self._error(KeyNotFound, "the token has no such key")
        if len(found) > 1:
            raise self._error(ConfigurationInvalid, "more than one key fits: set key_id, or mechanism")
        key, kind = found[0]
        identifier = bytes(_attribute(key, Attribute.ID) or b"")
        same_id = list(session.get_objects({**kind, Attribute.ID: identifier, Attribute.TOKEN: True}))
        if not identifier or len(same_id) != 1:
            raise self._error(ConfigurationInvalid, "the key needs a CKA_ID that no other key has")
        if _attribute(key, Attribute.SENSITIVE) is not True or _attribute(key, Attribute.EXTRACTABLE) is not False:
            raise self._error(ConfigurationInvalid, "the key can leave the token: make one that is not extractable")
        if kind is aes:
            check = bytes(_attribute(key, Attribute.CHECK_VALUE) or b"").hex()
            fit, closes, version = _attribute(key, Attribute.VALUE_LEN) == _AES_KEY_BYTES, key, check and f"kcv-{check}"
        else:
            modulus = bytes(_attribute(key, Attribute.MODULUS) or b"")
            public = {**rsa, Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.MODULUS: modulus}
            closes = next(iter(list(session.get_objects(public))), key)
            fit, version = len(modulus) >= _MODULUS_BYTES, f"n-{hashlib.sha256(modulus).hexdigest()[:16]}"
        if not fit or not _attribute(key, Attribute.DECRYPT) or not _attribute(closes, Attribute.ENCRYPT):
            what = "needs AES-256, or RSA of 2048 bits and more with its public key, allowed to encrypt and decrypt"
            raise self._error(ConfigurationInvalid, what)
        return _Key(session, key, closes, kind is rsa, identifier, version)

    def _translate(self, error: failures.PKCS11Error) -> MasterKeyError:
        unmapped = _UNMAPPED.match(str(error))
        if unmapped:
            return self._error(_CODES.get(unmapped[1], KeystoreUnavailable), f"CKR {unmapped[1]}")
        kind = next((kind for kind, causes in _KINDS.items() if isinstance(error, causes)), KeystoreUnavailable)
        hint = "compare mechanism and oaep_hash with what the token can do" if kind is ConfigurationInvalid else ""
        return self._error(kind, type(error).__name__, hint)


def _serial(token: Token) -> str:
    return token.serial.decode("ascii", "backslashreplace").strip()


def _reference(serial: str, key: _Key) -> KeyRef:
    kind = "private" if key.is_rsa else "secret-key"
    identifier = "".join(f"%{byte:02x}" for byte in key.id)
    return KeyRef(f"pkcs11:serial={quote_from_bytes(serial.encode())};id={identifier};type={kind}", key.version)


def _gcm(iv: bytes, context: Context) -> tuple[Mechanism, object]:
    return Mechanism.AES_GCM, GCMParams(iv, context_bytes(context), _TAG_BYTES * 8)


def _oaep(form: bytes) -> tuple[Mechanism, object]:
    return Mechanism.RSA_PKCS_OAEP, _OAEP[form]


def _encrypt(key: _Key, mechanism: Mechanism, parameter: object, data: bytes) -> bytes:
    return bytes(cast(Any, key.closes).encrypt(data, mechanism=mechanism, mechanism_param=parameter))


def _attribute(key: Object, attribute: Attribute) -> Any:
    """An attribute, or None if this object does not have it or does not tell."""
    try:
        return key[attribute]
    except (failures.AttributeTypeInvalid, failures.AttributeSensitive):
        return None
