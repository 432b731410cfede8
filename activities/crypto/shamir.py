"""Shamir's secret sharing over GF(2^8), in the share format of HashiCorp Vault and OpenBao.

The field has the AES polynomial x^8 + x^4 + x^3 + x + 1 (0x11b, FIPS 197 section 4.2). Every byte of the
secret is the constant term of its own polynomial of degree M-1 with random coefficients; a share is the
values of all the polynomials at x, followed by x itself in one byte (`shamir/shamir.go` of Vault), so
shares recombine with those tools too.

Arithmetic on secret bytes has no table index and no branch that depends on them: the whole secret is one
packed integer, and only public numbers (x coordinates, Lagrange coefficients) choose what is done to it.
CPython's integers drop leading zero digits, so the *number of leading zero bits* of a packed value may
show in timing; nothing else does.

Shamir, "How to share a secret", CACM 22 (11), 1979.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import lru_cache

_MAXIMUM_SHARES = 255


def _gf_multiply(a: int, b: int) -> int:
    # Public numbers only: x coordinates and what is computed from them.
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def _gf_inverse(a: int) -> int:
    # a^254, by Fermat; a is public and not zero.
    result = 1
    for _ in range(254):
        result = _gf_multiply(result, a)
    return result


@lru_cache(maxsize=64)
def _masks(length: int) -> tuple[int, int]:
    return int.from_bytes(b"\x7f" * length, "big"), int.from_bytes(b"\x01" * length, "big")


def _scale(packed: int, scalar: int, length: int) -> int:
    # Multiplies every byte of `packed` by a public scalar: double and add, all bytes at once.
    low, ones = _masks(length)
    product = 0
    while scalar:
        if scalar & 1:
            product ^= packed
        scalar >>= 1
        if scalar:
            carry = (packed >> 7) & ones
            packed = ((packed & low) << 1) ^ carry ^ (carry << 1) ^ (carry << 3) ^ (carry << 4)
    return product


@lru_cache(maxsize=4096)
def _lagrange_at_zero(xs: tuple[int, ...]) -> tuple[int, ...]:
    coefficients = []
    for i, x_i in enumerate(xs):
        numerator = denominator = 1
        for j, x_j in enumerate(xs):
            if i != j:
                numerator = _gf_multiply(numerator, x_j)
                denominator = _gf_multiply(denominator, x_i ^ x_j)
        coefficients.append(_gf_multiply(numerator, _gf_inverse(denominator)))
    return tuple(coefficients)


def split(secret: bytes, threshold: int, xs: Sequence[int]) -> list[bytes]:
    """Split a secret into one share for each x coordinate.

    Args:
        secret: 1 or more bytes.
        threshold: M, 2 to the number of shares.
        xs: the distinct x coordinates, each 1 to 255.

    Returns:
        Shares of `len(secret) + 1` bytes, in the order of `xs`.

    Raises:
        ValueError: the numbers do not fit.
    """
    if not secret:
        raise ValueError("there is no secret to split")
    if not 2 <= threshold <= len(xs) <= _MAXIMUM_SHARES:
        raise ValueError(f"a threshold of {threshold} with {len(xs)} shares is not 2 <= M <= N <= 255")
    _check_coordinates(xs)
    length = len(secret)
    # The highest coefficient first, for Horner's rule; the secret is the constant term.
    terms = [int.from_bytes(secrets.token_bytes(length), "big") for _ in range(threshold - 1)]
    terms.append(int.from_bytes(secret, "big"))
    shares = []
    for x in xs:
        value = 0
        for term in terms:
            value = _scale(value, x, length) ^ term
        shares.append(value.to_bytes(length, "big") + bytes([x]))
    return shares


def combine(shares: Sequence[bytes]) -> bytes:
    """Recombine shares; all of them are used.

    With fewer shares than the threshold the answer is a random-looking wrong secret: the caller compares
    a key check value.

    Args:
        shares: 2 or more shares of the same length, as `split` made them.

    Returns:
        The secret, one byte shorter than a share.

    Raises:
        ValueError: fewer than two shares, different lengths, or a duplicate or zero x coordinate.
    """
    if len(shares) < 2:
        raise ValueError("two or more shares are needed")
    length = len(shares[0]) - 1
    if length < 1 or any(len(share) != length + 1 for share in shares):
        raise ValueError("the shares are not of one length of two or more bytes")
    xs = tuple(share[-1] for share in shares)
    _check_coordinates(xs)
    secret = 0
    for share, coefficient in zip(shares, _lagrange_at_zero(xs), strict=True):
        secret ^= _scale(int.from_bytes(share[:-1], "big"), coefficient, length)
    return secret.to_bytes(length, "big")


def _check_coordinates(xs: Sequence[int]) -> None:
    if len(set(xs)) != len(xs) or not all(1 <= x <= 255 for x in xs):
        raise ValueError("x coordinates are distinct and from 1 to 255")
