"""What every kind of keystore promises, whatever the service behind it.

A kind's test class inherits from `KeystoreContract` and offers three fixtures, each an opened keystore:

- `keystore`: a key that may be used;
- `other_keystore`: another key of the same service, which may be used too;
- `missing_keystore`: the same service, and a key that does not exist there.

A kind whose service answers "another key's ciphertext" or "no such key" in its own way says so in
`foreign_errors` and `missing_errors`, with the reason beside it.
"""

from __future__ import annotations

import secrets
from typing import ClassVar

import pytest

from activities.crypto.envelope import DEK_BYTES
from activities.keystores.kinds.base import KeyRef, Keystore, WrappedKey
from workflows.contracts.trust.errors import CiphertextInvalid, KeystoreError
from workflows.contracts.trust.service_errors import KeyNotFound

CONTEXT = {
    "epoch": "1",
    "index": "2",
    "keystore": "contract",
    "master_key": "eu10",
    "mode": "sss",
    "protection": "primary-ü",
    "purpose": "masterkey shard",
    "threshold": "2",
}
"""A context as it is in production: a flat map of text; not all of it ASCII."""

ErrorTypes = tuple[type[KeystoreError], ...]


def new_dek() -> bytes:
    """A fresh 32-byte DEK."""
    return secrets.token_bytes(DEK_BYTES)


class KeystoreContract:
    """The tests that every kind passes."""

    foreign_errors: ClassVar[ErrorTypes] = (CiphertextInvalid,)
    missing_errors: ClassVar[ErrorTypes] = (KeyNotFound,)

    def test_what_was_wrapped_is_unwrapped(self, keystore: Keystore) -> None:
        dek = new_dek()
        wrapped = keystore.wrap(dek, CONTEXT)
        assert dek not in wrapped.wrapped
        assert keystore.unwrap(wrapped.wrapped, CONTEXT, wrapped.key) == dek

    def test_the_order_of_the_context_does_not_matter(self, keystore: Keystore) -> None:
        dek = new_dek()
        wrapped = keystore.wrap(dek, CONTEXT)
        reordered = dict(reversed(CONTEXT.items()))
        assert keystore.unwrap(wrapped.wrapped, reordered, wrapped.key) == dek

    @pytest.mark.parametrize(
        "changed",
        [
            {**CONTEXT, "index": "3"},
            {**CONTEXT, "more": "x"},
            {name: value for name, value in CONTEXT.items() if name != "threshold"},
            {},
        ],
        ids=["a field changed", "a field more", "a field less", "no field"],
    )
    def test_another_context_is_refused(self, keystore: Keystore, changed: dict[str, str]) -> None:
        wrapped = keystore.wrap(new_dek(), CONTEXT)
        with pytest.raises(CiphertextInvalid):
            keystore.unwrap(wrapped.wrapped, changed, wrapped.key)

    @pytest.mark.parametrize("where", ["last byte", "middle byte", "truncated", "empty"])
    def test_an_altered_ciphertext_is_refused(self, keystore: Keystore, where: str) -> None:
        wrapped = keystore.wrap(new_dek(), CONTEXT)
        with pytest.raises(CiphertextInvalid):
            keystore.unwrap(altered(wrapped, where), CONTEXT, wrapped.key)

    def test_the_ciphertext_of_another_key_is_refused(self, keystore: Keystore, other_keystore: Keystore) -> None:
        foreign = other_keystore.wrap(new_dek(), CONTEXT)
        own = keystore.wrap(new_dek(), CONTEXT)
        assert foreign.key.key_id != own.key.key_id
        with pytest.raises(self.foreign_errors):
            keystore.unwrap(foreign.wrapped, CONTEXT, own.key)

    def test_the_reference_to_another_key_is_refused(self, keystore: Keystore, other_keystore: Keystore) -> None:
        foreign = other_keystore.wrap(new_dek(), CONTEXT)
        with pytest.raises(CiphertextInvalid):
            keystore.unwrap(foreign.wrapped, CONTEXT, foreign.key)

    def test_a_key_that_does_not_exist_is_not_found(self, missing_keystore: Keystore) -> None:
        with pytest.raises(self.missing_errors):
            missing_keystore.describe()
        with pytest.raises(self.missing_errors):
            missing_keystore.wrap(new_dek(), CONTEXT)

    def test_describe_resolves_the_key_that_wraps(self, keystore: Keystore) -> None:
        described = keystore.describe()
        assert described.key_id
        assert described.key_id == keystore.wrap(new_dek(), CONTEXT).key.key_id

    def test_every_wrap_is_fresh(self, keystore: Keystore) -> None:
        dek = new_dek()
        assert keystore.wrap(dek, CONTEXT).wrapped != keystore.wrap(dek, CONTEXT).wrapped

    def test_an_error_names_the_keystore_and_holds_no_secret(self, keystore: Keystore) -> None:
        dek = new_dek()
        wrapped = keystore.wrap(dek, CONTEXT)
        with pytest.raises(CiphertextInvalid) as caught:
            keystore.unwrap(altered(wrapped, "last byte"), CONTEXT, wrapped.key)
        error = caught.value
        assert error.subject
        assert error.subject in error.message
        assert "\n" not in error.message
        assert error.__suppress_context__ or error.__context__ is None
        assert dek.hex() not in error.message

    def test_only_32_bytes_are_wrapped(self, keystore: Keystore) -> None:
        with pytest.raises(ValueError, match="32 bytes"):
            keystore.wrap(b"short", CONTEXT)


def altered(wrapped: WrappedKey, where: str) -> bytes:
    """The wrapped DEK with one bit changed, its last byte missing, or nothing left of it."""
    data = bytearray(wrapped.wrapped)
    if where == "empty":
        return b""
    if where == "truncated":
        return bytes(data[:-1])
    position = len(data) - 1 if where == "last byte" else len(data) // 2
    data[position] ^= 0x01
    return bytes(data)


def elsewhere(key: KeyRef) -> KeyRef:
    """The same version of a key that no keystore has."""
    return KeyRef(key_id=key.key_id + "-elsewhere", key_version=key.key_version)
