"""How workflow code is run: in the sandbox, never on a start that it cannot read, with the behaviour its type has.

Two things are decided here for every workflow at once, before its own code sees anything:

- A start whose arguments are not the one request that the workflow takes fails, with the type of one of our errors.
  Temporal's SDK would fail the workflow task instead, again and again: the run would neither end nor be cancelled, and
  hold its workflow id.
- How a run behaves when a new build of the orchestrator is installed: see `workflows/README.md`, which has the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from temporalio.bridge.proto.workflow_activation import InitializeWorkflow, WorkflowActivation
from temporalio.bridge.proto.workflow_commands import QueryResult, WorkflowCommand
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.common import VersioningBehavior
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner

from workflows.calls.failures import as_failure
from workflows.catalogue import GATED, WORKFLOWS
from workflows.contracts.trust.errors import DocumentInvalid, MasterKeyError

_PINNED = frozenset(workflow.__name__ for workflow in WORKFLOWS if workflow not in GATED)


def behaviour_of(workflow_type: str) -> VersioningBehavior:
    """Whether a run stays on the build that began it, or goes on with the newest one."""
    return VersioningBehavior.PINNED if workflow_type in _PINNED else VersioningBehavior.AUTO_UPGRADE


class StrictRunner(WorkflowRunner):
    """Another runner's instances, behind the two decisions above.

    Args:
        inner: runs the code, as the SDK's sandbox.
        versioned: whether to tell the server each run's behaviour; it refuses that of workers without versioning.
    """

    def __init__(self, inner: WorkflowRunner, *, versioned: bool = False) -> None:
        self._inner = inner
        self._versioned = versioned

    def prepare_workflow(self, defn: Any) -> None:
        """Once for each workflow when the worker starts."""
        self._inner.prepare_workflow(defn)

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        """Once for each run that this worker goes on with."""
        behaviour = behaviour_of(det.info.workflow_type) if self._versioned else None
        return _StrictInstance(self._inner.create_instance(det), det, behaviour)

    def set_worker_level_failure_exception_types(self, types: Sequence[type[BaseException]]) -> None:
        """Which exceptions fail a run, and not only its task."""
        self._inner.set_worker_level_failure_exception_types(types)


class _StrictInstance(WorkflowInstance):
    """One run."""

    def __init__(
        self, inner: WorkflowInstance, det: WorkflowInstanceDetails, behaviour: VersioningBehavior | None
    ) -> None:
        self._inner = inner
        self._det = det
        self._behaviour = behaviour
        self._refusal: MasterKeyError | None = None

    def activate(self, act: WorkflowActivation) -> WorkflowActivationCompletion:
        started = next((job.initialize_workflow for job in act.jobs if job.HasField("initialize_workflow")), None)
        if started is not None:
            self._refusal = self._check(started)
        if self._refusal is None:
            completion = self._inner.activate(act)
        else:
            completion = self._refuse(act, self._refusal, begins=started is not None)
        if self._behaviour is not None and completion.HasField("successful"):
            completion.successful.versioning_behavior = self._behaviour.value
        return completion

    def _check(self, started: InitializeWorkflow) -> MasterKeyError | None:
        """Why a start cannot be read, by the argument types of the run method; none if it can."""
        if self._det.defn.name is None:
            # Of a type that is none of ours: see `UnknownWorkflow`.
            return None
        kinds, converter = self._det.defn.arg_types or [], self._det.payload_converter_factory()
        given = list(started.arguments)
        try:
            if len(given) != len(kinds):
                raise ValueError(f"it has {len(given)} arguments, not {len(kinds)}")
            for kind, value in zip(kinds, converter.from_payloads(given, type_hints=kinds), strict=True):
                if isinstance(kind, type) and issubclass(kind, BaseModel) and not isinstance(value, kind):
                    raise ValueError(f"its argument is no {kind.__name__}")
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "argument"
            reason = f"{where}: {first['msg']}"
        except Exception as error:  # noqa: BLE001 - whatever a converter makes of garbage; its text may quote that
            reason = (
                str(error) if type(error) is ValueError else f"its argument cannot be read ({type(error).__name__})"
            )
        else:
            return None
        return DocumentInvalid(
            f"{self._det.info.workflow_type} was started with something else than its request: {reason}",
            next_step="start ceremonies with `masterkey`, of the same version as the orchestrator or older",
        )

    def _refuse(self, act: WorkflowActivation, why: MasterKeyError, *, begins: bool) -> WorkflowActivationCompletion:
        completion = WorkflowActivationCompletion(run_id=act.run_id)
        completion.successful.SetInParent()
        commands = completion.successful.commands
        if begins:
            commands.append(self._failed(why))
        for job in act.jobs:
            if job.HasField("query_workflow"):
                answer = QueryResult(query_id=job.query_workflow.query_id)
                self._fill(why, answer.failed)
                commands.append(WorkflowCommand(respond_to_query=answer))
        return completion

    def _failed(self, why: MasterKeyError) -> WorkflowCommand:
        command = WorkflowCommand()
        self._fill(why, command.fail_workflow_execution.failure)
        return command

    def _fill(self, why: MasterKeyError, failure: Any) -> None:
        self._det.failure_converter_class().to_failure(as_failure(why), self._det.payload_converter_factory(), failure)

    # --- the rest is the inner instance's --------------------------------------------------------------------

    def get_serialization_context(self, command_info: Any) -> Any:
        return self._inner.get_serialization_context(command_info)

    def get_external_store_context(self, command_info: Any) -> Any:
        return self._inner.get_external_store_context(command_info)

    def get_info(self) -> Any:
        return self._inner.get_info()

    def get_thread_id(self) -> int | None:
        return self._inner.get_thread_id()
