"""A pool of one-shot processes when things go wrong all at once: frozen, killed, cancelled, flooded."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil

from activities.oneshot.process import OneShot, Pool
from tests.driving.reading import eventually
from workflows.contracts.trust.errors import SessionLost

HERE = "tests.strongroom.oneshots"
MEGABYTE = 2**20


@asynccontextmanager
async def pool_of(function: str, spares: int = 0) -> AsyncIterator[Pool]:
    pool = Pool(f"{HERE}:{function}", (), spares=spares)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


def one_shots() -> set[int]:
    """Processes that run now below this one: fork servers and their children, without what has ended."""
    found = psutil.Process().children(recursive=True)
    return {process.pid for process in found if process.status() != psutil.STATUS_ZOMBIE}


async def test_frames_of_megabytes_go_both_ways() -> None:
    async with pool_of("echo") as pool:
        data = os.urandom(3 * MEGABYTE)
        assert await (await pool.take()).call(data) == data


async def test_a_frozen_process_blocks_no_other_call() -> None:
    async with pool_of("echo") as pool:
        frozen, other = await pool.take(), await pool.take()
        assert frozen.pid is not None
        os.kill(frozen.pid, signal.SIGSTOP)
        # As much as a pipe holds on Linux, and several times what a session of five keystores is sent.
        stuck = asyncio.ensure_future(frozen.call(bytes(150_000)))
        await asyncio.sleep(0.1)
        assert await asyncio.wait_for(other.call(b"hello"), 5) == b"hello"
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)
        pool.release(frozen)
        assert await (await pool.take()).call(b"hello") == b"hello"


async def test_when_one_of_three_is_killed_the_others_finish() -> None:
    async with pool_of("echo") as pool:
        three = [await pool.take() for _ in range(3)]
        assert three[1].pid is not None
        os.kill(three[1].pid, signal.SIGKILL)
        answers = await asyncio.gather(*(one.call(b"x") for one in three), return_exceptions=True)
        assert [type(answer) for answer in answers] == [bytes, SessionLost, bytes]


async def test_a_flood_of_calls_leaves_no_more_spares_than_asked_for() -> None:
    before = one_shots()
    async with pool_of("echo", spares=2) as pool:

        async def call() -> bytes:
            one = await pool.take()
            try:
                return await one.call(b"x")
            finally:
                pool.release(one)

        assert await asyncio.gather(*(call() for _ in range(40))) == [b"x"] * 40
        await asyncio.sleep(0.5)

        async def settled() -> bool:
            # The fork server, its resource tracker, and the spares.
            return len(one_shots() - before) <= 4

        await eventually(settled, 10)


async def test_a_call_that_is_cancelled_while_its_process_starts_leaves_none() -> None:
    async with pool_of("echo") as pool:
        first = await pool.take()
        before = one_shots() - {first.pid}
        pool.release(first)
        for delay in (0.0, 0.001, 0.003, 0.006, 0.01, 0.02):
            task = asyncio.ensure_future(pool.take())
            await asyncio.sleep(delay)
            task.cancel()
            taken = (await asyncio.gather(task, return_exceptions=True))[0]
            if isinstance(taken, OneShot):
                pool.release(taken)

        async def gone() -> bool:
            return not one_shots() - before

        await eventually(gone, 10)


async def test_when_the_fork_server_is_killed_another_is_started() -> None:
    async with pool_of("echo") as pool:
        one = await pool.take()
        assert one.pid is not None
        server = psutil.Process(one.pid).parent()
        assert server is not None
        assert server.pid != os.getpid()
        server.kill()

        # Not waited for: whoever reaps it takes the answer that multiprocessing asks for.
        async def dead() -> bool:
            return server.status() == psutil.STATUS_ZOMBIE

        await eventually(dead, 5)
        try:
            other = await asyncio.wait_for(pool.take(), 20)
        except (EOFError, OSError):
            # Whoever asks in the moment of its death fails once.
            other = await asyncio.wait_for(pool.take(), 20)
        assert await other.call(b"again") == b"again"
        pool.release(one)
        pool.release(other)
