"""How long a ceremony waits between attempts, and that a month of it fits into a history."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import count

import pytest

from workflows.steps.backoff import backoff, history_budget

SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
EVENTS, BYTES = 40_000, 40 * 2**20


def test_every_wait_is_twice_as_long_up_to_the_limit() -> None:
    waits = [backoff(n, SECOND, MINUTE).total_seconds() for n in range(9)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff(10**9, 5 * SECOND, 30 * MINUTE) == 30 * MINUTE


@pytest.mark.parametrize("used", [lambda part: (part * EVENTS, 0), lambda part: (0, part * BYTES)])
def test_no_budget_is_kept_while_a_quarter_of_the_events_and_of_the_bytes_is_not_used(
    used: Callable[[float], tuple[int, int]],
) -> None:
    assert history_budget(100, *used(0.2499), DAY) == timedelta(0)
    assert history_budget(100, *used(0.25), DAY) == DAY / 300
    assert history_budget(100, *used(0.5), DAY) == DAY / 100


def test_a_full_history_leaves_one_wait_until_the_deadline() -> None:
    assert history_budget(0, EVENTS, 0, DAY) == DAY
    assert history_budget(1000, EVENTS, BYTES, DAY) == DAY
    assert history_budget(1000, 2 * EVENTS, 0, DAY) == DAY


@pytest.mark.parametrize(("events", "size"), [(50, 30_000), (10, 100_000), (200, 400_000)])
def test_a_month_of_attempts_lasts_until_the_deadline_and_ends_below_the_limit(events: int, size: int) -> None:
    """Events and bytes that one attempt costs; a plan of thirty days whose keystores never come back."""
    left = 30 * DAY
    for waits in count():
        attempts = waits + 1
        used = max(attempts * events / EVENTS, attempts * size / BYTES)
        assert used < 1
        budget = history_budget(attempts, attempts * events, attempts * size, left)
        left -= max(backoff(waits, SECOND, MINUTE), budget, SECOND)
        if left <= timedelta(0):
            break
    assert used > 0.5
