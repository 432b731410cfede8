"""Talking to ceremonies as a client of Temporal: starting, watching, deciding, reading reports.

Arguments are validated here: bad start arguments would hang a workflow rather than fail it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleSpec,
    WorkflowExecution,
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
from workflows.contracts.messages.ledger import ENDS, Collected
from workflows.contracts.messages.report import Report, ReportRequest
from workflows.contracts.messages.requests import (
    ChangedPlan,
    CollectRequest,
    DrillRequest,
    HoldRequest,
    InitRequest,
    OrderRequest,
    RecoverRequest,
    ReshardRequest,
    SealRequest,
    SurveyRequest,
    UnsealRequest,
)
from workflows.contracts.messages.results import SurveyResult
from workflows.contracts.messages.status import CeremonyStatus, SubmitOutcome
from workflows.contracts.trust.canonical import Message, Signed, digest
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import (
    ApprovalInvalid,
    CeremonyEnded,
    ManifestInvalid,
    MasterKeyError,
    NotKnown,
    PlanInvalid,
    Unserved,
)
from workflows.contracts.trust.keystore import StateStatement
from workflows.contracts.trust.signatures import open_signed

M = TypeVar("M", bound=Message)
R = TypeVar("R")

_COLLECTOR = "masterkey-collector"
_POLL_SECONDS = 0.5
_ASK_AGAIN_SECONDS = 1.5
_RPC_TIMEOUT = timedelta(seconds=10)
_BUSY = (RPCStatusCode.UNAVAILABLE, RPCStatusCode.FAILED_PRECONDITION, RPCStatusCode.DEADLINE_EXCEEDED)


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


async def report(client: Client, request: ReportRequest) -> Report:
    """What the ledger says, through Temporal.

    Raises:
        MasterKeyError: the ledger is corrupt, or no orchestrator answers.
    """
    handle = await client.start_workflow(
        "ReportWorkflow",
        request,
        id=f"masterkey-report/{names.new_ceremony_id('report', 'init')[-12:]}",
        task_queue=names.ORCHESTRATOR_QUEUE,
        result_type=Report,
        execution_timeout=timedelta(seconds=30),
    )
    try:
        found: Report = await handle.result()
    except WorkflowFailureError as error:
        raise workflow_error(error) from None
    return found


async def ceremony(client: Client, ceremony_id: str) -> WorkflowHandle[Any, Any]:
    """The workflow of a ceremony, running or not.

    Raises:
        NotKnown: Temporal has none.
    """
    handle = client.get_workflow_handle(names.workflow_id(ceremony_id))
    try:
        status = await _status(handle)
        if status.ceremony == ceremony_id:
            return handle
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
    async for found in client.list_workflows(f'{names.CEREMONY.name}="{ceremony_id}"'):
        return client.get_workflow_handle(found.id, run_id=found.run_id)
    raise NotKnown(f"there is no ceremony {ceremony_id}")


async def runs(client: Client, ceremony_id: str) -> list[WorkflowExecution]:
    """Every run of a ceremony's workflow that Temporal has, the oldest first.

    Raises:
        NotKnown: it has none.
    """
    found = []
    if names.parts_of(ceremony_id):
        found = [entry async for entry in client.list_workflows(f'{names.CEREMONY.name}="{ceremony_id}"')]
    if not found:
        raise NotKnown(
            f"Temporal has no workflow of ceremony {ceremony_id}",
            next_step="histories are kept for as long as the namespace says: use a file, with --history",
        )
    return sorted(found, key=lambda entry: (entry.start_time, entry.run_id))


async def holds(client: Client, ceremony_id: str) -> list[WorkflowExecution]:
    """The workflows that waited, or wait, for a stop on behalf of whoever got a MasterKey in a ceremony."""
    found: list[WorkflowExecution] = []
    while True:
        handle = client.get_workflow_handle(names.hold_id(ceremony_id, len(found) + 1))
        try:
            found.append(await handle.describe())
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return found
            raise


async def status(client: Client, ceremony_id: str) -> CeremonyStatus:
    """What a ceremony is doing.

    Raises:
        NotKnown: Temporal has none of this id.
        Unserved: no orchestrator of the build that began it runs.
    """
    try:
        return await _status(await ceremony(client, ceremony_id))
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


async def _status(handle: WorkflowHandle[Any, Any]) -> CeremonyStatus:
    try:
        found: CeremonyStatus = await handle.query("status", result_type=CeremonyStatus, rpc_timeout=_RPC_TIMEOUT)
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
            answer: R = await handle.execute_update(name, message, result_type=result, rpc_timeout=_RPC_TIMEOUT)
            return answer
        except WorkflowUpdateFailedError as error:
            raise from_failure(error.cause) from None
        except (RPCError, WorkflowUpdateRPCTimeoutOrCancelledError) as error:
            if isinstance(error, RPCError) and error.status == RPCStatusCode.NOT_FOUND:
                raise CeremonyEnded("the ceremony is over; nothing was changed") from None
            if known := await why():
                raise known from None
            # A workflow task or a continue-as-new was in the way: the state deduplicates, so try again.
            if pause is None or (isinstance(error, RPCError) and error.status not in _BUSY):
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
                current = await _status(handle)
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
            if error.status not in _BUSY:
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


async def schedule_drill(client: Client, master_key: str, every_hours: float) -> None:
    """Drill a MasterKey on a Temporal Schedule; replaces the one that there was.

    Raises:
        PlanInvalid: less than a minute apart.
    """
    if every_hours * 60 < 1:
        raise PlanInvalid("drills are at least a minute apart")
    await unschedule_drill(client, master_key)
    request = DrillRequest(master_key=master_key)
    await client.create_schedule(
        _schedule_id(master_key),
        Schedule(
            action=ScheduleActionStartWorkflow(
                "DrillWorkflow", request, id=_schedule_id(master_key), task_queue=names.ORCHESTRATOR_QUEUE
            ),
            spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(hours=every_hours))]),
        ),
        trigger_immediately=True,
    )


async def unschedule_drill(client: Client, master_key: str) -> None:
    """Stop the scheduled drills of a MasterKey; harmless if there are none."""
    try:
        await client.get_schedule_handle(_schedule_id(master_key)).delete()
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise


async def replan(client: Client, ceremony_id: str, wish: ChangedPlan) -> str:
    """Give a recovery that waits another plan; answers with its phase. Raises as `update`."""
    return await _update(client, ceremony_id, "replan", wish, str)


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


@dataclass(frozen=True)
class Served:
    """What keystore workers say that they still serve.

    Attributes:
        master_keys: for each MasterKey, its key check value and the lowest epoch served of each purpose: the highest
            that any of them said.
        asked: who answered.
        silent: who did not.
    """

    master_keys: Mapping[str, tuple[str, Mapping[str, int]]]
    asked: tuple[str, ...]
    silent: tuple[str, ...]


async def ask_keystores(client: Client, chain: RosterChain) -> Served:
    """What the keystore workers of the roster remember, each in its own signed words over a fresh nonce.

    Raises:
        ApprovalInvalid: an answer is not signed by that keystore's worker, or is an old one.
        ManifestInvalid: two remember different MasterKeys by the same name.
    """
    keystores = {one.name: one.fingerprint for one in chain.current.keystores if one.offline is None}
    nonce = secrets.token_hex(16)
    found: SurveyResult = await client.execute_workflow(
        "SurveyWorkflow",
        SurveyRequest(keystores=tuple(keystores), nonce=nonce),
        id=f"masterkey-survey/{nonce}",
        task_queue=names.ORCHESTRATOR_QUEUE,
        result_type=SurveyResult,
        execution_timeout=timedelta(minutes=2),
    )
    served: dict[str, tuple[str, dict[str, int]]] = {}
    answered = []
    for signed in found.statements:
        statement, signer = open_signed(StateStatement, signed)
        if keystores.get(statement.keystore) != signer or statement.about != digest(bytes.fromhex(nonce)):
            raise ApprovalInvalid(f"{statement.keystore} did not sign what it is said to remember")
        answered.append(statement.keystore)
        for entry in statement.master_keys:
            kcv, epochs = served.setdefault(entry.master_key, (entry.kcv, {}))
            if entry.kcv and kcv and entry.kcv != kcv:
                raise ManifestInvalid(
                    f"two keystores remember different MasterKeys named {entry.master_key}",
                    next_step="find out which of their state directories was tampered with or mixed up",
                )
            for purpose, epoch in entry.epochs.items():
                epochs[purpose] = max(epoch, epochs.get(purpose, 0))
            served[entry.master_key] = (kcv or entry.kcv, epochs)
    return Served(served, tuple(sorted(answered)), tuple(sorted(set(keystores) - set(answered))))


async def collect(client: Client) -> Collected:
    """Collect now, without grace, what the schedule collects every hour."""
    done: Collected = await client.execute_workflow(
        "CollectWorkflow",
        CollectRequest(grace_seconds=0),
        id=f"{_COLLECTOR}/now-{secrets.token_hex(6)}",
        task_queue=names.ORCHESTRATOR_QUEUE,
        result_type=Collected,
        execution_timeout=timedelta(minutes=2),
    )
    return done


async def schedule_collector(client: Client) -> None:
    """Collect leftovers every hour, from the first orchestrator's start on; harmless if that is scheduled."""
    try:
        await client.create_schedule(
            _COLLECTOR,
            Schedule(
                action=ScheduleActionStartWorkflow(
                    "CollectWorkflow", CollectRequest(), id=_COLLECTOR, task_queue=names.ORCHESTRATOR_QUEUE
                ),
                spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(hours=1))]),
            ),
        )
    except ScheduleAlreadyRunningError:
        return


def _schedule_id(master_key: str) -> str:
    return f"masterkey-drill/{master_key}"
