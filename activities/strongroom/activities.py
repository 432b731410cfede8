"""The activities of a strongroom's worker: sessions are opened, held, used once, and gone."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from temporalio import activity

from activities.heartbeat import heartbeating
from activities.oneshot.process import OneShot, Pool
from activities.oneshot.requests import Asked
from activities.roster import HostTerms
from activities.strongroom.session import SessionTerms
from workflows.calls.failures import as_failure
from workflows.contracts import names
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.messages.strongroom import (
    Delivered,
    HoldSession,
    OpenSession,
    Protect,
    Release,
    Reshard,
    SessionOpened,
)
from workflows.contracts.trust.canonical import Message, Signed
from workflows.contracts.trust.errors import MasterKeyError, SessionLost
from workflows.contracts.trust.validity import SESSION_LIFETIME

M = TypeVar("M", bound=Message)

TARGET = "activities.strongroom.session:serve"
"""What a strongroom's one-shot processes run."""


@dataclass
class _Held:
    process: OneShot
    over: asyncio.Event = field(default_factory=asyncio.Event)
    failed: bool = False


class StrongroomActivities:
    """Activities of one strongroom's worker.

    Args:
        pool: makes one-shot processes that run `TARGET`.
        private_queue: the task queue that only this worker polls.
        host: what each session is told: identity key and pinned roster, which the worker itself never reads.
    """

    def __init__(self, pool: Pool, private_queue: str, host: HostTerms) -> None:
        self._pool = pool
        self._queue = private_queue
        self._host = host
        self._sessions: dict[str, _Held] = {}

    def shared(self) -> Sequence[Callable[..., Any]]:
        """What is registered on the queue that all workers of this strongroom poll."""
        return [self.open_session]

    def private(self) -> Sequence[Callable[..., Any]]:
        """What is registered on the private queue."""
        return [self.hold_session, self.protect, self.release, self.reshard]

    @activity.defn(name=names.OPEN_SESSION)
    async def open_session(self, request: OpenSession) -> SessionOpened:
        """A process with an HPKE key of its own, announced and signed."""
        session = secrets.token_hex(16)
        terms = SessionTerms.model_validate({**dict(self._host), **dict(request), "session": session})
        process = await self._pool.take()
        try:
            announcement = await process.ask(terms, Signed)
        except MasterKeyError as error:
            self._pool.release(process)
            raise as_failure(error) from None
        except BaseException:
            self._pool.release(process)
            raise
        self._sessions[session] = _Held(process)
        asyncio.get_running_loop().call_later(SESSION_LIFETIME.total_seconds(), self._end, session, True)
        return SessionOpened(announcement=announcement, queue=self._queue, session=session)

    @activity.defn(name=names.HOLD_SESSION)
    async def hold_session(self, request: HoldSession) -> None:
        """Wait for a session's end: returns when it has answered, fails when it died unused."""
        held = self._sessions.get(request.session)
        if held is None:
            raise as_failure(SessionLost("no such session is held here"))
        try:
            async with heartbeating():
                while not held.over.is_set() and held.process.alive():
                    await _wait(held.over, 0.2)
        finally:
            # Also when cancelled: nobody will use this session any more.
            died = not held.over.is_set() or held.failed
            self._end(request.session, died)
        if died:
            raise as_failure(SessionLost("the session died before it answered"))

    @activity.defn(name=names.PROTECT)
    async def protect(self, request: Protect) -> StoredProtection:
        """Draw a MasterKey and protect it; answers with ciphertexts and the signed manifest."""
        return await self._use(request, StoredProtection)

    @activity.defn(name=names.RELEASE)
    async def release(self, request: Release) -> Delivered:
        """Recombine a MasterKey and encrypt it to the recipient; answers with the signed delivery."""
        return await self._use(request, Delivered)

    @activity.defn(name=names.RESHARD)
    async def reshard(self, request: Reshard) -> StoredProtection:
        """Recombine a MasterKey and protect it anew; answers with ciphertexts and the signed manifest."""
        return await self._use(request, StoredProtection)

    async def _use(self, work: Protect | Release | Reshard, result: type[M]) -> M:
        held = self._sessions.pop(work.session, None)
        if held is None:
            raise as_failure(SessionLost("the session was used before, or died"))
        try:
            async with heartbeating():
                return await held.process.ask(Asked.of(work), result)
        except MasterKeyError as error:
            raise as_failure(error) from None
        finally:
            held.over.set()
            self._pool.release(held.process)

    def _end(self, session: str, failed: bool) -> None:
        held = self._sessions.pop(session, None)
        if held is not None:
            held.failed = failed
            held.over.set()
            self._pool.release(held.process)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
