"""Leftovers: what is killed or given up leaves no process, and no worker ever holds a key in plaintext."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Iterator

import psutil
import pytest

from deploy.emulators.fault_proxy import Hang, Rule
from tests.driving.gates import wait_for_gates
from tests.driving.reading import clean, ended, eventually
from tests.workflows.gated import GatedHouse
from workers.local.leaks import count_in_memory, patterns
from workflows.contracts import names
from workflows.contracts.messages.results import UnsealResult

QUORUM = ("alice", "bob", "carol")
ROLES = ("orchestrator", "strongroom", "keystore-bao-1")


@pytest.fixture(autouse=True)
def _nothing_wrong(apart: GatedHouse) -> Iterator[None]:
    yield
    for proxy in apart.proxies:
        proxy.rule = Rule()


def below(apart: GatedHouse, role: str) -> list[psutil.Process]:
    """The living processes below a worker: its fork server, its one-shot processes."""
    found = psutil.Process(apart.worker(role).process.pid).children(recursive=True)
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("role", ["strongroom", pytest.param("keystore-bao-1", marks=pytest.mark.slow)])
async def test_a_second_after_a_worker_was_killed_nothing_of_it_is_left(apart: GatedHouse, role: str) -> None:
    for proxy in apart.proxies:
        proxy.rule = Hang()
    name = apart.fresh_name()
    handle = await apart.start_init(name, quorum_timeout_seconds=600)
    processes = await eventually(lambda: _more_than(apart, role, 1))
    # The worker alone, not its process group: only the pipes tell its children.
    os.kill(apart.worker(role).process.pid, 9)
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 1.5)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    apart.worker(role).process.wait()
    await handle.terminate()
    apart.start_again(role)


async def _more_than(apart: GatedHouse, role: str, number: int) -> list[psutil.Process] | None:
    found = below(apart, role)
    return found if len(found) > number else None


async def test_a_call_of_a_hanging_keystore_that_is_given_up_leaves_no_process(apart: GatedHouse) -> None:
    name = apart.fresh_name()
    made = await apart.init(name, "seal")
    apart.proxies[0].rule = Hang()
    before = {process.pid for process in below(apart, "keystore-bao-1")}
    asked = await apart.ask(name, made)

    async def called() -> bool:
        return any("decrypt" in request.path for request in apart.proxies[0].requests)

    apart.proxies[0].requests.clear()
    await eventually(called)
    busy = [process for process in below(apart, "keystore-bao-1") if process.net_connections()]
    assert len(busy) == 1, "one process waits for the keystore"
    result = UnsealResult.model_validate(await ended(asked.handle))
    assert result.served_by == ("bao-2",)
    # The workflow has what it needs and cancels the call; the heartbeat tells the worker.
    _, alive = await asyncio.to_thread(psutil.wait_procs, busy, 5)
    assert alive == []
    assert len(below(apart, "keystore-bao-1")) <= len(before) + 1
    await clean(asked.handle)


@pytest.mark.slow
async def test_no_worker_ever_holds_a_key_in_plaintext(apart: GatedHouse) -> None:
    sought = []
    for mode in ("sss", "seal"):
        name = apart.fresh_name()
        made = await apart.init(name, mode)
        keys = {await apart.unseal(name, made, QUORUM) for _ in range(2)}
        sought += [pattern for key in keys for pattern in patterns(key)]
        assert count_in_memory(os.getpid(), sought[-9:]) > 0, "the search finds the key where it is: in its recipient"
    processes = {role: apart.worker(role).process.pid for role in ROLES}
    for role in ROLES[1:]:
        # The fork server, its resource tracker, and the spares that wait.
        processes |= {f"{role} {process.pid}": process.pid for process in below(apart, role)}
    found = {who: count_in_memory(pid, sought) for who, pid in processes.items() if psutil.pid_exists(pid)}
    assert {who: count for who, count in found.items() if count} == {}
    assert len(found) > len(ROLES)


@pytest.mark.slow
async def test_no_worker_ever_holds_the_data_key_that_its_keystore_unwrapped(apart: GatedHouse) -> None:
    name = apart.fresh_name()
    made = await apart.init(name)
    apart.proxies[0].requests.clear()
    await apart.unseal(name, made, QUORUM)
    wrapped = json.loads(next(r.body for r in apart.proxies[0].requests if "decrypt" in r.path))
    # Ask OpenBao itself what the keystore's process was told.
    assert apart.bao is not None
    answer = apart.bao.ask("POST", "transit/decrypt/wrap-1", wrapped)
    sought = patterns(base64.b64decode(answer["data"]["plaintext"]))
    assert count_in_memory(os.getpid(), sought) > 0
    for role in ROLES:
        assert count_in_memory(apart.worker(role).process.pid, sought) == 0, role


@pytest.mark.slow
async def test_a_session_that_nobody_uses_is_ended_when_its_ceremony_is(apart: GatedHouse) -> None:
    name = apart.fresh_name()
    gate = apart.gate(name, names.GENERATE_DATA_KEY)
    handle = await apart.start_init(name)
    before = {process.pid for process in below(apart, "strongroom")}
    await apart.approve(handle, QUORUM)
    await wait_for_gates([gate])
    await handle.cancel()
    gate.open()
    new = [process for process in below(apart, "strongroom") if process.pid not in before]

    async def settled() -> bool:
        return len(below(apart, "strongroom")) <= len(before)

    await eventually(settled, 15)
    assert len([process for process in new if process.is_running()]) <= 1
