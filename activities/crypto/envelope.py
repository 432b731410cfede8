"""Envelope encryption of shards, and the values derived from keys that may be stored in the open.

Everything derived uses HKDF-SHA256 (RFC 5869) with a label of its own and the context that it is bound to;
shards are encrypted with AES-256-GCM (NIST SP 800-38D) under a key derived from a DEK that is used once.
"""

from __future__ import annotations

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from workflows.contracts.trust.canonical import canonical_json
from workflows.contracts.trust.errors import CiphertextInvalid
from workflows.contracts.trust.protection import ShardBinding

MASTER_KEY_BYTES = 32
DEK_BYTES = 32
NONCE_BYTES = 12
SALT_BYTES = 16
CHECK_BYTES = 16


def _derive(secret: bytes, label: str, context: bytes, length: int, salt: bytes | None = None) -> bytes:
    info = b"openkcm-masterkey/v1/" + label.encode() + b"\x00" + context
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(secret)


def key_check_value(master_key: bytes, name: str) -> str:
    """The KCV of a MasterKey: 16 bytes as hexadecimal, bound to its name; tells nothing about the key."""
    return _derive(master_key, "kcv", canonical_json({"master_key": name}), CHECK_BYTES).hex()


def dek_check_value(dek: bytes, binding: ShardBinding) -> str:
    """What `check_data_key` compares with: 16 bytes as hexadecimal, bound to the shard."""
    return _derive(dek, "dek-check", binding.associated_data(), CHECK_BYTES).hex()


def commitment(shard: bytes, binding: ShardBinding, salt: bytes) -> str:
    """A commitment to a shard: 32 bytes as hexadecimal, salted (16 bytes), bound to the shard's place."""
    return _derive(shard, "commitment", binding.associated_data(), 32, salt).hex()


def equal(one: str, other: str) -> bool:
    """Compare two derived values in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def encrypt_shard(shard: bytes, dek: bytes, binding: ShardBinding) -> tuple[bytes, bytes]:
    """Encrypt a shard under a DEK.

    Returns:
        A random nonce (12 bytes) and the ciphertext (16 bytes longer than the shard).
    """
    nonce = os.urandom(NONCE_BYTES)
    return nonce, _cipher(dek, binding).encrypt(nonce, shard, binding.associated_data())


def decrypt_shard(nonce: bytes, ciphertext: bytes, dek: bytes, binding: ShardBinding) -> bytes:
    """Decrypt a shard.

    Raises:
        CiphertextInvalid: altered, moved to another place, or another DEK; `subject` is the keystore.
    """
    try:
        return _cipher(dek, binding).decrypt(nonce, ciphertext, binding.associated_data())
    except (InvalidTag, ValueError):
        raise CiphertextInvalid(
            f"shard {binding.index} in {binding.keystore} does not decrypt", subject=binding.keystore
        ) from None


def _cipher(dek: bytes, binding: ShardBinding) -> AESGCM:
    return AESGCM(_derive(dek, "shard-key", binding.associated_data(), 32))
