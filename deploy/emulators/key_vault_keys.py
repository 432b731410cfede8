"""The keys of the Key Vault stand-in: versions, states, and what is done with them.

Answers and errors have the form of the service's own, see `deploy.emulators.key_vault`.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Flavour = Literal["vault", "managed-hsm"]
Json = dict[str, Any]

RECOVERABLE_DAYS = 7
_RSA_OPERATIONS = ["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"]
_AES_OPERATIONS = ["encrypt", "decrypt", "wrapKey", "unwrapKey"]
_OPERATIONS = {"wrapkey": "wrapKey", "unwrapkey": "unwrapKey", "encrypt": "encrypt", "decrypt": "decrypt"}
_OAEP_HASHES: Mapping[str, hashes.HashAlgorithm] = {"RSA-OAEP": hashes.SHA1(), "RSA-OAEP-256": hashes.SHA256()}  # noqa: S303
_GCM_KEY_BYTES = {"A128GCM": 16, "A192GCM": 24, "A256GCM": 32}
_IV_BYTES, _TAG_BYTES = 12, 16


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, inner: str = "") -> None:
        self.status = status
        error: Json = {"code": code, "message": message}
        if inner:
            error["innererror"] = {"code": inner}
        self.body = {"error": error}
        super().__init__(message)


def encode(data: bytes) -> str:
    """Base64url without padding."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(body: Json, name: str) -> bytes:
    """A field of a request; raises Refused if it is missing or not base64url."""
    try:
        return b64decode(body[name] + "=" * (-len(body[name]) % 4), altchars=b"-_", validate=True)
    except (KeyError, TypeError, ValueError):
        raise Refused(400, "BadParameter", f"Property '{name}' is required and has to be base64url.") from None


@dataclass
class Version:
    """One version of a key.

    Attributes:
        kty: RSA, RSA-HSM or oct-HSM.
        material: the key itself: PKCS #8 DER, or AES key bytes; base64url.
        key_ops: what it may be used for.
        attributes: `enabled` and, if set, `nbf` and `exp`.
    """

    kty: str
    material: str
    key_ops: list[str]
    attributes: Json
    created: int = field(default_factory=lambda: int(time.time()))
    updated: int = field(default_factory=lambda: int(time.time()))

    @property
    def secret(self) -> bytes:
        """The key material."""
        return urlsafe_b64decode(self.material + "=" * (-len(self.material) % 4))

    @property
    def private_key(self) -> rsa.RSAPrivateKey:
        """The RSA key."""
        return _private_key(self.secret)


class KeyStore:
    """All keys, by name, and their versions, oldest first."""

    def __init__(self, base_url: str, flavour: Flavour, state: Path | None = None) -> None:
        self._base_url = base_url
        self._flavour = flavour
        self._state = state
        self._keys: dict[str, dict[str, Version]] = {}
        self._deleted: dict[str, int] = {}
        if state is not None and state.exists():
            saved = json.loads(state.read_text(encoding="utf-8"))
            self._deleted = saved["deleted"]
            self._keys = {
                name: {version: Version(**values) for version, values in versions.items()}
                for name, versions in saved["keys"].items()
            }

    def create(self, name: str, body: Json) -> Json:
        """A new key, or a new version of one."""
        kty = body.get("kty")
        if kty in ("RSA", "RSA-HSM") and (self._flavour == "vault" or kty == "RSA-HSM"):
            bits = body.get("key_size") or 2048
            if bits not in (2048, 3072, 4096):
                raise Refused(400, "BadParameter", f"Key size {bits} is not supported.")
            private = rsa.generate_private_key(public_exponent=65537, key_size=bits)
            form = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            return self._add(name, kty, private.private_bytes(*form), body)
        if kty == "oct-HSM" and self._flavour == "managed-hsm":
            return self._add(name, kty, secrets.token_bytes((body.get("key_size") or 256) // 8), body)
        raise Refused(400, "BadParameter", f"Key type {kty} is not supported here.")

    def import_key(self, name: str, body: Json) -> Json:
        """A key made elsewhere: AES in a Managed HSM only."""
        key = body.get("key") or {}
        material = decode(key, "k") if key.get("kty") == "oct-HSM" and self._flavour == "managed-hsm" else b""
        if len(material) not in _GCM_KEY_BYTES.values():
            raise Refused(400, "BadParameter", "This key cannot be imported here.")
        return self._add(name, "oct-HSM", material, {**body, "key_ops": key.get("key_ops")})

    def get(self, name: str, version: str) -> Json:
        """A version of a key, the latest unless one is named. It is given of a disabled key too."""
        return self._bundle(name, *self._find(name, version))

    def update(self, name: str, version: str, body: Json) -> Json:
        """Change attributes and operations."""
        version, found = self._find(name, version)
        changes = body.get("attributes") or {}
        found.attributes |= {key: changes[key] for key in ("enabled", "nbf", "exp") if key in changes}
        found.key_ops = body.get("key_ops") or found.key_ops
        found.updated = int(time.time())
        self._save()
        return self._bundle(name, version, found)

    def delete(self, name: str) -> Json:
        """Soft-delete all versions."""
        self._find(name, "")
        self._deleted[name] = int(time.time())
        self._save()
        return self.deleted(name)

    def deleted(self, name: str) -> Json:
        """A soft-deleted key."""
        if name not in self._deleted:
            raise self._missing(name, "deleted key")
        version, found = list(self._keys[name].items())[-1]
        when = self._deleted[name]
        return {
            "recoveryId": f"{self._base_url}/deletedkeys/{name}",
            "deletedDate": when,
            "scheduledPurgeDate": when + RECOVERABLE_DAYS * 86400,
            **self._bundle(name, version, found),
        }

    def recover(self, name: str) -> Json:
        """Undo a deletion."""
        self.deleted(name)
        del self._deleted[name]
        self._save()
        return self.get(name, "")

    def operate(self, name: str, version: str, operation: str, body: Json) -> Json:
        """Wrap, unwrap, encrypt or decrypt."""
        version, key = self._find(name, version)
        self._check_usable(key, operation)
        algorithm = str(body.get("alg"))
        data = decode(body, "value")
        opening = operation in ("unwrapkey", "decrypt")
        parts: Json = {}
        if key.kty == "oct-HSM" and _GCM_KEY_BYTES.get(algorithm) == len(key.secret) and "key" not in operation:
            aad = decode(body, "aad") if "aad" in body else b""
            if opening:
                result = _open_gcm(key.secret, decode(body, "iv"), data + decode(body, "tag"), aad)
            else:
                iv = secrets.token_bytes(_IV_BYTES)
                sealed = AESGCM(key.secret).encrypt(iv, data, aad)
                result, tag = sealed[:-_TAG_BYTES], sealed[-_TAG_BYTES:]
                parts = {"iv": encode(iv), "tag": encode(tag), **({"aad": body["aad"]} if "aad" in body else {})}
        elif key.kty != "oct-HSM" and algorithm in _OAEP_HASHES:
            oaep = padding.OAEP(padding.MGF1(_OAEP_HASHES[algorithm]), _OAEP_HASHES[algorithm], None)
            result = _rsa(key.private_key, data, oaep, opening=opening)
        else:
            raise Refused(400, "BadParameter", f"Algorithm {algorithm} is not supported for this operation by the key.")
        answer = {"kid": self._kid(name, version), "value": encode(result), **parts}
        return {**answer, "alg": algorithm} if self._flavour == "managed-hsm" else answer

    def _check_usable(self, key: Version, operation: str) -> None:
        words = _OPERATIONS[operation]
        if words not in key.key_ops:
            raise Refused(403, "Forbidden", f"Operation {words} is not permitted on this key.")
        # The service refuses to open with a disabled key, and lets it wrap: Azure/azure-sdk-for-python issue 45342.
        # With dates it is the other way round: azure-sdk-for-net issue 7677.
        if operation in ("unwrapkey", "decrypt"):
            if not key.attributes["enabled"]:
                raise Refused(403, "Forbidden", f"Operation {words} is not allowed on a disabled key.", "KeyDisabled")
        elif not key.attributes.get("nbf", 0) <= time.time() < key.attributes.get("exp", float("inf")):
            raise Refused(403, "Forbidden", f"Operation {words} is not allowed on an expired or not yet valid key.")

    def _add(self, name: str, kty: str, material: bytes, body: Json) -> Json:
        if name in self._deleted:
            raise Refused(
                409,
                "Conflict",
                f"Key {name} is currently in a deleted but recoverable state, and its name cannot be reused.",
                "ObjectIsDeletedButRecoverable",
            )
        attributes = {"enabled": True, **(body.get("attributes") or {})}
        operations = body.get("key_ops") or (_AES_OPERATIONS if kty == "oct-HSM" else _RSA_OPERATIONS)
        version = secrets.token_hex(16)
        self._keys.setdefault(name, {})[version] = Version(kty, encode(material), list(operations), attributes)
        self._save()
        return self.get(name, version)

    def _find(self, name: str, version: str) -> tuple[str, Version]:
        versions = {} if name in self._deleted else self._keys.get(name, {})
        version = version or next(reversed(versions), "")
        if version not in versions:
            raise self._missing(f"{name}/{version}" if version else name, "key")
        return version, versions[version]

    def _missing(self, name: str, what: str) -> Refused:
        hint = " If you recently deleted this key you may be able to recover it using the correct recovery command."
        message = f"A {what} with (name/id) {name} was not found in this key vault.{hint}"
        return Refused(404, "KeyNotFound", message)

    def _kid(self, name: str, version: str) -> str:
        return f"{self._base_url}/keys/{name}/{version}"

    def _bundle(self, name: str, version: str, found: Version) -> Json:
        key: Json = {"kid": self._kid(name, version), "kty": found.kty, "key_ops": found.key_ops}
        bits = len(found.secret) * 8
        if found.kty != "oct-HSM":
            numbers = found.private_key.public_key().public_numbers()
            bits = found.private_key.key_size
            key |= {"n": encode(numbers.n.to_bytes(bits // 8, "big")), "e": encode(numbers.e.to_bytes(3, "big"))}
        attributes: Json = {
            **found.attributes,
            "key_size": bits,
            "created": found.created,
            "updated": found.updated,
            "recoveryLevel": "CustomizedRecoverable+Purgeable",
            "recoverableDays": RECOVERABLE_DAYS,
            "exportable": False,
        }
        return {"key": key, "attributes": attributes | ({"hsmPlatform": "0"} if self._flavour == "vault" else {})}

    def _save(self) -> None:
        if self._state is None:
            return
        keys = {name: {key: asdict(value) for key, value in versions.items()} for name, versions in self._keys.items()}
        new = self._state.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
            json.dump({"keys": keys, "deleted": self._deleted}, stream)
        new.replace(self._state)


@lru_cache
def _private_key(material: bytes) -> rsa.RSAPrivateKey:
    key = serialization.load_der_private_key(material, None)
    assert isinstance(key, rsa.RSAPrivateKey)  # noqa: S101 - we made it
    return key


def _open_gcm(key: bytes, iv: bytes, sealed: bytes, aad: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(iv, sealed, aad)
    except (InvalidTag, ValueError):
        raise Refused(400, "BadParameter", "Failed to decrypt: the authentication tag does not match.") from None


def _rsa(key: rsa.RSAPrivateKey, data: bytes, oaep: padding.OAEP, *, opening: bool) -> bytes:
    try:
        return key.decrypt(data, oaep) if opening else key.public_key().encrypt(data, oaep)
    except ValueError:
        # The words: Azure/azure-sdk-for-net issue 36269.
        raise Refused(400, "BadParameter", "Error occurred while decoding OAEP padding.") from None
