"""Workflows are deterministic: what was recorded replays, for as long as histories are kept.

`python -m tests.replay.record` records anew. A change of a workflow that breaks the replay of a history that
somebody may still have needs `workflow.patched`, not a new recording.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from workers.roles import WORKFLOWS, sandbox

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*.json"))


def replayer() -> Replayer:
    return Replayer(workflows=WORKFLOWS, workflow_runner=sandbox(), data_converter=pydantic_data_converter)


def load(path: Path) -> tuple[str, dict[str, Any]]:
    recorded = json.loads(path.read_text(encoding="utf-8"))
    return recorded["workflow_id"], recorded["history"]


def test_every_workflow_was_recorded() -> None:
    types = set()
    for path in HISTORIES:
        started = load(path)[1]["events"][0]["workflowExecutionStartedEventAttributes"]
        types.add(started["workflowType"]["name"])
    assert types == {workflow.__name__ for workflow in WORKFLOWS}


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
async def test_a_recorded_history_replays(path: Path) -> None:
    workflow_id, history = load(path)
    await replayer().replay_workflow(WorkflowHistory.from_json(workflow_id, history))


@pytest.mark.parametrize("path", HISTORIES, ids=lambda path: path.stem)
def test_a_recorded_history_is_whole_and_names_no_machine(path: Path) -> None:
    _, history = load(path)
    assert "EVENT_TYPE_WORKFLOW_EXECUTION_" in history["events"][-1]["eventType"]
    text = path.read_text(encoding="utf-8")
    assert str(Path(sys.prefix).parent) not in text
    assert f"@{socket.gethostname()}" not in text


async def test_a_history_of_other_code_does_not_replay() -> None:
    workflow_id, history = load(next(path for path in HISTORIES if path.stem == "unseal-seal"))
    for event in history["events"]:
        attributes = event.get("activityTaskScheduledEventAttributes")
        if attributes and attributes["activityType"]["name"] == "unwrap_data_key":
            attributes["activityType"]["name"] = "check_data_key"
    with pytest.raises(NondeterminismError):
        await replayer().replay_workflow(WorkflowHistory.from_json(workflow_id, history))
