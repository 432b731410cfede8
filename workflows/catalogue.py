"""Every workflow that an orchestrator runs, and the sandbox in which it runs them."""

from __future__ import annotations

from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from workflows.drill import DrillWorkflow
from workflows.init import InitWorkflow
from workflows.order import OrderWorkflow
from workflows.recover import DisasterRecoveryWorkflow
from workflows.reshard import ReshardWorkflow
from workflows.seal import HoldWorkflow, SealWorkflow
from workflows.unseal import UnsealWorkflow
from workflows.upkeep import CollectWorkflow, ReportWorkflow, SurveyWorkflow, UnknownWorkflow

WORKFLOWS = (
    InitWorkflow,
    UnsealWorkflow,
    SealWorkflow,
    HoldWorkflow,
    OrderWorkflow,
    ReshardWorkflow,
    DisasterRecoveryWorkflow,
    DrillWorkflow,
    CollectWorkflow,
    SurveyWorkflow,
    ReportWorkflow,
)
GATED = (
    SealWorkflow,
    HoldWorkflow,
    OrderWorkflow,
    DrillWorkflow,
    CollectWorkflow,
    SurveyWorkflow,
    ReportWorkflow,
)
"""Those that must always run on the newest code; it changes only behind `workflow.patched`. All others are pinned to
the build that began them. See `workflows/README.md`.
"""
EVERYTHING = (*WORKFLOWS, UnknownWorkflow)
"""What an orchestrator registers: a start of another type is refused by a workflow too."""
PASSED_THROUGH = (
    "annotated_types",
    "cryptography",
    "pydantic",
    "pydantic_core",
    "rfc8785",
    "sshsig",
    "workflows.calls",
    "workflows.contracts",
    "workflows.steps",
)
"""Modules that the workflow sandbox shares with the process: pure, and costly or impossible to import again.

It imports the rest, the modules of the workflows themselves, anew for every run. This is the one place that says so:
no module asks for it by itself.
"""


def sandbox() -> SandboxedWorkflowRunner:
    """The sandbox in which workflow code runs."""
    return SandboxedWorkflowRunner(restrictions=SandboxRestrictions.default.with_passthrough_modules(*PASSED_THROUGH))
