"""`python -m tests.slowest REPORT...`: the ten slowest tests of several runs, and how all of them ended.

Of the reports in JUnit's XML that pytest writes with `--junit-xml`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

SHOWN = 10


class Ended(NamedTuple):
    """One test: how long it took with what was set up for it, in seconds, and how it ended."""

    seconds: float
    name: str
    how: str


def read(report: Path) -> list[Ended]:
    """The tests of one report."""
    found = []
    # Written by our own pytest a moment ago.
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314
        kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
        how = next((kinds[child.tag] for child in case if child.tag in kinds), "passed")
        name = f"{case.get('classname')}::{case.get('name')}"
        found.append(Ended(float(case.get("time", "0")), name, how))
    return found


def lines(tests: Sequence[Ended], seconds: float) -> list[str]:
    """What is said of them; the last line is as pytest's own."""
    slowest = [f"{one.seconds:8.2f}s  {one.name}" for one in sorted(tests, reverse=True)[:SHOWN]]
    counts = Counter(one.how for one in tests)
    said = ", ".join(f"{counts[how]} {how}" for how in ("failed", "passed", "skipped") if counts[how])
    return [f"the {SHOWN} slowest tests:", *slowest, f" {said} in {seconds:.2f}s ".center(80, "=")]


if __name__ == "__main__":
    print("\n".join(lines([one for report in sys.argv[2:] for one in read(Path(report))], float(sys.argv[1]))))
