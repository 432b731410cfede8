"""Small helpers for tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(found: Callable[[], T | None], seconds: float = 60.0) -> T:
    """Ask until the answer is not None or false, less and less often; fails after so many seconds.

    The limit only ends a test that would hang: it is long, because machines that run tests are busy.
    """
    deadline, pause = time.monotonic() + seconds, 0.02
    while True:
        answer = found()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"it did not happen within {seconds:g} s"
        time.sleep(pause)
        pause = min(1.5 * pause, 0.5)
