"""Using a session of the strongroom from a workflow: opened, held, used once, given up when it dies.

A session lives in one process of one worker, so its calls go to that worker's own task queue. An activity
that does nothing but hold it, with a short heartbeat, tells within two seconds that the worker is gone;
then the caller opens another session and repeats its keystore calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy
from temporalio.exceptions import ActivityError

from workflows.calls.answers import read_answer
from workflows.calls.failures import from_failure
from workflows.contracts import names
from workflows.contracts.messages.strongroom import HoldSession, OpenSession, SessionOpened
from workflows.contracts.trust.canonical import Message
from workflows.contracts.trust.errors import SessionLost
from workflows.contracts.trust.fields import Work
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.validity import SESSION_LIFETIME

R = TypeVar("R")
M = TypeVar("M", bound=Message)

ONCE = RetryPolicy(maximum_attempts=1)
_OPENING_ATTEMPT = timedelta(seconds=5)
_OPENING_TIMEOUT = timedelta(seconds=20)
_USE_TIMEOUT = timedelta(seconds=30)
_HEARTBEAT = timedelta(seconds=2)
_LONGEST_ANSWER = 1024 * 1024


async def with_session(
    plan: Plan, strongroom: str, purpose: Work, attempt: int, work: Callable[[SessionOpened], Awaitable[R]]
) -> R:
    """Open a session and do `work` with it, for as long as it lives.

    Args:
        plan: what the session is for.
        strongroom: its name in the roster.
        purpose: protect or release.
        attempt: which attempt of the ceremony this is.
        work: does the keystore calls and the one call of the session.

    Raises:
        SessionLost: it could not be opened, or died; try again with another.
        MasterKeyError: the strongroom refused, or what `work` raised.
    """
    try:
        answer = await workflow.execute_activity(
            names.OPEN_SESSION,
            OpenSession(purpose=purpose, plan=plan.canonical().decode(), attempt=attempt),
            result_type=RawValue,
            task_queue=names.strongroom_queue(strongroom),
            start_to_close_timeout=_OPENING_ATTEMPT,
            schedule_to_close_timeout=_OPENING_TIMEOUT,
            retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), maximum_attempts=3),
        )
    except ActivityError as error:
        raise from_failure(error) from None
    opened = _read(answer, SessionOpened)
    hold = workflow.start_activity(
        names.HOLD_SESSION,
        HoldSession(session=opened.session),
        task_queue=opened.queue,
        start_to_close_timeout=SESSION_LIFETIME,
        heartbeat_timeout=_HEARTBEAT,
        retry_policy=ONCE,
    )
    task: asyncio.Future[R] = asyncio.ensure_future(work(opened))
    for each in (hold, task):
        each.add_done_callback(_read_exception)
    try:
        await workflow.wait([hold, task], return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and hold.exception() is not None:
            raise SessionLost("the strongroom's session died before it was used")
        return await task
    finally:
        for pending in (task, hold):
            if not pending.done():
                pending.cancel()


async def use_session(opened: SessionOpened, activity: str, request: Message, result: type[M]) -> M:
    """The one call of a session.

    Raises:
        SessionLost: the session died.
        MasterKeyError: it refused.
    """
    try:
        answer = await workflow.execute_activity(
            activity,
            request,
            result_type=RawValue,
            task_queue=opened.queue,
            start_to_close_timeout=_USE_TIMEOUT,
            heartbeat_timeout=_HEARTBEAT,
            retry_policy=ONCE,
        )
    except ActivityError as error:
        raise from_failure(error) from None
    return _read(answer, result)


def _read_exception(done: asyncio.Future[Any]) -> None:
    # The loser's exception is nobody's concern, but asyncio complains of one that nobody reads.
    if not done.cancelled():
        done.exception()


def _read(answer: object, kind: type[M]) -> M:
    try:
        return read_answer(answer, kind, longest=_LONGEST_ANSWER)
    except ValueError:
        raise SessionLost(
            "the strongroom gave an answer that cannot be read",
            next_step="compare the versions of the orchestrator and of the strongroom",
        ) from None
