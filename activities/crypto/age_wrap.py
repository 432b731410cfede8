"""Wrapping a data key for an offline custodian: encryption to an age recipient, which anybody may do.

Only X25519 keys of https://age-encryption.org/v1 are taken, through `pyrage` (Python over the Rust library `rage`).
Post-quantum recipients (`age1pq1...`, ML-KEM-768 with X25519, age 1.3) are refused: `pyrage` 1.4 and `rage` 0.12
have no identity that decrypts them; what `pyrage.tagpq` has encrypts to hardware tokens only. SSH keys, which age
also knows, are refused too: a custodian's signing key decrypts nothing.

Nothing here reads or holds a secret age key: that is `activities.keystores.kinds.age_keys`, at the custodian's.
"""

from __future__ import annotations

import pyrage  # type: ignore[import-untyped]
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from activities.crypto.context import Context, bind_context
from workflows.contracts.trust.canonical import digest
from workflows.contracts.trust.errors import ConfigurationInvalid

POST_QUANTUM = "post-quantum age keys cannot be used: the library can encrypt to them, but decrypts with none"
SSH = "an SSH key is never used here; make a dedicated age key with `masterkey offline keygen`"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def wrap_dek(recipient: str, dek: bytes, context: Context) -> bytes:
    """Wrap a DEK for an offline custodian, as a strongroom's session does: an age file of 280 to 500 bytes.

    Args:
        recipient: the age recipient that the roster names.
        dek: 32 bytes.
        context: what it is bound to.

    Raises:
        ConfigurationInvalid: the recipient is none that this library decrypts for.
        ValueError: the DEK is not 32 bytes long.
    """
    bound = bind_context(dek, context)
    try:
        return encrypt(bound, recipient)
    except ValueError as error:
        raise ConfigurationInvalid(
            f"cannot wrap for the age recipient {recipient[:16]}...: {error}",
            next_step="make a key with `masterkey offline keygen` and name its recipient in the roster",
        ) from None


def encrypt(plaintext: bytes, recipient: str) -> bytes:
    """An age file, binary, that the recipient's identity decrypts; some 200 to 400 bytes longer.

    Raises:
        ValueError: as `check_recipient`.
    """
    return bytes(pyrage.encrypt(plaintext, [pyrage.x25519.Recipient.from_str(check_recipient(recipient))]))


def check_recipient(text: str) -> str:
    """A recipient that can be encrypted to, and that an identity exists for which this library decrypts with.

    Raises:
        ValueError: it is a post-quantum one, an SSH key, a point of low order, mistyped, or none at all.
    """
    if text.lower().startswith("age1pq1"):
        raise ValueError(POST_QUANTUM)
    if text.startswith(("ssh-", "ecdsa-")):
        raise ValueError(SSH)
    try:
        normal = str(pyrage.x25519.Recipient.from_str(text))
    except pyrage.RecipientError:
        raise ValueError("not an age recipient (age1..., 62 characters)") from None
    if normal != text:
        raise ValueError("an age recipient is written in lower case")
    try:
        # The library panics when it encrypts to a point of low order; anybody could decrypt that.
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(_point(text)))
    except ValueError:
        raise ValueError("not the recipient of any age key: a point of low order") from None
    return text


def key_id(recipient: str) -> str:
    """The id of the key in plans and manifests: `age:sha256:` and 64 hexadecimal digits."""
    return f"age:{digest(recipient.encode())}"


def _point(recipient: str) -> bytes:
    # Bech32: five bits a character, four bits of padding, six characters of checksum that the library has verified.
    number = 0
    for character in recipient.removeprefix("age1")[:-6]:
        number = number << 5 | _BECH32.index(character)
    return (number >> 4).to_bytes(32, "big")
