"""Reading the answers of activities.

Temporal's SDK fails the workflow task, again and again, when an answer is not what the workflow expects: one
worker that answers nonsense would stop a ceremony for good. Answers of other roles are therefore taken raw,
and read here.
"""

from __future__ import annotations

from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RawValue

from workflows.contracts.trust.canonical import Message

M = TypeVar("M", bound=Message)


def read_answer(answer: Any, kind: type[M], *, longest: int) -> M:
    """An activity's answer, taken with `result_type=RawValue`.

    Args:
        answer: what the activity returned.
        kind: what it should be.
        longest: its greatest length in bytes.

    Raises:
        ValueError: it is something else, or longer.
    """
    if not isinstance(answer, RawValue) or len(answer.payload.data) > longest:
        raise ValueError("no answer, or one that is too long")
    try:
        found = workflow.payload_converter().from_payload(answer.payload, kind)
    except Exception:  # noqa: BLE001 - whatever is wrong with it
        raise ValueError("the answer cannot be read") from None
    if not isinstance(found, kind):
        raise ValueError("the answer is something else")
    return found
