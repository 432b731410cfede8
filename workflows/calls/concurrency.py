"""Doing several things at once in a workflow: all must succeed, and when one fails the others are ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from temporalio import workflow

T = TypeVar("T")


async def gather(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all at once; return their results in order.

    Raises:
        The first failure in the order given, after the others have been cancelled and read.
    """
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    if not tasks:
        return []
    try:
        await workflow.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
    failed = [task for task in tasks if task.done() and not task.cancelled() and task.exception() is not None]
    await workflow.wait(tasks)
    for task in failed:
        task.result()
    return [task.result() for task in tasks]
