"""Which messages each workflow takes: a stop and an order have no use for contributions, a lease for decisions."""

from __future__ import annotations

import pytest
from temporalio import workflow

from workflows.catalogue import WORKFLOWS

DECISIONS = {"signal approve", "update submit", "query status"}
CONTRIBUTIONS = {"update contribute", "query wanted"}
HANDLERS = {
    "InitWorkflow": DECISIONS | CONTRIBUTIONS,
    "UnsealWorkflow": DECISIONS | CONTRIBUTIONS | {"signal stop"},
    "SealWorkflow": DECISIONS | {"signal acknowledge"},
    "HoldWorkflow": {"signal stop", "signal released"},
    "OrderWorkflow": DECISIONS,
    "ReshardWorkflow": DECISIONS | CONTRIBUTIONS,
    "DisasterRecoveryWorkflow": DECISIONS | CONTRIBUTIONS | {"update replan"},
    "DrillWorkflow": DECISIONS | CONTRIBUTIONS,
    "CollectWorkflow": set(),
    "SurveyWorkflow": set(),
    "ReportWorkflow": set(),
}


@pytest.mark.parametrize("kind", WORKFLOWS, ids=lambda kind: kind.__name__)
def test_a_workflow_takes_the_messages_that_it_has_a_use_for(kind: type) -> None:
    own = workflow._Definition.must_from_class(kind)
    found = {f"signal {name}" for name in own.signals}
    found |= {f"update {name}" for name in own.updates}
    found |= {f"query {name}" for name in own.queries}
    assert found == HANDLERS[kind.__name__]
