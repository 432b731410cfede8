"""The rules that are taken out one by one are where they are said to be: else `python -m tests.mutations` runs none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutations.__main__ import find
from tests.mutations.rules import MUTATIONS, SELECTIONS, Mutation

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.harm)
def test_a_rule_is_found_and_taking_it_out_leaves_code(mutation: Mutation) -> None:
    file, text, altered = find(ROOT, mutation)
    compile(altered, str(file), "exec")
    assert altered != text


def test_there_are_fifty_rules_or_more_and_the_tests_that_guard_them_are_there() -> None:
    assert len(MUTATIONS) >= 50
    named = {word for selection in SELECTIONS.values() for word in selection if word.startswith("tests/")}
    assert {word for word in named if not (ROOT / word.partition("::")[0]).exists()} == set()
