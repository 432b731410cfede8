"""Calls of the ledger from a workflow: activities of the orchestrator, on the workflow's own queue."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

from workflows.calls.failures import from_failure
from workflows.contracts.trust.canonical import Message

M = TypeVar("M", bound=Message)

_ATTEMPT = timedelta(seconds=30)
_RETRY = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30))
"""The ledger may be away for hours: its activities are retried until it is back."""


async def call_ledger(
    activity: str,
    request: Message,
    result: type[M] | None = None,
    *,
    attempt: timedelta = _ATTEMPT,
    within: timedelta | None = None,
    retry: RetryPolicy = _RETRY,
) -> M:
    """Call the ledger, again and again until it is back, each attempt and all of them as long as is said.

    Raises:
        MasterKeyError: the ledger refused, or the time is over.
    """
    try:
        answer: M = await workflow.execute_activity(
            activity,
            request,
            result_type=result,
            start_to_close_timeout=attempt,
            schedule_to_close_timeout=within,
            retry_policy=retry,
        )
    except ActivityError as error:
        raise from_failure(error) from None
    return answer
