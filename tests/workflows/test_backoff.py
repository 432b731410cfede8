"""How long a ceremony waits between attempts, and that a month of it fits into a history."""

from __future__ import annotations

from datetime import timedelta
from itertools import count

import pytest

from workflows.steps.backoff import backoff, history_budget, used_history

SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)


def test_every_wait_is_twice_as_long_up_to_the_limit() -> None:
    waits = [backoff(n, SECOND, MINUTE).total_seconds() for n in range(9)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff(10**9, 5 * SECOND, 30 * MINUTE) == 30 * MINUTE


def test_events_and_bytes_are_both_limited() -> None:
    assert used_history(40_000, 0) == used_history(0, 40 * 2**20) == 1
    assert used_history(10_000, 20 * 2**20) == 0.5


def test_no_budget_is_kept_while_a_quarter_of_the_history_is_not_used() -> None:
    assert history_budget(100, 0.2499, DAY) == timedelta(0)
    assert history_budget(100, 0.25, DAY) == DAY / 300


def test_a_full_history_leaves_one_wait_until_the_deadline() -> None:
    assert history_budget(0, 0.5, DAY) == DAY
    assert history_budget(1000, 1.0, DAY) == DAY
    assert history_budget(1000, 1.1, DAY) == DAY


@pytest.mark.parametrize(("events", "size"), [(50, 30_000), (10, 100_000), (200, 400_000)])
def test_a_month_of_attempts_lasts_until_the_deadline_and_ends_below_the_limit(events: int, size: int) -> None:
    """Events and bytes that one attempt costs; a plan of thirty days whose keystores never come back."""
    left = 30 * DAY
    for waits in count():
        attempts = waits + 1
        used = used_history(attempts * events, attempts * size)
        assert used < 1
        left -= max(backoff(waits, SECOND, MINUTE), history_budget(attempts, used, left), SECOND)
        if left <= timedelta(0):
            break
    assert used > 0.5
