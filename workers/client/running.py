"""Runs that no worker goes on with, or that are none of ours: saying what they are, ending and moving them.

A pinned ceremony waits for the build that began it. While a worker of that build runs, all is well; when it is gone
for good, the ceremony can be moved to a build that does the very same with its history, or ended: what it did not
commit is discarded, and what it committed stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from google.protobuf.field_mask_pb2 import FieldMask
from temporalio.api.common.v1 import WorkflowExecution as ExecutionMessage
from temporalio.api.deployment.v1 import WorkerDeploymentVersion as VersionMessage
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflow.v1 import VersioningOverride, WorkflowExecutionOptions
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, UpdateWorkflowExecutionOptionsRequest
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus, WorkflowQueryFailedError
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from workflows.contracts import names
from workflows.contracts.trust.errors import PlanInvalid
from workflows.contracts.trust.service_errors import CeremonyEnded, NotKnown

UNVERSIONED = "unversioned"
OTHER_CODE = "TMPRL1100"
"""Temporal's rule of determinism, which it names where code does not fit a history."""
OTHER_BUILD = (
    "it was begun by another build of the orchestrator, which the one that runs now cannot go on with; what it had not "
    "committed is discarded"
)
_ALIVE = timedelta(seconds=75)
"""A poll waits for a minute at most, so whoever began none for longer is gone."""
_RPC_TIMEOUT = timedelta(seconds=10)
_CANCEL_SECONDS, _POLL_SECONDS, _ASK_SECONDS = 15.0, 0.25, 30.0
_VERSION = SearchAttributeKey.for_keyword("TemporalWorkerDeploymentVersion")
_BUILDS = SearchAttributeKey.for_keyword_list("BuildIds")


@dataclass(frozen=True)
class Running:
    """A run of a workflow that has not ended.

    Attributes:
        ceremony: what it is about; empty: it has not begun one, or is none of ours.
        workflow_id: of Temporal.
        workflow_type: of Temporal; anybody who may start workflows may have chosen it.
        master_key: as it says itself.
        build: that goes on with it; empty before its first task, `unversioned` where the server does not know.
        since: when it started.
    """

    ceremony: str
    workflow_id: str
    run_id: str
    workflow_type: str
    master_key: str
    build: str
    since: datetime

    @property
    def ours(self) -> bool:
        """Whether it is a workflow of this product that has begun its work."""
        return self.workflow_type in names.WORKFLOW_TYPES and bool(self.ceremony)

    def describe(self) -> str:
        """What it is, in words."""
        since = f"{self.since:%Y-%m-%d %H:%M:%S} UTC"
        if self.ours:
            return f"ceremony {self.ceremony}, since {since}" + (f", on build {self.build}" if self.build else "")
        return f"a run of {self.workflow_type} that is no ceremony, started {since} ({self.workflow_id})"


async def running(client: Client) -> AsyncIterator[Running]:
    """All runs that have not ended and are ceremonies, or hold a MasterKey's change."""
    async for found in client.list_workflows('ExecutionStatus="Running"'):
        one = _of(found)
        if one.ceremony or one.workflow_id.startswith("masterkey/"):
            yield one


async def find(client: Client, name: str) -> Running:
    """The run of a ceremony id, or of a workflow id as `masterkey` prints it.

    Raises:
        NotKnown: nothing of that name runs.
    """
    workflow_id = names.workflow_id(name) if names.parts_of(name) else name
    try:
        described = await client.get_workflow_handle(workflow_id).describe(rpc_timeout=_RPC_TIMEOUT)
    except RPCError as error:
        if error.status not in (RPCStatusCode.NOT_FOUND, RPCStatusCode.INVALID_ARGUMENT):
            raise
        raise NotKnown(f"nothing of the name {name} runs", next_step="see `masterkey ceremony list`") from None
    found = _of(described)
    if described.status != WorkflowExecutionStatus.RUNNING or (
        names.parts_of(name) and found.ceremony not in ("", name)
    ):
        raise NotKnown(f"{name} is over", next_step="see `masterkey ceremony list --all`")
    return found


def ended(client: Client) -> Callable[[str], bool]:
    """Whether a ceremony's workflow has ended, for threads of the ledger to ask; no answer is not the end.

    Args:
        client: of Temporal, in whose event loop it is asked.
    """
    loop = asyncio.get_running_loop()

    async def ask(ceremony: str) -> bool:
        try:
            await find(client, ceremony)
        except NotKnown:
            return True
        except RPCError:
            return False
        return False

    def call(ceremony: str) -> bool:
        try:
            return asyncio.run_coroutine_threadsafe(ask(ceremony), loop).result(_ASK_SECONDS)
        except (TimeoutError, CancelledError):
            # The loop is too busy, or this worker is shutting down.
            return False

    return call


async def builds_alive(client: Client) -> set[str]:
    """The builds whose workers have asked for workflow tasks lately; one that was killed stays for 75 s."""
    answer = await client.workflow_service.describe_task_queue(
        DescribeTaskQueueRequest(
            namespace=client.namespace,
            task_queue=TaskQueue(name=names.ORCHESTRATOR_QUEUE),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        ),
        timeout=_RPC_TIMEOUT,
    )
    oldest = datetime.now(UTC) - _ALIVE
    return {
        poller.deployment_options.build_id
        for poller in answer.pollers
        if poller.last_access_time.ToDatetime(UTC) > oldest
    }


async def deserted(client: Client, run: Running) -> bool:
    """Whether a run waits for a build of which no worker is left."""
    return run.build not in ("", UNVERSIONED) and run.build not in await builds_alive(client)


@dataclass(frozen=True)
class Standing:
    """What Temporal says of all that runs.

    Attributes:
        builds: of each ceremony that runs, by its id; and whether a worker of that build is there.
        foreign: what holds a name of ours and is no ceremony.
    """

    builds: Mapping[str, tuple[str, bool]]
    foreign: tuple[Running, ...]

    def words(self, ceremony: str) -> str:
        """On which build a ceremony runs, where that is worth saying; else empty."""
        build, served = self.builds.get(ceremony, ("", True))
        return "" if served else f"waits for build {build}, and no orchestrator of it runs (`masterkey worker builds`)"


async def standing(client: Client) -> Standing:
    """Which build each ceremony is on, and what else holds a name of ours."""
    alive, builds, foreign = await builds_alive(client), dict[str, tuple[str, bool]](), []
    async for one in running(client):
        if one.ours:
            builds[one.ceremony] = (one.build, one.build in alive or one.build in ("", UNVERSIONED))
        elif one.workflow_type not in names.WORKFLOW_TYPES or one.workflow_id.endswith("/change"):
            foreign.append(one)
    return Standing(builds, tuple(foreign))


async def end(client: Client, name: str, reason: str) -> str:
    """End a run: it is asked to, where a worker goes on with it; else it is terminated.

    Args:
        client: of Temporal.
        name: a ceremony id, or a workflow id.
        reason: kept in Temporal's history.

    Returns:
        What came of it.

    Raises:
        NotKnown: nothing of that name runs.
        CeremonyEnded: it is putting its plan in force and will not be interrupted.
    """
    found = await find(client, name)
    handle = client.get_workflow_handle(found.workflow_id, run_id=found.run_id)
    alive = await builds_alive(client)
    known = found.workflow_type in names.WORKFLOW_TYPES
    if known and (found.build in alive or (found.build in ("", UNVERSIONED) and alive)):
        await handle.cancel()
        until = asyncio.get_running_loop().time() + _CANCEL_SECONDS
        while asyncio.get_running_loop().time() < until:
            if (await handle.describe()).status != WorkflowExecutionStatus.RUNNING:
                return f"{found.ceremony or name} has ended; what it had not committed is discarded"
            await asyncio.sleep(_POLL_SECONDS)
        if not (await find(client, name)).ours:
            await handle.terminate(reason=reason)
            return f"{found.describe()}: terminated; it did not end by itself"
        raise CeremonyEnded(
            f"{found.ceremony} was asked to end and goes on: it is putting its plan in force, or its worker is gone",
            next_step=f"see `masterkey ceremony show {found.ceremony}`, and try again in a minute",
        )
    await handle.terminate(reason=reason)
    return f"{found.describe()}: terminated; what it had not committed will be discarded"


async def end_incompatible(client: Client) -> list[str]:
    """End what this orchestrator, which runs without versioning, cannot go on with; gives the lines that say so.

    Such a run would fail at its next step anyhow: now its people learn of it, and its MasterKey can be changed.
    """
    said = []
    async for one in running(client):
        handle = client.get_workflow_handle(one.workflow_id, run_id=one.run_id)
        try:
            await handle.query("status", rpc_timeout=_RPC_TIMEOUT)
        except WorkflowQueryFailedError as error:
            # Any other failure of the query (a holder answers none) says that the code fits the history.
            if OTHER_CODE in error.message:
                await handle.terminate(reason=OTHER_BUILD)
                said.append(f"{one.describe()}: {OTHER_BUILD}")
        except RPCError as error:
            said.append(f"{one.describe()} did not answer ({error.status.name}), and is left as it is")
    return said


async def move(client: Client, name: str, build: str) -> str:
    """Let another build go on with a ceremony. The caller has checked that it does the same with its history.

    Returns:
        The build that it was on.

    Raises:
        NotKnown: no such ceremony runs.
        PlanInvalid: it runs without versioning, or no worker of that build is there.
    """
    found = await find(client, name)
    if not found.ours or found.build in ("", UNVERSIONED):
        raise PlanInvalid(
            f"{found.describe()} is not kept on a build, so there is nothing to move",
            next_step=f"any orchestrator goes on with it; to end it: masterkey ceremony end {name}",
        )
    if build not in await builds_alive(client):
        raise PlanInvalid(
            f"no orchestrator of build {build} runs", next_step="start one, or see `masterkey worker builds`"
        )
    target = VersionMessage(deployment_name=names.DEPLOYMENT, build_id=build)
    pinned = VersioningOverride.PinnedOverride(
        behavior=VersioningOverride.PinnedOverrideBehavior.PINNED_OVERRIDE_BEHAVIOR_PINNED, version=target
    )
    await client.workflow_service.update_workflow_execution_options(
        UpdateWorkflowExecutionOptionsRequest(
            namespace=client.namespace,
            workflow_execution=ExecutionMessage(workflow_id=found.workflow_id, run_id=found.run_id),
            workflow_execution_options=WorkflowExecutionOptions(versioning_override=VersioningOverride(pinned=pinned)),
            update_mask=FieldMask(paths=["versioning_override"]),
            identity=client.identity,
        ),
        timeout=_RPC_TIMEOUT,
    )
    return found.build


def _of(found: WorkflowExecution) -> Running:
    attributes = found.typed_search_attributes
    _, _, build = attributes.get(_VERSION, "").partition(f"{names.DEPLOYMENT}:")
    override = found.raw_info.versioning_info.versioning_override.pinned.version.build_id
    if not build and any(one.startswith(UNVERSIONED) for one in attributes.get(_BUILDS, [])):
        build = UNVERSIONED
    return Running(
        ceremony=attributes.get(names.CEREMONY, ""),
        workflow_id=found.id,
        run_id=found.run_id,
        workflow_type=found.workflow_type,
        master_key=attributes.get(names.MASTER_KEY, ""),
        build=override or build,
        since=found.start_time,
    )
