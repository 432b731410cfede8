"""Names that everyone must agree on: task queues, workflow ids, ceremony ids, activities, search attributes."""

from __future__ import annotations

import re
import secrets

from temporalio.common import SearchAttributeKey

from workflows.contracts.trust.fields import Action
from workflows.contracts.trust.service_errors import NotKnown

ORCHESTRATOR_QUEUE = "masterkey"
DEPLOYMENT = "masterkey-orchestrator"
"""The worker deployment's name; the server calls a build `masterkey-orchestrator.BUILD`."""
WORKFLOW_TYPES = frozenset(
    {
        "InitWorkflow",
        "UnsealWorkflow",
        "SealWorkflow",
        "HoldWorkflow",
        "OrderWorkflow",
        "ReshardWorkflow",
        "DisasterRecoveryWorkflow",
        "DrillWorkflow",
        "CollectWorkflow",
        "SurveyWorkflow",
        "ReportWorkflow",
    }
)
"""Of Temporal: what whoever asks for a workflow calls it, without importing any."""

MASTER_KEY = SearchAttributeKey.for_keyword("MasterKey")
ACTION = SearchAttributeKey.for_keyword("MasterKeyAction")
PHASE = SearchAttributeKey.for_keyword("MasterKeyPhase")
CEREMONY = SearchAttributeKey.for_keyword("MasterKeyCeremony")
SEARCH_ATTRIBUTES = (MASTER_KEY, ACTION, PHASE, CEREMONY)

# Activities of a keystore's worker.
DESCRIBE_KEY = "describe_key"
GENERATE_DATA_KEY = "generate_data_key"
UNWRAP_DATA_KEY = "unwrap_data_key"
CHECK_DATA_KEY = "check_data_key"
NOTE_COMMIT = "note_commit"
NOTE_ORDER = "note_order"
STOP_SERVING = "stop_serving"
REPORT_STATE = "report_state"
# Activities of a strongroom.
OPEN_SESSION = "open_session"
HOLD_SESSION = "hold_session"
PROTECT = "protect"
RELEASE = "release"
RESHARD = "reshard"
# Activities of the orchestrator, over the ledger.
BEGIN_CEREMONY = "begin_ceremony"
RECORD_PLAN = "record_plan"
RECORD_EVENTS = "record_events"
STAGE_PROTECTION = "stage_protection"
COMMIT_PROTECTION = "commit_protection"
CLOSE_CEREMONY = "close_ceremony"
READ_REPORT = "read_report"
EXECUTE_ORDER = "execute_order"
RECORD_HOLDING = "record_holding"
EXPORT_BUNDLE = "export_bundle"
COLLECT = "collect"

DRILL_FINISHED = "drill-finished"
"""Type of the event that carries a drill's result."""

_CEREMONY = re.compile(r"([a-z0-9][a-z0-9-]{0,62})\.([a-z]+)\.[0-9a-f]{12}")
CHANGING: tuple[str, ...] = ("init", "reshard", "recover", "retire", "destroy")
"""Actions that change a MasterKey: at most one such ceremony runs at a time."""


def keystore_queue(name: str) -> str:
    """Task queue of a keystore's worker."""
    return f"masterkey-keystore-{name}"


def strongroom_queue(name: str) -> str:
    """Task queue on which the strongroom of this name opens sessions."""
    return f"masterkey-strongroom-{name}"


def new_ceremony_id(master_key: str, action: Action) -> str:
    """A fresh ceremony id: MasterKey, action and 48 random bits."""
    return f"{master_key}.{action}.{secrets.token_hex(6)}"


def parts_of(ceremony: str) -> tuple[str, str] | None:
    """The MasterKey and the action that a ceremony id names; None if it is no such id."""
    match = _CEREMONY.fullmatch(ceremony)
    return (match[1], match[2]) if match else None


_HOLD = "/hold/"


def hold_id(ceremony: str, turn: int = 1) -> str:
    """The id of a workflow by which whoever got a MasterKey in this ceremony hears of a stop.

    Who has to begin again, because Temporal was lost or somebody sent a stop that was none, takes the next turn.
    """
    return f"masterkey/{ceremony}{_HOLD}{turn}"


def held_since(workflow: str) -> str | None:
    """The ceremony that a hold's workflow belongs to, or None if the id is that of something else."""
    before, mark, _ = workflow.partition(_HOLD)
    return before.removeprefix("masterkey/") if mark else None


def workflow_id(ceremony: str) -> str:
    """The id of the workflow that runs a ceremony.

    Ceremonies that change a MasterKey share one id, so that Temporal lets only one of them run.

    Raises:
        NotKnown: this is no ceremony id.
    """
    parts = parts_of(ceremony)
    if parts is None:
        raise NotKnown(f"{ceremony!r} is not a ceremony id", next_step="list them with `masterkey ceremony list`")
    master_key, action = parts
    return f"masterkey/{master_key}/change" if action in CHANGING else f"masterkey/{ceremony}"
