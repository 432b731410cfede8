"""What is asked of the installation beside its ceremonies: reports, surveys, collections, schedules, histories."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleSpec,
    WorkflowExecution,
    WorkflowFailureError,
)
from temporalio.exceptions import TimeoutError as OutOfTime
from temporalio.service import RPCError, RPCStatusCode

from workers.client.ceremonies import workflow_error
from workflows.contracts import names
from workflows.contracts.messages.ledger import Collected
from workflows.contracts.messages.report import Report, ReportRequest
from workflows.contracts.messages.requests import CollectRequest, DrillRequest, SurveyRequest
from workflows.contracts.messages.results import SurveyResult
from workflows.contracts.trust.canonical import Message, digest
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import AnswerInvalid, ManifestInvalid, PlanInvalid
from workflows.contracts.trust.keystore import StateStatement
from workflows.contracts.trust.service_errors import CeremonyEnded, NotKnown

M = TypeVar("M", bound=Message)

_COLLECTOR = "masterkey-collector"
_REPORT_LIMIT, _LONG_LIMIT = timedelta(seconds=30), timedelta(minutes=2)


async def report(client: Client, request: ReportRequest) -> Report:
    """What the ledger says, through Temporal.

    Raises:
        MasterKeyError: the ledger is corrupt, or no orchestrator answers.
    """
    name = f"masterkey-report/{secrets.token_hex(6)}"
    return await _ask(client, "ReportWorkflow", request, name, Report, _REPORT_LIMIT)


async def collect(client: Client) -> Collected:
    """Collect now, without grace, what the schedule collects every hour; raises as `report`."""
    name = f"{_COLLECTOR}/now-{secrets.token_hex(6)}"
    return await _ask(client, "CollectWorkflow", CollectRequest(grace_seconds=0), name, Collected, _LONG_LIMIT)


async def _ask(client: Client, workflow: str, request: Message, name: str, result: type[M], limit: timedelta) -> M:
    try:
        return await _run(client, workflow, request, name, result, limit)
    except WorkflowFailureError as error:
        if isinstance(error.cause, OutOfTime):
            raise CeremonyEnded(
                f"no orchestrator answers within {limit.total_seconds():.0f} s",
                next_step="see that one of the current build runs (`masterkey worker builds`), and what it logs",
            ) from None
        raise workflow_error(error) from None


async def _run(client: Client, workflow: str, request: Message, name: str, result: type[M], limit: timedelta) -> M:
    found: M = await client.execute_workflow(
        workflow,
        request,
        id=name,
        task_queue=names.ORCHESTRATOR_QUEUE,
        result_type=result,
        execution_timeout=limit,
    )
    return found


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


async def leases(client: Client, ceremony_id: str) -> list[WorkflowExecution]:
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


async def schedule_drill(client: Client, master_key: str, every_hours: float) -> None:
    """Drill a MasterKey on a Temporal Schedule; replaces the one that there was.

    Raises:
        PlanInvalid: less than a minute apart.
    """
    if every_hours * 60 < 1:
        raise PlanInvalid("drills are at least a minute apart")
    await unschedule_drill(client, master_key)
    name, request = _schedule_id(master_key), DrillRequest(master_key=master_key)
    schedule = _schedule(name, "DrillWorkflow", request, timedelta(hours=every_hours))
    await client.create_schedule(name, schedule, trigger_immediately=True)


async def unschedule_drill(client: Client, master_key: str) -> None:
    """Stop the scheduled drills of a MasterKey; harmless if there are none."""
    try:
        await client.get_schedule_handle(_schedule_id(master_key)).delete()
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise


async def schedule_collector(client: Client) -> None:
    """Collect leftovers every hour, from the first orchestrator's start on; harmless if that is scheduled."""
    try:
        schedule = _schedule(_COLLECTOR, "CollectWorkflow", CollectRequest(), timedelta(hours=1))
        await client.create_schedule(_COLLECTOR, schedule)
    except ScheduleAlreadyRunningError:
        return


def _schedule_id(master_key: str) -> str:
    return f"masterkey-drill/{master_key}"


def _schedule(name: str, workflow: str, request: Message, every: timedelta) -> Schedule:
    return Schedule(
        action=ScheduleActionStartWorkflow(workflow, request, id=name, task_queue=names.ORCHESTRATOR_QUEUE),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=every)]),
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
        AnswerInvalid: an answer is not signed by that keystore's worker, or is an old one.
        ManifestInvalid: two remember different MasterKeys by the same name.
    """
    keystores = tuple(one.name for one in chain.current.keystores if one.offline is None)
    nonce = secrets.token_hex(16)
    request = SurveyRequest(keystores=keystores, nonce=nonce)
    found = await _run(client, "SurveyWorkflow", request, f"masterkey-survey/{nonce}", SurveyResult, _LONG_LIMIT)
    served: dict[str, tuple[str, dict[str, int]]] = {}
    answered = []
    for signed in found.statements:
        statement, name = chain.current.open(StateStatement, signed)
        if name not in keystores or statement.about != digest(bytes.fromhex(nonce)):
            raise AnswerInvalid(f"{statement.keystore} did not sign what it is said to remember")
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
