"""What any released version sends is understood, and what this one sends is understood by any released version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.released import FOLDER, forms, kept, kinds

RELEASED = sorted(FOLDER.glob("*.json.gz"))


def breaks(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What of a message's new form an older reader or writer would trip over; both as JSON Schema."""
    return list(_breaks(old, new, old.get("$defs", {}), new.get("$defs", {}), "", ()))


def _breaks(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    olds: Mapping[str, Any],
    news: Mapping[str, Any],
    where: str,
    seen: tuple[str, ...],
) -> Iterator[str]:
    if "$ref" in old and "$ref" in new:
        name = old["$ref"]
        if name in seen:
            return
        old, new, seen = olds[name.rpartition("/")[2]], news[new["$ref"].rpartition("/")[2]], (*seen, name)
    had, has = old.get("properties", {}), new.get("properties", {})
    for name in had.keys() - has.keys():
        yield f"{where}{name} is gone"
    for name in new.get("required", []):
        if name not in old.get("required", []):
            yield f"{where}{name} is required, and older writers do not send it"
    for name in had.keys() & has.keys():
        yield from _breaks(had[name], has[name], olds, news, f"{where}{name}.", seen)
    for key in ("type", "const", "pattern", "format", "minimum", "maximum", "maxLength", "minLength", "enum"):
        if old.get(key) != new.get(key):
            yield f"{where}{key} was {old.get(key)} and is {new.get(key)}"
    for key in ("items", "additionalProperties"):
        if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            yield from _breaks(old[key], new[key], olds, news, f"{where}{key}.", seen)
        elif isinstance(old.get(key), dict) != isinstance(new.get(key), dict):
            yield f"{where}{key} is of another form"
    for key in ("anyOf", "prefixItems", "allOf", "oneOf"):
        if len(old.get(key, [])) != len(new.get(key, [])):
            yield f"{where}{key} takes other values"
        for number, (one, other) in enumerate(zip(old.get(key, []), new.get(key, []), strict=False)):
            yield from _breaks(one, other, olds, news, f"{where}{key}.{number}.", seen)


def test_a_version_is_kept() -> None:
    assert RELEASED, "run: python -m tests.contracts.released"


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.name)
def test_every_message_of_a_released_version_is_read_whole(path: Path) -> None:
    today, count = kinds(), 0
    for name, found in kept(path)["examples"].items():
        for text in found:
            message = today[name].model_validate_json(text) if name in today else json.loads(text)
            if name in today:
                assert _within(json.loads(text), json.loads(message.model_dump_json())), name
            count += 1
    assert count > 60


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.name)
def test_no_message_has_changed_so_that_a_released_version_would_not_understand_it(path: Path) -> None:
    today = forms()
    found = {
        name: breaks(old, today[name]) if name in today else ["it is gone"] for name, old in kept(path)["forms"].items()
    }
    assert {name: why for name, why in found.items() if why} == {}


def _within(old: Any, new: Any) -> bool:
    """Whether everything that was said is said still."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and _within(value, new[key]) for key, value in old.items())
    if isinstance(old, list):
        return isinstance(new, list) and len(old) == len(new) and all(map(_within, old, new))
    return bool(old == new)


FORM: dict[str, Any] = {
    "properties": {
        "name": {"type": "string"},
        "state": {"enum": ["a", "b"]},
        "rows": {"items": {"$ref": "#/$defs/Row"}},
    },
    "required": ["name"],
    "$defs": {"Row": {"properties": {"index": {"type": "integer"}}, "required": ["index"]}},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"properties": {**FORM["properties"], "more": {"type": "string"}}}, None),
        ({"properties": {"name": FORM["properties"]["name"]}}, "is gone"),
        ({"required": ["name", "state"]}, "is required"),
        ({"properties": {**FORM["properties"], "name": {"type": "integer"}}}, "type was string"),
        ({"properties": {**FORM["properties"], "state": {"enum": ["a"]}}}, "enum was"),
        ({"properties": {**FORM["properties"], "state": {"enum": ["a", "b", "c"]}}}, "enum was"),
        ({"$defs": {"Row": {"properties": {}, "required": []}}}, "rows.items.index is gone"),
    ],
)
def test_a_change_that_breaks_is_told_from_one_that_does_not(change: dict[str, Any], said: str | None) -> None:
    found = breaks(FORM, {**FORM, **change})
    assert (found == []) if said is None else any(said in line for line in found)
