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
from tests.workflows.gated import GatedHouse, wait_for_gates
from tests.workflows.people import clean, ended, eventually
from workers.local.leaks import count_in_memory, patterns
from workflows.contracts import names
from workflows.contracts.messages.results import UnsealResult

QUORUM = ("alice", "bob", "carol")
ROLES = ("orchestrator", "strongroom", "keystore-bao-1", "keystore-bao-2", "keystore-bao-3")


@pytest.fixture(autouse=True)
def _nothing_wrong(gated: GatedHouse) -> Iterator[None]:
    yield
    for proxy in gated.proxies:
        proxy.rule = Rule()


def below(gated: GatedHouse, role: str) -> list[psutil.Process]:
    """The living processes below a worker: its fork server, its one-shot processes."""
    found = psutil.Process(gated.worker(role).process.pid).children(recursive=True)
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("role", ["strongroom", pytest.param("keystore-bao-1", marks=pytest.mark.slow)])
async def test_a_second_after_a_worker_was_killed_nothing_of_it_is_left(gated: GatedHouse, role: str) -> None:
    for proxy in gated.proxies:
        proxy.rule = Hang()
    name = gated.fresh_name()
    handle = await gated.start_init(name, quorum_timeout_seconds=600)
    processes = await eventually(lambda: _more_than(gated, role, 1))
    # The worker alone, not its process group: only the pipes tell its children.
    os.kill(gated.worker(role).process.pid, 9)
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 1.5)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    gated.worker(role).process.wait()
    await handle.terminate()
    gated.start_again(role)


async def _more_than(gated: GatedHouse, role: str, number: int) -> list[psutil.Process] | None:
    found = below(gated, role)
    return found if len(found) > number else None


async def test_a_call_of_a_hanging_keystore_that_is_given_up_leaves_no_process(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    made = await gated.init(name, "seal")
    gated.proxies[0].rule = Hang()
    before = {process.pid for process in below(gated, "keystore-bao-1")}
    asked = await gated.ask(name, made)

    async def called() -> bool:
        return any("decrypt" in request.path for request in gated.proxies[0].requests)

    gated.proxies[0].requests.clear()
    await eventually(called)
    busy = [process for process in below(gated, "keystore-bao-1") if process.net_connections()]
    assert len(busy) == 1, "one process waits for the keystore"
    result = UnsealResult.model_validate(await ended(asked.handle))
    assert result.served_by == ("bao-2",)
    # The workflow has what it needs and cancels the call; the heartbeat tells the worker.
    _, alive = await asyncio.to_thread(psutil.wait_procs, busy, 5)
    assert alive == []
    assert len(below(gated, "keystore-bao-1")) <= len(before) + 1
    await clean(asked.handle)


@pytest.mark.slow
async def test_no_worker_ever_holds_a_key_in_plaintext(gated: GatedHouse) -> None:
    sought = []
    for mode in ("sss", "seal"):
        name = gated.fresh_name()
        made = await gated.init(name, mode)
        keys = {await gated.unseal(name, made, QUORUM) for _ in range(2)}
        sought += [pattern for key in keys for pattern in patterns(key)]
        assert count_in_memory(os.getpid(), sought[-9:]) > 0, "the search finds the key where it is: in its recipient"
    processes = {role: gated.worker(role).process.pid for role in ROLES}
    for role in ROLES[1:]:
        # The fork server, its resource tracker, and the spares that wait.
        processes |= {f"{role} {process.pid}": process.pid for process in below(gated, role)}
    found = {who: count_in_memory(pid, sought) for who, pid in processes.items() if psutil.pid_exists(pid)}
    assert {who: count for who, count in found.items() if count} == {}
    assert len(found) > len(ROLES)


@pytest.mark.slow
async def test_no_worker_ever_holds_the_data_key_that_its_keystore_unwrapped(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    made = await gated.init(name)
    gated.proxies[0].requests.clear()
    await gated.unseal(name, made, QUORUM)
    wrapped = json.loads(next(r.body for r in gated.proxies[0].requests if "decrypt" in r.path))
    # Ask OpenBao itself what the keystore's process was told.
    assert gated.bao is not None
    answer = gated.bao.ask("POST", "transit/decrypt/wrap-1", wrapped)
    sought = patterns(base64.b64decode(answer["data"]["plaintext"]))
    assert count_in_memory(os.getpid(), sought) > 0
    for role in ROLES:
        assert count_in_memory(gated.worker(role).process.pid, sought) == 0, role


@pytest.mark.slow
async def test_a_session_that_nobody_uses_is_ended_when_its_ceremony_is(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    gate = gated.gate(name, names.GENERATE_DATA_KEY)
    handle = await gated.start_init(name)
    before = {process.pid for process in below(gated, "strongroom")}
    await gated.approve(handle, QUORUM)
    await wait_for_gates([gate])
    await handle.cancel()
    gate.open()
    new = [process for process in below(gated, "strongroom") if process.pid not in before]

    async def settled() -> bool:
        return len(below(gated, "strongroom")) <= len(before)

    await eventually(settled, 15)
    assert len([process for process in new if process.is_running()]) <= 1
