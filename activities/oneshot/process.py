"""One-shot processes as their worker sees them: started warm, used once, ended.

Whatever sees a plaintext key runs in a child of a `multiprocessing` fork server; what happens inside it is
`activities.oneshot.child`. If one dies, only its own call fails.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context, reduction
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import TypeVar

from activities.oneshot.child import MAXIMUM_FRAME, child_main
from activities.oneshot.installed import run_only_installed_code
from workflows.contracts.trust.canonical import Message
from workflows.contracts.trust.errors import SessionLost
from workflows.contracts.trust.service_errors import BY_NAME

M = TypeVar("M", bound=Message)

_REFILL_SECONDS = 0.5
_REHEARSAL = "activities.oneshot.rehearsal"
_CONTEXT = get_context("forkserver")
_log = logging.getLogger(__name__)


class OneShot:
    """The worker's handle of one one-shot process."""

    def __init__(self, process: ForkServerProcess, connection: Connection, life: Connection) -> None:
        self._process = process
        self._connection = connection
        self._life = life
        self.pid = process.pid

    async def call(self, data: bytes) -> bytes:
        """Send one frame and wait for the answer.

        Raises:
            SessionLost: the process died.
            MasterKeyError: whatever it answered.
        """
        try:
            self._connection.send_bytes(data)
        except OSError:
            raise SessionLost("the one-shot process is gone") from None
        return await self.answer()

    async def ask(self, request: Message, answer: type[M]) -> M:
        """As `call`, with messages of these types."""
        return answer.model_validate_json(await self.call(request.model_dump_json().encode()))

    async def call_with_descriptor(self, data: bytes, descriptor: int) -> bytes:
        """As `call`, and pass an open descriptor along (`SCM_RIGHTS`)."""
        try:
            self._connection.send_bytes(data)
            reduction.send_handle(self._connection, descriptor, self.pid)
        except OSError:
            raise SessionLost("the one-shot process is gone") from None
        return await self.answer()

    async def answer(self) -> bytes:
        """Wait for the next frame; raises as `call` does."""
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        descriptor = self._connection.fileno()
        loop.add_reader(descriptor, _wake, readable)
        try:
            await readable
        finally:
            loop.remove_reader(descriptor)
        try:
            frame = self._connection.recv_bytes(MAXIMUM_FRAME)
        except (EOFError, OSError):
            raise SessionLost("the one-shot process died before it answered") from None
        if frame[:1] == b"-":
            name, message, next_step, subject = json.loads(frame[1:])
            raise BY_NAME[name](message, next_step=next_step, subject=subject)
        return frame[1:]

    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.is_alive()

    def kill(self) -> None:
        """End the process now, whatever it is doing; harmless when it has ended."""
        self._process.kill()
        self._connection.close()
        self._life.close()

    def wait(self, seconds: float) -> None:
        """Wait until the process has ended, at most so long."""
        self._process.join(seconds)


class Pool:
    """Makes one-shot processes, and keeps spares warm.

    Args:
        target: what each process runs, "module:function"; called with a `Channel`.
        preload: modules that the fork server imports once; every child starts with them, and rehearsed.
        spares: how many processes wait ready.
    """

    def __init__(self, target: str, preload: Sequence[str], spares: int = 1) -> None:
        self._target = target
        self._spares = spares
        self._ready: list[OneShot] = []
        self._refilling: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="one-shot")
        self._warned = False
        self._closed = False
        run_only_installed_code()
        # A child imports `__main__` again unless it cannot tell what that is: half a second for a CLI.
        main = sys.modules["__main__"]
        main.__spec__ = None
        main.__dict__.pop("__file__", None)
        _CONTEXT.set_forkserver_preload([child_main.__module__, target.partition(":")[0], *preload, _REHEARSAL])

    async def take(self) -> OneShot:
        """A process that is ready and has done nothing yet; the caller ends it with `release`."""
        if self._spares and (self._refilling is None or self._refilling.done()):
            self._refilling = asyncio.get_running_loop().create_task(self._refill_later())
        while self._ready:
            process = self._ready.pop()
            if process.alive():
                return process
            process.kill()
        return await self._start()

    async def start(self) -> None:
        """Start the fork server and the spares."""
        await self._refill()

    def release(self, process: OneShot) -> None:
        """End a process and reap it."""
        process.kill()
        if not self._closed:
            self._threads.submit(process.wait, 5.0)

    async def close(self) -> None:
        """End all spares."""
        self._closed = True
        if self._refilling is not None:
            self._refilling.cancel()
            await asyncio.gather(self._refilling, return_exceptions=True)
        for process in self._ready:
            process.kill()
        self._threads.shutdown(wait=True)

    async def _refill_later(self) -> None:
        # Not at once: a starting process would slow down the call that took the spare.
        await asyncio.sleep(_REFILL_SECONDS)
        await self._refill()

    async def _refill(self) -> None:
        while len(self._ready) < self._spares and not self._closed:
            self._ready.append(await self._start())

    async def _start(self) -> OneShot:
        process = await asyncio.get_running_loop().run_in_executor(self._threads, self._spawn)
        try:
            warnings = json.loads(await process.answer())
        except BaseException:
            process.kill()
            raise
        if warnings and not self._warned:
            self._warned = True
            for warning in warnings:
                _log.warning("one-shot processes: %s", warning)
        return process

    def _spawn(self) -> OneShot:
        ours, theirs = _CONTEXT.Pipe()
        life_theirs, life_ours = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=child_main, args=(self._target, theirs, life_theirs), daemon=True)
        process.start()
        theirs.close()
        life_theirs.close()
        return OneShot(process, ours, life_ours)


def _wake(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
