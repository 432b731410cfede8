"""One-shot processes: hardened, separate, gone when they should be; and nothing else of theirs gets out."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing import Pipe
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import cast

import psutil
import pytest

from activities.oneshot import process, rehearsal
from activities.oneshot.child import child_main, harden
from activities.oneshot.process import OneShot, Pool
from tests.support import eventually
from workflows.contracts.trust.errors import SessionLost
from workflows.contracts.trust.service_errors import KeyDisabled

HERE = "tests.strongroom.oneshots"


@asynccontextmanager
async def pool_of(function: str, spares: int = 0) -> AsyncIterator[Pool]:
    pool = Pool(f"{HERE}:{function}", (), spares=spares)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


async def test_a_process_answers_once_and_ends() -> None:
    async with pool_of("echo") as pool:
        one = await pool.take()
        assert await one.call(b"hello") == b"hello"
        await asyncio.to_thread(one.wait, 5.0)
        assert not one.alive()
        with pytest.raises(SessionLost):
            await one.call(b"again")
        pool.release(one)


async def test_our_errors_come_back_by_type_with_what_to_do_next() -> None:
    async with pool_of("refuse") as pool:
        one = await pool.take()
        with pytest.raises(KeyDisabled) as refused:
            await one.call(b"x")
        assert (refused.value.subject, refused.value.next_step) == ("aws-fra", "enable it")


async def test_the_text_of_an_unforeseen_error_does_not_get_out() -> None:
    async with pool_of("fail") as pool:
        one = await pool.take()
        with pytest.raises(SessionLost, match="failed with ValueError") as lost:
            await one.call(b"hunter2")
        assert "hunter2" not in lost.value.diagnostics


async def test_if_one_dies_only_its_own_call_fails() -> None:
    async with pool_of("echo") as pool:
        three = [await pool.take() for _ in range(3)]
        os.kill(three[1].pid or 0, signal.SIGKILL)
        await asyncio.to_thread(three[1].wait, 5.0)
        with pytest.raises(SessionLost):
            await three[1].call(b"b")
        assert [await three[0].call(b"a"), await three[2].call(b"c")] == [b"a", b"c"]


async def test_a_process_that_dies_while_it_works_is_noticed_at_once() -> None:
    async with pool_of("die") as pool:
        one = await pool.take()
        with pytest.raises(SessionLost, match="died before it answered"):
            await asyncio.wait_for(one.call(b"x"), 5)


async def test_a_released_process_is_gone_whatever_it_was_doing() -> None:
    async with pool_of("hang") as pool:
        one = await pool.take()
        call = asyncio.create_task(one.call(b"x"))
        await asyncio.sleep(0.1)
        call.cancel()
        pool.release(one)
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.to_thread(eventually, lambda: not psutil.pid_exists(one.pid or 0), 5)


async def test_children_of_one_fork_server_share_no_randomness() -> None:
    # The fork server has used OpenSSL's generator before it forks; a child that inherited its state would
    # make the same keys as its sisters.
    async with pool_of("draw") as pool:
        drawn = [json.loads(await (await pool.take()).call(b"x")) for _ in range(6)]
    for position in range(3):
        assert len({values[position] for values in drawn}) == 6


async def test_a_process_cannot_be_dumped_or_swapped() -> None:
    async with pool_of("describe_itself") as pool:
        described = json.loads(await (await pool.take()).call(b"x"))
    assert described["dumpable"] == 0
    assert described["core"] == [0, 0]
    assert described["locked"] > 0 or os.geteuid() != 0


async def test_a_descriptor_can_be_passed_along() -> None:
    reading, writing = os.pipe()
    async with pool_of("take_descriptor") as pool:
        one = await pool.take()
        assert await one.call_with_descriptor(b"secret", writing) == b"done"
        os.close(writing)
        assert os.read(reading, 64) == b"secret"
        os.close(reading)
        dead = await pool.take()
        dead.kill()
        with pytest.raises(SessionLost):
            await dead.call_with_descriptor(b"secret", 0)


async def test_spares_wait_ready_and_are_replaced() -> None:
    async with pool_of("echo", spares=1) as pool:
        first = pool._ready[0]
        one = await pool.take()
        assert one is first
        assert pool._ready == []
        await asyncio.sleep(1.5)
        (second,) = pool._ready
        # A spare that died meanwhile is not given out.
        os.kill(second.pid or 0, signal.SIGKILL)
        await asyncio.to_thread(second.wait, 5.0)
        other = await pool.take()
        assert other is not second
        assert await other.call(b"x") == b"x"
        pool.release(one)


async def test_spares_end_with_their_pool() -> None:
    async with pool_of("echo", spares=2) as pool:
        spares = list(pool._ready)
        assert [one.alive() for one in spares] == [True, True]
    for one in spares:
        await asyncio.to_thread(one.wait, 5.0)
    assert [one.alive() for one in spares] == [False, False]


async def test_a_process_that_dies_while_it_starts_is_not_left_behind() -> None:
    async with pool_of("nothing_of_this_name") as pool:
        with pytest.raises(SessionLost):
            await asyncio.wait_for(pool.take(), 10)


async def test_a_warning_of_the_children_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pool_of("echo") as pool:
        for _ in range(2):
            ours, theirs = Pipe()
            life_theirs, life_ours = Pipe(duplex=False)
            theirs.send_bytes(b'+["memory is not locked: because"]')

            class Quiet:
                pid = 0

                def kill(self) -> None:
                    """There is no process."""

                def join(self, seconds: float) -> None:
                    """There is no process."""

            made = OneShot(cast(ForkServerProcess, Quiet()), ours, life_ours)
            monkeypatch.setattr(pool, "_spawn", lambda made=made: made)
            with caplog.at_level(logging.WARNING):
                one = await pool.take()
            one.kill()
            theirs.close()
            life_theirs.close()
    assert caplog.text.count("memory is not locked: because") == 1


def test_no_descendant_is_left_a_second_after_the_worker_was_killed(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from activities.oneshot.process import Pool\n"
        "async def main():\n"
        f"    pool = Pool('{HERE}:hang', (), spares=2)\n"
        "    await pool.start()\n"
        "    one = await pool.take()\n"
        "    asyncio.ensure_future(one.call(b'x'))\n"
        "    await asyncio.sleep(0.3)\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"ready\n"
        descendants = psutil.Process(worker.pid).children(recursive=True)
        assert len(descendants) >= 3
        worker.kill()
    gone, alive = psutil.wait_procs(descendants, timeout=2)
    assert [found.status() for found in alive if found.status() != psutil.STATUS_ZOMBIE] == []
    assert gone


# --- the child's side, in this process ------------------------------------------------------------------


def run_child(target: str, sent: bytes | None, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Run `child_main` in a thread; the frames that it sends."""
    monkeypatch.setattr("activities.oneshot.child.harden", lambda: ["a warning"])
    ours, theirs = Pipe()
    life_theirs, life_ours = Pipe(duplex=False)
    exits: list[int] = []
    monkeypatch.setattr("activities.oneshot.child.os._exit", exits.append)
    thread = threading.Thread(target=child_main, args=(f"{HERE}:{target}", theirs, life_theirs))
    thread.start()
    frames = [ours.recv_bytes()]
    if sent is None:
        ours.close()
    else:
        ours.send_bytes(sent)
        frames.append(ours.recv_bytes())
    thread.join(5)
    assert not thread.is_alive()
    life_ours.close()
    eventually(lambda: exits == [3], 5)
    return frames


def test_a_child_reports_ready_answers_and_ends_with_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_child("echo", b"x", monkeypatch) == [b'+["a warning"]', b"+x"]


def test_a_child_refuses_with_our_errors_and_hides_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_child("refuse", b"x", monkeypatch)[1].startswith(b'-["KeyDisabled"')
    hidden = run_child("fail", b"hunter2", monkeypatch)[1]
    assert b"ValueError" in hidden
    assert b"hunter2" not in hidden


def test_a_child_whose_worker_closes_the_pipe_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_child("echo", None, monkeypatch) == [b'+["a warning"]']


class FakeLibc:
    """The C library's answers, for what this machine always allows."""

    def __init__(self, answer: int) -> None:
        self.answer = answer

    def prctl(self, *_: int) -> int:
        return self.answer

    def mlockall(self, _: int) -> int:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "uid", "limit", "expected"),
    [
        (0, 0, 0, []),
        (-1, 0, 0, ["undumpable", "mlockall failed"]),
        (0, 1000, 65536, ["raise the limit"]),
        (0, 1000, -1, []),
    ],
)
def test_hardening_warns_of_what_it_could_not_do(
    monkeypatch: pytest.MonkeyPatch, answer: int, uid: int, limit: int, expected: list[str]
) -> None:
    monkeypatch.setattr("activities.oneshot.child._LIBC", FakeLibc(answer))
    monkeypatch.setattr("activities.oneshot.child.os.geteuid", lambda: uid)
    monkeypatch.setattr("activities.oneshot.child.resource.setrlimit", lambda *_: None)
    monkeypatch.setattr("activities.oneshot.child.resource.getrlimit", lambda _: (limit, limit))
    warnings = harden()
    assert len(warnings) == len(expected)
    for warning, words in zip(warnings, expected, strict=True):
        assert words in warning


async def test_a_process_may_become_readable_more_than_once() -> None:
    readable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    process._wake(readable)
    process._wake(readable)
    assert readable.done()


async def test_a_process_can_be_released_after_its_pool_was_closed() -> None:
    async with pool_of("echo") as pool:
        one = await pool.take()
    pool.release(one)
    one.wait(5.0)
    assert not one.alive()


def test_the_rehearsal_does_what_children_do() -> None:
    # Imported by the fork server, where coverage does not look.
    rehearsal.rehearse()
