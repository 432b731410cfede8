"""Shamir: splits and combines per second, 32 bytes, 3 of 5, beside an independent implementation."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Any

import pyshamir

from activities.crypto import shamir
from tests.bench.measure import Row, take_turns

THRESHOLD, COUNT = 3, 5
AIM = ">= 20"


def _per_second(work: Callable[[], Any], times: int) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        for _ in range(times):
            work()
        return times / (time.perf_counter() - start)

    return run


def measure(rounds: int) -> list[Row]:
    """Both directions."""
    secret = secrets.token_bytes(32)
    xs = tuple(range(1, COUNT + 1))
    shares = shamir.split(secret, THRESHOLD, xs)[:THRESHOLD]
    theirs = [bytearray(share) for share in shares]
    found = take_turns(
        {
            "split": _per_second(lambda: shamir.split(secret, THRESHOLD, xs), 500),
            "their split": _per_second(lambda: pyshamir.split(secret, COUNT, THRESHOLD), 4),
            "combine": _per_second(lambda: shamir.combine(shares), 500),
            "their combine": _per_second(lambda: pyshamir.combine(theirs), 4),
        },
        rounds,
    )
    assert shamir.combine(shares) == bytes(pyshamir.combine(theirs)) == secret
    return [
        Row("Shamir, 32 bytes, 3 of 5", what, "1/s", found[what], found[f"their {what}"], "pyshamir", AIM)
        for what in ("split", "combine")
    ]
