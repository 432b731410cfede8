"""Shamir's secret sharing: correct, compatible, and saying nothing below the threshold."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyshamir import _utils
from pyshamir import combine as other_combine
from pyshamir import split as other_split

from activities.crypto import shamir


def slow_multiply(a: int, b: int) -> int:
    """GF(2^8) by the schoolbook: polynomial product, then reduction by 0x11b."""
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11B << (bit - 8)
    return product


@given(st.binary(min_size=1, max_size=64), st.data())
@settings(max_examples=300, deadline=None)
def test_any_threshold_of_shares_recombines(secret: bytes, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    threshold = data.draw(st.integers(2, count))
    shares = shamir.split(secret, threshold, range(1, count + 1))
    chosen = data.draw(st.permutations(shares))[:threshold]
    assert shamir.combine(chosen) == secret
    assert shamir.combine(shares) == secret


def test_it_agrees_with_an_independent_implementation_in_thousands_of_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    # The other implementation takes a tenth of a millisecond for each product in the field: each is computed once.
    for name in ("mul", "inverse", "div"):
        monkeypatch.setattr(_utils, name, lru_cache(maxsize=None)(getattr(_utils, name)))
    generator = random.Random(20)
    for case in range(2000):
        count = generator.randint(2, 9)
        threshold = generator.randint(2, count)
        # Most secrets are short, some are of full length.
        secret = generator.randbytes(32 if case % 100 == 0 else generator.randint(1, 3))
        ours = shamir.split(secret, threshold, generator.sample(range(1, 256), count))
        assert bytes(other_combine([bytearray(s) for s in generator.sample(ours, threshold)])) == secret
        theirs = [bytes(share) for share in other_split(secret, count, threshold)]
        assert shamir.combine(generator.sample(theirs, threshold)) == secret


def test_the_packed_arithmetic_is_that_of_the_aes_field() -> None:
    for a, b in itertools.product(range(256), range(256)):
        assert shamir._scale(a, b, 1) == slow_multiply(a, b) == shamir._gf_multiply(a, b)
    for a in range(1, 256):
        assert slow_multiply(a, shamir._gf_inverse(a)) == 1


def test_packed_bytes_do_not_touch_their_neighbours() -> None:
    packed = bytes(range(256))
    for scalar in (1, 2, 3, 29, 128, 255):
        scaled = shamir._scale(int.from_bytes(packed, "big"), scalar, 256).to_bytes(256, "big")
        assert scaled == bytes(slow_multiply(byte, scalar) for byte in packed)


def test_fewer_shares_than_the_threshold_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Exhaustive for one secret byte and M = 2: over all coefficients, one share takes every value equally
    # often, whatever the secret is. For M = 3, so does every pair of shares.
    drawn: list[int] = []
    monkeypatch.setattr("activities.crypto.shamir.secrets.token_bytes", lambda _: bytes([drawn.pop()]))
    for secret in (0, 1, 0x53, 255):
        seen: Counter[int] = Counter()
        for coefficient in range(256):
            drawn.append(coefficient)
            seen[shamir.split(bytes([secret]), 2, [7, 9])[0][0]] += 1
        assert seen == Counter(dict.fromkeys(range(256), 1))
    for secret in (0, 0xA5):
        pairs: Counter[tuple[int, int]] = Counter()
        for first, second in itertools.product(range(256), repeat=2):
            drawn += [second, first]
            one, two, _ = shamir.split(bytes([secret]), 3, [1, 2, 3])
            pairs[one[0], two[0]] += 1
        assert len(pairs) == 65536
        assert set(pairs.values()) == {1}


def test_255_shares_work() -> None:
    secret = random.Random(1).randbytes(32)
    shares = shamir.split(secret, 255, range(1, 256))
    assert shamir.combine(shares) == secret
    assert shamir.combine(shares[:254]) != secret


@pytest.mark.parametrize(
    ("secret", "threshold", "xs"),
    [
        (b"", 2, [1, 2]),
        (b"s", 1, [1, 2]),
        (b"s", 3, [1, 2]),
        (b"s", 2, [*range(1, 256), 1]),
        (b"s", 2, [1, 1]),
        (b"s", 2, [0, 1]),
        (b"s", 2, [1, 256]),
    ],
)
def test_numbers_that_do_not_fit_are_refused(secret: bytes, threshold: int, xs: list[int]) -> None:
    with pytest.raises(ValueError, match=r"secret|threshold|coordinates"):
        shamir.split(secret, threshold, xs)


@pytest.mark.parametrize(
    "shares", [[], [b"a\x01"], [b"a\x01", b"ab\x02"], [b"\x01", b"\x02"], [b"a\x01", b"b\x01"], [b"a\x00", b"b\x01"]]
)
def test_shares_that_do_not_fit_are_refused(shares: list[bytes]) -> None:
    with pytest.raises(ValueError, match=r"shares|coordinates"):
        shamir.combine(shares)
