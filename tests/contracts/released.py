"""What released versions send each other: `python -m tests.contracts.released` keeps it, once for each version.

A file below `tests/data/messages` holds, for every kind of message, the form that the version reads (JSON Schema) and
examples of what it writes, taken from the recorded histories. It is never written anew: an orchestrator of that version
talks to later keystore workers for a month.
"""

from __future__ import annotations

import gzip
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.api.enums.v1 import EventType

from activities.keystores.activities import KeystoreActivities
from activities.ledger.activities import LedgerActivities
from activities.strongroom.activities import StrongroomActivities
from workers.builds import product_version
from workflows.catalogue import WORKFLOWS
from workflows.contracts import messages
from workflows.contracts.trust.canonical import Message

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "data" / "messages"
Schema = Mapping[str, Any]


def kinds() -> dict[str, type[Message]]:
    """Every message that travels between roles, by the name of its class."""
    found: dict[str, type[Message]] = {}
    for module in pkgutil.iter_modules(messages.__path__, f"{messages.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Message) and value is not Message:
                found[value.__name__] = value
    return found


def _calls() -> dict[str, tuple[type, type]]:
    """What each activity takes and gives."""
    found = {}
    for group in (KeystoreActivities, LedgerActivities, StrongroomActivities):
        for value in vars(group).values():
            definition = getattr(value, "__temporal_activity_definition", None)
            if isinstance(definition, activity._Definition) and definition.name:
                takes = (definition.arg_types or [type(None)])[-1]
                found[definition.name] = (takes, definition.ret_type or type(None))
    return found


def examples(histories: Path) -> dict[str, list[str]]:
    """For each kind of message the shortest and the longest that the recorded histories hold, as JSON."""
    calls, seen = _calls(), dict[str, set[str]]()
    for path in sorted(histories.rglob("*.json")):
        for name, data in _payloads(json.loads(path.read_text(encoding="utf-8"))["history"], calls):
            seen.setdefault(name, set()).add(data)
    return {name: sorted({min(all_, key=len), max(all_, key=len)}) for name, all_ in sorted(seen.items())}


def _payloads(history: Any, calls: Mapping[str, tuple[type, type]]) -> Iterator[tuple[str, str]]:
    import base64

    starts = {workflow.__name__: workflow for workflow in WORKFLOWS}
    scheduled: dict[str, str] = {}
    for event in history.get("events", []):
        kind = event["eventType"]
        if kind == EventType.Name(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED):
            told = event["workflowExecutionStartedEventAttributes"]
            run = starts[told["workflowType"]["name"]].run
            model, values = next(iter(run.__annotations__.values())), told.get("input", {}).get("payloads", [])
        elif kind == EventType.Name(EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED):
            told = event["activityTaskScheduledEventAttributes"]
            scheduled[event["eventId"]] = told["activityType"]["name"]
            model, values = calls[told["activityType"]["name"]][0], told.get("input", {}).get("payloads", [])
        elif kind == EventType.Name(EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED):
            told = event["activityTaskCompletedEventAttributes"]
            model = calls[scheduled[told["scheduledEventId"]]][1]
            values = told.get("result", {}).get("payloads", [])
        else:
            continue
        name = model if isinstance(model, str) else model.__name__
        for value in values:
            if base64.b64decode(value["metadata"]["encoding"]) == b"json/plain":
                yield name, base64.b64decode(value["data"]).decode()


def forms() -> dict[str, Schema]:
    """What each kind of message takes, as JSON Schema."""
    return {name: model.model_json_schema(mode="validation") for name, model in sorted(kinds().items())}


def kept(path: Path) -> dict[str, Any]:
    """A kept file."""
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def main() -> None:
    """Keep this version's messages; never over what is kept."""
    path = FOLDER / f"{product_version()}.json.gz"
    if path.exists():
        sys.exit(f"{path.name} is kept already: a released version's messages are not written anew")
    data = {"forms": forms(), "examples": examples(ROOT / "histories")}
    FOLDER.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(data, indent=1, sort_keys=True).encode(), mtime=0))


if __name__ == "__main__":
    main()
