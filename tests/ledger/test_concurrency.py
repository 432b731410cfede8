from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import pytest

from activities.ledger.store.ledger import Ledger
from tests.ledger.samples import ceremony, make_master_key, prepare_reshard, protection, types
from workflows.contracts.trust.errors import MasterKeyError
from workflows.contracts.trust.service_errors import LedgerConflict, NameTaken

THREADS, EACH = 8, 25


def at_once(calls: Sequence[Callable[[], object]]) -> list[type[BaseException] | None]:
    """Run all calls at the same moment; the type of the error that each raised."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> type[BaseException] | None:
        start.wait()
        try:
            call()
        except MasterKeyError as error:
            return type(error)
        return None

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def commit_from_a_process_of_its_own(url: str, ceremony_: str) -> str:
    try:
        Ledger(url).commit(ceremony_, 1)
    except MasterKeyError as error:
        return type(error).__name__
    return ""


def append_from_a_process_of_its_own(url: str, name: str) -> int:
    ledger = Ledger(url)
    return max(ledger.append(name, f"k{number}", "noted", {}, "eu10").seq for number in range(EACH))


def test_of_two_inits_at_the_same_moment_one_has_the_name(ledger: Ledger) -> None:
    names = ("eu10.init.1", "eu10.init.2")
    for name in names:
        ledger.open_ceremony(ceremony(name))
        ledger.stage(protection(name))
    outcomes = at_once([partial(ledger.commit, name, 1) for name in names])
    assert sorted(map(str, outcomes)) == sorted(map(str, [None, NameTaken]))
    assert [record.status for record in ledger.protections("eu10")].count("active") == 1
    assert ledger.verify_chain().events == 5


def test_of_two_reshards_at_the_same_moment_one_takes_the_place(ledger: Ledger) -> None:
    make_master_key(ledger)
    names = ("eu10.reshard.1", "eu10.reshard.2")
    for name in names:
        prepare_reshard(ledger, name)
    outcomes = at_once([partial(ledger.commit, name, 1) for name in names])
    assert sorted(map(str, outcomes)) == sorted(map(str, [None, LedgerConflict]))
    assert sorted(record.status for record in ledger.protections("eu10")) == ["active", "retired", "staged"]


def test_the_same_activity_twice_at_the_same_moment_happens_once(ledger: Ledger) -> None:
    def everything() -> None:
        ledger.open_ceremony(ceremony())
        ledger.stage(protection())
        ledger.commit("eu10.init.1", 1)
        ledger.close_ceremony("eu10.init.1", "done")

    assert at_once([everything] * 4) == [None] * 4
    assert types(ledger) == ["ceremony-opened", "protection-staged", "protection-committed", "ceremony-closed"]


def test_many_threads_append_without_a_gap(ledger: Ledger) -> None:
    def append(thread: int) -> None:
        for number in range(EACH):
            ledger.append(f"c.{thread}", f"k{number}", "noted", {"number": number})

    assert at_once([partial(append, thread) for thread in range(THREADS)]) == [None] * THREADS
    assert [event.seq for event in ledger.events()] == list(range(1, THREADS * EACH + 1))
    assert ledger.verify_chain().events == THREADS * EACH


@pytest.fixture
def processes() -> ProcessPoolExecutor:
    """Two processes, begun afresh: an engine does not survive a fork."""
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def test_processes_share_a_ledger_as_threads_do(ledger: Ledger, url: str, processes: ProcessPoolExecutor) -> None:
    names = ["eu10.init.1", "eu10.init.2"]
    for name in names:
        ledger.open_ceremony(ceremony(name))
        ledger.stage(protection(name))
    with processes:
        outcomes = list(processes.map(commit_from_a_process_of_its_own, [url] * 2, names))
        last = list(processes.map(append_from_a_process_of_its_own, [url] * 2, names))
    assert sorted(outcomes) == ["", "NameTaken"]
    assert ledger.verify_chain().events == max(last) == 5 + 2 * EACH


def test_a_ledger_upgraded_by_all_at_once_is_upgraded_once(empty_url: str) -> None:
    ledgers = [Ledger(empty_url) for _ in range(4)]
    assert at_once([ledger.upgrade for ledger in ledgers]) == [None] * 4
    ledgers[0].check()
    assert ledgers[0].verify_chain().events == 0
    for ledger in ledgers:
        ledger.close()
