"""Medians, their spread, and ratios: subject and baseline take turns, because the machine is noisy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Series:
    """What was measured of one thing, in one unit."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Half of the values lie between these two."""
        if len(self.values) < 2:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Row:
    """A line of the table: a subject, perhaps its baseline, and perhaps an aim for their ratio.

    Attributes:
        group: heading of the line.
        name: what was measured.
        unit: of all values.
        subject: its values.
        baseline: values of what it is compared with.
        against: what that is, in words.
        aim: `<= 2` or `>= 20`; empty if there is none.
    """

    group: str
    name: str
    unit: str
    subject: Series
    baseline: Series | None = None
    against: str = ""
    aim: str = ""

    @property
    def ratio(self) -> float | None:
        """Median of the subject by median of the baseline."""
        return self.subject.median / self.baseline.median if self.baseline else None

    @property
    def reached(self) -> bool | None:
        """Whether the aim was reached; none if there is no aim."""
        if not self.aim or self.ratio is None:
            return None
        sign, number = self.aim.split()
        return self.ratio <= float(number) if sign == "<=" else self.ratio >= float(number)

    def as_json(self) -> dict[str, Any]:
        """Everything but the single values."""
        found: dict[str, Any] = {"group": self.group, "name": self.name, "unit": self.unit}
        found |= {"median": self.subject.median, "quartiles": self.subject.quartiles, "runs": len(self.subject.values)}
        if self.baseline:
            found |= {"against": self.against, "baseline": self.baseline.median, "ratio": self.ratio}
            found["baseline_quartiles"] = self.baseline.quartiles
        return found | ({"aim": self.aim, "reached": self.reached} if self.aim else {})


@dataclass
class Collected:
    """Values by name, filled turn by turn."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        """One more value."""
        self.values.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> Series:
        """All values of one thing."""
        return Series(tuple(self.values[name]))


def take_turns(subjects: Mapping[str, Callable[[], float]], rounds: int) -> Collected:
    """Measure each subject once a round, forwards and backwards in turn; a first round is not counted."""
    collected = Collected()
    for number, order in enumerate(_orders(list(subjects), rounds + 1)):
        for name in order:
            value = subjects[name]()
            if number:
                collected.add(name, value)
    return collected


async def take_turns_async(subjects: Mapping[str, Callable[[], Awaitable[float]]], rounds: int) -> Collected:
    """As `take_turns`; two rounds are not counted."""
    collected = Collected()
    for number, order in enumerate(_orders(list(subjects), rounds + 2)):
        for name in order:
            value = await subjects[name]()
            if number > 1:
                collected.add(name, value)
    return collected


def _orders(names: Sequence[str], rounds: int) -> Iterable[Sequence[str]]:
    for number in range(rounds):
        yield names if number % 2 == 0 else list(reversed(names))


def milliseconds_since(start: float) -> float:
    """Since a `time.perf_counter()`."""
    return (time.perf_counter() - start) * 1000
