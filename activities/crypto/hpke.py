"""HPKE (RFC 9180, base mode) with the hybrid KEM ML-KEM-768 + X25519 of draft-ietf-hpke-pq.

Base mode authenticates no sender: whoever opens something also checks a signature over its hash. All
binding goes into `info`. Histories are kept for years, hence the post-quantum KEM.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from workflows.contracts.trust.canonical import decode64, encode64
from workflows.contracts.trust.errors import ApprovalInvalid, CiphertextInvalid

_MLKEM_PUBLIC_BYTES = 1184
PUBLIC_KEY_BYTES = _MLKEM_PUBLIC_BYTES + 32
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class PrivateKey:
    """An ephemeral private key. It exists in one process, which exits after using it."""

    def __init__(self) -> None:
        mlkem, x25519 = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        self._key = MLKEM768X25519PrivateKey(mlkem, x25519)
        raw = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        self.public_key = encode64(raw)
        """ML-KEM-768 and X25519 public keys, 1,184 + 32 bytes, as base64."""

    def open(self, ciphertext: bytes, info: bytes) -> bytes:
        """Open what `encrypt_to` made for this key with the same `info`.

        Raises:
            CiphertextInvalid: another key, another `info`, or altered.
        """
        try:
            return _SUITE.decrypt(ciphertext, self._key, info=info)
        except (InvalidTag, ValueError):
            raise CiphertextInvalid("what was encrypted to this process does not open") from None


def encrypt_to(public_key: str, plaintext: bytes, info: bytes) -> bytes:
    """Encrypt to a public key.

    Args:
        public_key: 1,216 bytes as base64, as `PrivateKey.public_key` gives it.
        plaintext: a key.
        info: what the ciphertext is bound to.

    Returns:
        Encapsulated key and ciphertext: 1,120 + `len(plaintext)` + 16 bytes.

    Raises:
        ApprovalInvalid: the public key is malformed.
    """
    try:
        raw = decode64(public_key)
        if len(raw) != PUBLIC_KEY_BYTES:
            raise ValueError("wrong length")
        mlkem = MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC_BYTES])
        x25519 = X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC_BYTES:])
        return _SUITE.encrypt(plaintext, MLKEM768X25519PublicKey(mlkem, x25519), info=info)
    except ValueError:
        raise ApprovalInvalid("the HPKE public key is malformed") from None
