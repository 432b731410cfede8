"""In which order tests run, and which of them share a process.

With `-n 2 --dist loadgroup` two processes run the tests, which wait more than they compute. Tests that share what is
dear to start (a running installation, emulators) stay together: those of one folder, and those of one installation.

With `--shuffle SEED` the order is another one for each seed: of folders, of files in a folder, of tests in a file.
What passes only in the usual order leans on what another test has left.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
_DEAR = {"learned": "apart", "apart": "apart", "gated": "gated", "losing": "losing", "installation": "installation"}
"""Fixtures that are an installation, the most particular first, and with whose tests theirs stay together."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option `--shuffle`."""
    parser.addoption("--shuffle", metavar="SEED", help="run the tests in an order of their own for each seed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say which tests stay together, and shuffle them if that is asked for."""
    for item in items:
        used = getattr(item, "fixturenames", ())
        group = next((group for name, group in _DEAR.items() if name in used), _folder(item))
        item.add_marker(pytest.mark.xdist_group(group))
    if (seed := config.getoption("--shuffle")) is not None:
        items.sort(key=lambda item: [_drawn(seed, name) for name in (_folder(item), str(item.path), item.nodeid)])


def pytest_report_header(config: pytest.Config) -> str | None:
    """The seed, to repeat an order."""
    seed = config.getoption("--shuffle")
    return None if seed is None else f"order: --shuffle {seed}"


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""


def _drawn(seed: str, name: str) -> float:
    return random.Random(f"{seed} {name}").random()
