"""Between our errors and Temporal's failures: by type, never by text."""

from __future__ import annotations

import asyncio

from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, TimeoutType
from temporalio.exceptions import TimeoutError as TemporalTimeout

from workflows.contracts.trust.errors import MasterKeyError, SessionLost
from workflows.contracts.trust.service_errors import KeystoreUnavailable, narrowest


def as_failure(error: MasterKeyError) -> ApplicationError:
    """The Temporal failure for one of our errors: its type, its one line, what to do next, and about whom."""
    narrow = (type(error).__name__,) if error.travels_as else ()
    return ApplicationError(
        error.message,
        error.next_step,
        error.subject,
        *narrow,
        type=error.failure_type,
        non_retryable=not error.retryable,
    )


def from_failure(error: BaseException, *, subject: str = "") -> MasterKeyError:
    """Our error for a failed activity or workflow.

    Args:
        error: an `ActivityError` or `ApplicationError`.
        subject: the keystore that was asked, if it was one.

    Returns:
        The error that was raised there; for a time-out `KeystoreUnavailable` or `SessionLost`; for
        anything unforeseen `MasterKeyError` with the failure's type only.

    Raises:
        asyncio.CancelledError: the caller was cancelled while it waited; that is no failure of the activity.
    """
    cause = error.cause if isinstance(error, ActivityError) else error
    if isinstance(cause, CancelledError) and _cancelled():
        raise asyncio.CancelledError
    if isinstance(cause, ApplicationError):
        details = [*cause.details, "", "", ""]
        kind = narrowest(cause.type or "", str(details[2]))
        if kind is not None:
            return kind(cause.message, next_step=str(details[0]), subject=str(details[1]) or subject)
        return MasterKeyError(f"unforeseen failure {cause.type or 'without type'}", subject=subject)
    if isinstance(cause, TemporalTimeout):
        waiting = cause.type in (TimeoutType.SCHEDULE_TO_START, TimeoutType.SCHEDULE_TO_CLOSE)
        what = "did not answer" if waiting else "did not finish"
        if subject:
            return KeystoreUnavailable(f"the worker of {subject} {what} in time", subject=subject)
        return SessionLost(f"a worker {what} in time")
    return MasterKeyError(f"unforeseen failure {type(cause).__name__}", subject=subject)


def _cancelled() -> bool:
    # A worker can call any failure a cancellation; only the caller's own task knows whether it is one.
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
