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
from activities.strongroom.session import SessionWork
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
    SessionTerms,
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
        identity: path of the identity key; read by each session, never by the worker.
        roster_file: with `roster_genesis` and `roster_minimum`, what each session verifies.
        roster_genesis: the pinned digest of the first roster version.
        roster_minimum: the oldest acceptable number of the newest one.
    """

    def __init__(
        self,
        pool: Pool,
        private_queue: str,
        *,
        identity: str,
        roster_file: str,
        roster_genesis: str,
        roster_minimum: int,
    ) -> None:
        self._pool = pool
        self._queue = private_queue
        self._terms = {
            "identity": identity,
            "roster_file": roster_file,
            "roster_genesis": roster_genesis,
            "roster_minimum": roster_minimum,
        }
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
        terms = SessionTerms.model_validate({**self._terms, **request.model_dump(), "session": session})
        process = await self._pool.take()
        try:
            answer = await process.call(terms.model_dump_json().encode())
        except MasterKeyError as error:
            self._pool.release(process)
            raise as_failure(error) from None
        except BaseException:
            self._pool.release(process)
            raise
        self._sessions[session] = _Held(process)
        asyncio.get_running_loop().call_later(SESSION_LIFETIME.total_seconds(), self._end, session, True)
        return SessionOpened(announcement=Signed.model_validate_json(answer), queue=self._queue, session=session)

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
        return await self._use(request.session, SessionWork(protect=request), StoredProtection)

    @activity.defn(name=names.RELEASE)
    async def release(self, request: Release) -> Delivered:
        """Recombine a MasterKey and encrypt it to the recipient; answers with the signed delivery."""
        return await self._use(request.session, SessionWork(release=request), Delivered)

    @activity.defn(name=names.RESHARD)
    async def reshard(self, request: Reshard) -> StoredProtection:
        """Recombine a MasterKey and protect it anew; answers with ciphertexts and the signed manifest."""
        return await self._use(request.session, SessionWork(reshard=request), StoredProtection)

    async def _use(self, session: str, work: SessionWork, result: type[M]) -> M:
        held = self._sessions.pop(session, None)
        if held is None:
            raise as_failure(SessionLost("the session was used before, or died"))
        try:
            async with heartbeating():
                return result.model_validate_json(await held.process.call(work.model_dump_json().encode()))
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
