"""Ways to alter a bundle: one value at a time, or with all digests computed anew, as its owner could."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from activities.ledger.log.records import GENESIS, event_digest
from workflows.contracts.trust.canonical import canonical_json

Path = tuple[str | int, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """The places of all values that are no object and no list, and of empty ones."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [(key, child) for key, child in children]
    if not inner:
        yield path
    for key, child in inner:
        yield from leaves(child, (*path, key))


def other(value: Any) -> Any:
    """Another value, as like this one as can be."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case str():
            return value[:-1] + ("0" if value[-1] != "0" else "1") if value else "0"
        case None:
            return "0"
        case _:
            return None


def altered(data: bytes, path: Path, change: Callable[[Any], Any] = other) -> bytes:
    """The bundle with one value changed, in canonical form."""
    whole = json.loads(data)
    parent = whole
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = change(parent[path[-1]])
    return _quickly(whole)


def _quickly(whole: Any) -> bytes:
    """The canonical form of a bundle, whose names are ASCII and whose numbers are whole; 30 times as fast."""
    return json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def replaced(data: bytes, path: Path, value: Any) -> bytes:
    """The bundle with another value in one place; the empty place is the whole of it."""
    return altered(data, path, lambda _: value) if path else canonical_json(value)


def rewritten(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The bundle after a change, with the whole hash chain, its head and its date computed anew."""
    whole = copy.deepcopy(json.loads(data))
    change(whole)
    last = GENESIS
    for number, event in enumerate(whole["events"], 1):
        event["seq"], event["previous"] = number, last
        last = event["digest"] = event_digest(event)
    whole["head"] = {"events": len(whole["events"]), "digest": last}
    whole["created"] = whole["events"][-1]["at"]
    return canonical_json(whole)


def with_body(data: bytes, number: int, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The bundle after a change to the body of one event, and everything computed anew that follows."""

    def work(whole: dict[str, Any]) -> None:
        event = whole["events"][number]
        body = json.loads(event["body"])
        change(body)
        event["body"] = canonical_json(body).decode()

    return rewritten(data, work)


def events_of(data: bytes, type_: str) -> list[int]:
    """Places of the events of a type."""
    return [place for place, event in enumerate(json.loads(data)["events"]) if event["type"] == type_]
