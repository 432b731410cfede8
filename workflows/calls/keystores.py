"""Calls of keystores from a workflow: one call, one activity, on that keystore worker's own queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError

from workflows.calls.answers import read_answer
from workflows.calls.failures import from_failure
from workflows.contracts import names
from workflows.contracts.messages.protection import DekAnswer
from workflows.contracts.trust.canonical import Message
from workflows.contracts.trust.errors import MasterKeyError
from workflows.contracts.trust.service_errors import KeystoreUnavailable

M = TypeVar("M", bound=Message)

CALL_TIMEOUT = timedelta(seconds=15)
"""Limit of one call of a keystore: its SDK's own time-out (10 s by default) comes first."""
HEDGE_DELAY = timedelta(seconds=1)
"""How long a keystore may be silent before another is asked as well."""
_HEARTBEAT = timedelta(seconds=5)
_LONGEST_ANSWER = 64 * 1024
"""Bytes; the answers of all keystores travel on together, and Temporal takes 2 MiB at once."""


async def call_keystore(
    activity: str,
    keystore: str,
    request: Message,
    result: type[M],
    *,
    within: timedelta,
    attempts: int = 1,
) -> M:
    """Call one keystore.

    Args:
        activity: which call.
        keystore: its configured name.
        request: what is asked.
        result: type of the answer.
        within: limit of all attempts, and of waiting for its worker.
        attempts: 1 where the caller hedges; more where every keystore must answer.

    Raises:
        MasterKeyError: by type; `KeystoreUnavailable` for a time-out.
    """
    try:
        answer = await workflow.execute_activity(
            activity,
            request,
            result_type=RawValue,
            task_queue=names.keystore_queue(keystore),
            # The server would cut it so anyway, and a history would not say what the code does.
            start_to_close_timeout=min(CALL_TIMEOUT, within),
            schedule_to_close_timeout=within,
            heartbeat_timeout=_HEARTBEAT,
            retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), maximum_attempts=attempts),
        )
    except ActivityError as error:
        raise from_failure(error, subject=keystore) from None
    try:
        return read_answer(answer, result, longest=_LONGEST_ANSWER)
    except ValueError:
        raise KeystoreUnavailable(
            f"the worker of {keystore} gave an answer that cannot be read",
            next_step=f"compare the versions of the orchestrator and of the worker of {keystore}",
            subject=keystore,
        ) from None


async def hedged(
    candidates: Sequence[int],
    need: int,
    start: Callable[[int], asyncio.Task[DekAnswer]],
    failed: Callable[[int, MasterKeyError], None],
) -> dict[int, DekAnswer]:
    """Ask `need` of the candidates, and the next one whenever one fails or is slow.

    Args:
        candidates: indexes of shards, the preferred ones first.
        need: how many answers are enough.
        start: asks one.
        failed: told of every failure.

    Returns:
        At most `need` answers; fewer when all candidates were asked and too few answered.
    """
    waiting = list(candidates)
    running: dict[asyncio.Task[DekAnswer], int] = {}
    answers: dict[int, DekAnswer] = {}

    def ask_next() -> None:
        if waiting:
            index = waiting.pop(0)
            running[start(index)] = index

    for _ in range(need):
        ask_next()
    try:
        while running and len(answers) < need:
            delay = HEDGE_DELAY.total_seconds() if waiting else None
            done, _ = await workflow.wait(list(running), timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                ask_next()
            for task in done:
                index = running.pop(task)
                try:
                    answers[index] = task.result()
                except MasterKeyError as error:
                    failed(index, error)
                    ask_next()
    finally:
        for task in running:
            task.cancel()
    return answers
