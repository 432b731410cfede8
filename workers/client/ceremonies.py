"""Talking to ceremonies as a client of Temporal: starting, watching, deciding, reading reports.

Arguments are validated here: bad start arguments would hang a workflow rather than fail it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from temporalio.client import (
    Client,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from workers.client import running
from workflows.calls.failures import from_failure
from workflows.contracts import names
from workflows.contracts.messages.ledger import ENDS
from workflows.contracts.messages.requests import (
    ChangedPlan,
    DrillRequest,
    HoldRequest,
    InitRequest,
    OrderRequest,
    RecoverRequest,
    ReshardRequest,
    SealRequest,
    UnsealRequest,
)
from workflows.contracts.messages.status import CeremonyStatus, SubmitOutcome
from workflows.contracts.trust.canonical import Message, Signed
from workflows.contracts.trust.errors import MasterKeyError
from workflows.contracts.trust.service_errors import CeremonyEnded, NotKnown, Unserved

M = TypeVar("M", bound=Message)
R = TypeVar("R")

_COLLECTOR = "masterkey-collector"
_POLL_SECONDS = 0.5
_ASK_AGAIN_SECONDS = 1.5
RPC_TIMEOUT = timedelta(seconds=10)
BUSY = (
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.RESOURCE_EXHAUSTED,
)
"""What the server answers when the same may be asked again."""


Request = InitRequest | UnsealRequest | DrillRequest | ReshardRequest | RecoverRequest | OrderRequest | SealRequest


async def start(client: Client, workflow: str, request: Request) -> WorkflowHandle[Any, Any]:
    """Start a ceremony; at most one that changes a MasterKey runs at a time.

    Raises:
        CeremonyEnded: another ceremony is changing this MasterKey.
    """
    try:
        return await client.start_workflow(
            workflow,
            request,
            id=names.workflow_id(str(request.ceremony)),
            task_queue=names.ORCHESTRATOR_QUEUE,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        )
    except WorkflowAlreadyStartedError:
        raise await _held(client, str(request.ceremony), str(request.master_key)) from None


async def _held(client: Client, ceremony_id: str, master_key: str) -> CeremonyEnded:
    """What holds the workflow id that a ceremony would have had."""
    workflow_id = names.workflow_id(ceremony_id)
    try:
        holder = await running.find(client, workflow_id)
    except NotKnown:
        return CeremonyEnded(f"another ceremony was changing {master_key}, and is over", next_step="try again")
    if not holder.ours:
        return CeremonyEnded(
            f"{master_key} cannot be changed: that is held by {holder.describe()}",
            next_step=f"end it: masterkey ceremony end {workflow_id}",
        )
    if await running.deserted(client, holder):
        return CeremonyEnded(
            f"{master_key} cannot be changed: {holder.describe()} holds that, and no orchestrator of that build runs",
            next_step=f"start one, or: masterkey ceremony move {holder.ceremony}, or masterkey ceremony end "
            f"{holder.ceremony}",
        )
    return CeremonyEnded(
        f"another ceremony is changing {master_key} at this moment: {holder.describe()}",
        next_step=f"see `masterkey ceremony show {holder.ceremony}` and decide it first",
    )


async def ceremony(client: Client, ceremony_id: str) -> WorkflowHandle[Any, Any]:
    """The workflow of a ceremony, running or not.

    Raises:
        NotKnown: Temporal has none.
    """
    handle = client.get_workflow_handle(names.workflow_id(ceremony_id))
    try:
        status = await status_of(handle)
        if status.ceremony == ceremony_id:
            return handle
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
    async for found in client.list_workflows(f'{names.CEREMONY.name}="{ceremony_id}"'):
        return client.get_workflow_handle(found.id, run_id=found.run_id)
    raise NotKnown(f"there is no ceremony {ceremony_id}")


async def status(client: Client, ceremony_id: str) -> CeremonyStatus:
    """What a ceremony is doing.

    Raises:
        NotKnown: Temporal has none of this id.
        Unserved: no orchestrator of the build that began it runs.
    """
    try:
        return await status_of(await ceremony(client, ceremony_id))
    except RPCError as error:
        raise (await _unserved(client, ceremony_id)) or error from None


async def _unserved(client: Client, ceremony_id: str) -> Unserved | None:
    """Why a ceremony does not answer, if that is because its build is gone."""
    with suppress(NotKnown, RPCError):
        found = await running.find(client, ceremony_id)
        if await running.deserted(client, found):
            return Unserved(
                f"{ceremony_id} waits for build {found.build}, and no orchestrator of that build runs; nothing is lost",
                next_step=f"start one, or: masterkey ceremony move {ceremony_id}, or masterkey ceremony end "
                f"{ceremony_id}",
            )
    return None


async def status_of(handle: WorkflowHandle[Any, Any]) -> CeremonyStatus:
    """What the ceremony of a workflow is doing.

    Raises:
        CeremonyEnded: another build began it, and the one that answers cannot go on with it.
    """
    try:
        found: CeremonyStatus = await handle.query("status", result_type=CeremonyStatus, rpc_timeout=RPC_TIMEOUT)
    except WorkflowQueryFailedError as error:
        if running.OTHER_CODE not in error.message:
            raise
        raise CeremonyEnded(
            f"{handle.id} was begun by another build of the orchestrator, and the one that answers cannot go on with "
            "it; what it committed stands, and nothing else of it will be",
            next_step="see what came of it with `masterkey audit log`; if it is open still, end it with `masterkey "
            "ceremony end`, and begin anew",
        ) from None
    return found


async def submit(client: Client, ceremony_id: str, signed: Signed) -> SubmitOutcome:
    """Submit a decision, and learn at once what came of it.

    Raises:
        ApprovalInvalid, CeremonyEnded: why it does not count.
    """
    return await _update(client, ceremony_id, "submit", signed, SubmitOutcome)


async def _update(client: Client, ceremony_id: str, name: str, message: Message, result: type[R]) -> R:
    try:
        handle = await ceremony(client, ceremony_id)
    except RPCError as error:
        raise (await _unserved(client, ceremony_id)) or error from None
    return await update(handle, name, message, result, why=lambda: _unserved(client, ceremony_id))


async def _unknown() -> MasterKeyError | None:
    return None


async def update(
    handle: WorkflowHandle[Any, Any],
    name: str,
    message: Message,
    result: type[R],
    *,
    why: Callable[[], Awaitable[MasterKeyError | None]] = _unknown,
) -> R:
    """Send an update to a ceremony, again where the server could not take it at that moment.

    Args:
        handle: of the ceremony.
        name: of the update.
        message: its argument.
        result: of its answer.
        why: asked where it is not answered; what it gives is raised, and nothing tried again.

    Raises:
        CeremonyEnded: the ceremony is over.
        Unserved: no orchestrator of the build that began it runs.
        MasterKeyError: why it was refused.
    """
    for pause in (0.2, 0.5, 1.0, 2.0, None):
        try:
            answer: R = await handle.execute_update(name, message, result_type=result, rpc_timeout=RPC_TIMEOUT)
            return answer
        except WorkflowUpdateFailedError as error:
            raise from_failure(error.cause) from None
        except (RPCError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
            if isinstance(error, RPCError) and error.status == RPCStatusCode.NOT_FOUND:
                raise CeremonyEnded("the ceremony is over; nothing was changed") from None
            if known := await why():
                raise known from None
            # A workflow task or a continue-as-new was in the way: the state deduplicates, so try again.
            if pause is None or (isinstance(error, RPCError) and error.status not in BUSY):
                raise
            await asyncio.sleep(pause)
    raise AssertionError("unreachable")


async def watch(handle: WorkflowHandle[Any, Any], result: type[M], show: Callable[[CeremonyStatus], None]) -> M:
    """Wait for a ceremony's end, and show its progress meanwhile.

    Raises:
        MasterKeyError: the ceremony's own failure.
    """
    waiting, asked = asyncio.ensure_future(_result(handle)), time.monotonic()
    try:
        while True:
            done, _ = await asyncio.wait([waiting], timeout=_POLL_SECONDS)
            if done:
                return result.model_validate(waiting.result())
            try:
                current = await status_of(handle)
            except (RPCError, MasterKeyError):
                # What ends it is said by its result.
                continue
            if current.phase not in ENDS:
                show(current)
            elif time.monotonic() > asked + _ASK_AGAIN_SECONDS:
                # The server has been seen to forget a waiting request when the workflow closes at that moment.
                waiting.cancel()
                waiting, asked = asyncio.ensure_future(_result(handle)), time.monotonic()
    finally:
        waiting.cancel()


async def _result(handle: WorkflowHandle[Any, Any]) -> Any:
    while True:
        try:
            return await handle.result()
        except WorkflowFailureError as error:
            raise workflow_error(error) from None
        except RPCError as error:
            # The server was away for long: the ceremony is durable, so wait on.
            if error.status not in BUSY:
                raise
            await asyncio.sleep(1)


def workflow_error(error: WorkflowFailureError) -> MasterKeyError:
    """Our error for a failed ceremony."""
    if isinstance(error.cause, CancelledError):
        return CeremonyEnded("the ceremony was cancelled by an operator")
    if isinstance(error.cause, TerminatedError):
        return CeremonyEnded(f"the ceremony was ended from outside: {error.cause.message}", next_step="begin it anew")
    if isinstance(error.cause, ApplicationError):
        if running.OTHER_CODE in error.cause.message:
            return CeremonyEnded(running.OTHER_BUILD, next_step="begin it anew")
        return from_failure(error.cause)
    return CeremonyEnded(f"the ceremony ended: {type(error.cause).__name__}")


async def replan(client: Client, ceremony_id: str, requested: ChangedPlan) -> str:
    """Give a recovery that waits another plan; answers with its phase. Raises as `update`."""
    return await _update(client, ceremony_id, "replan", requested, str)


async def hold(client: Client, request: HoldRequest) -> WorkflowHandle[Any, Any]:
    """Let a recipient that holds a MasterKey hear of a stop: the result is one, or comes when it has let go."""
    return await client.start_workflow(
        "HoldWorkflow",
        request,
        id=names.hold_id(request.ceremony, request.turn),
        task_queue=names.ORCHESTRATOR_QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
    )
