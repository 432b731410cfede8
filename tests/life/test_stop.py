"""The emergency stop: nobody is served, programs that hold the MasterKey end, until the quorum lifts it."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from activities.identity import Identity
from tests.conftest import Installation
from tests.driving.site import Site
from tests.life.test_reshard import approve_waiting, change, unseal
from tests.support import eventually
from workflows.contracts import names
from workflows.contracts.trust.canonical import seconds
from workflows.contracts.trust.stop import Stop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

HOLD_ON = (
    "import os, pathlib, sys, time; os.read(int(os.environ['MASTERKEY_FD']), 64);"
    "pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
)


def stop(installation: Installation, name: str, who: str = "erin", *words: str) -> tuple[int, dict[str, Any]]:
    """Let a custodian order a stop; the exit code and the answer."""
    key = str(installation.folder / "keys" / who)
    child = installation.stack.background(
        "seal", name, "--key", key, "--yes", "--reason", "a laptop was stolen", *words
    )
    out, err = child.communicate(timeout=90)
    assert out, err
    return child.returncode, json.loads(out)


def test_a_stop_ends_programs_and_running_unseals_and_only_the_quorum_lifts_it(
    installation: Installation, tmp_path: Path
) -> None:
    name = installation.fresh_name()
    made = installation.init(name)
    # One recipient holds it, another waits for its custodians.
    holder = installation.stack.background(
        "unseal", name, "--exec", "--", sys.executable, "-c", HOLD_ON, str(tmp_path / "pid")
    )
    approve_waiting(installation, name, "unseal", ["alice", "bob", "carol"])
    eventually((tmp_path / "pid").exists)
    waiting = installation.stack.background("unseal", name, "--exec", "--", "true")
    eventually(
        lambda: any(
            entry["master_key"] == name and entry["phase"] == "quorum"
            for entry in installation.stack.masterkey("ceremony", "list")["ceremonies"]
        )
    )
    code, told = stop(installation, name)
    assert code == 0, told
    assert [one["acknowledged"] for one in told["keystores"]] == [True] * 5
    assert sorted(one["state"] for one in told["holders"]) == ["ended", "ended"]
    out, err = holder.communicate(timeout=120)
    assert (holder.returncode, json.loads(out)["stopped"]) == (1, True), err
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()
    out, err = waiting.communicate(timeout=120)
    assert json.loads(out)["error"] == "Stopped", err
    # Nobody is served any more, and that is said at once; the drill, which opens nothing, still works.
    child = installation.stack.background("unseal", name, "--exec", "--", "true")
    assert json.loads(child.communicate(timeout=120)[0])["error"] == "Stopped"
    assert installation.stack.masterkey("drill", name)["healthy"] is True
    shown = installation.stack.masterkey("status", name)["stops"]
    assert [(one["ordered_by"], one["reason"]) for one in shown] == [("erin", "a laptop was stolen")]
    # Again is harmless.
    assert stop(installation, name, "bob")[0] == 0
    lifted = change(installation, "seal", name, ["alice", "bob", "carol"], "--lift")
    assert len(lifted["stops"]) == 2
    assert all(one["acknowledged"] for one in lifted["keystores"])
    assert installation.stack.masterkey("status", name)["stops"] == []
    assert f"32 {made['kcv']}" in unseal(installation, name, ["alice", "bob", "carol"])[1]


def test_who_cannot_be_told_is_named_with_the_keys_to_disable_by_hand(installation: Installation) -> None:
    name = installation.fresh_name()
    installation.init(name, "seal", count=2)
    site = installation.stack
    assert isinstance(site, Site)
    site.kill("keystores")
    try:
        code, told = stop(installation, name, "alice", "--patience", "3")
    finally:
        site.start_again("keystores")
    assert code == 1
    by_name = {one["keystore"]: one for one in told["keystores"]}
    assert not any(one["acknowledged"] for one in by_name.values())
    assert by_name["bao-1"]["keys"][0].endswith("/transit/keys/wrap-1")
    assert by_name["bao-5"]["keys"] == []
    # The same order again reaches them, now that they answer.
    assert stop(installation, name, "alice")[0] == 0
    change(installation, "seal", name, ["alice", "bob", "carol"], "--lift")


def test_a_stop_by_nobody_is_refused_and_one_of_another_masterkey_changes_nothing(installation: Installation) -> None:
    name = installation.fresh_name()
    installation.init(name, "seal", count=1)
    code, told = stop(installation, name, "recipient")
    assert (code, told["error"]) == (1, "ApprovalInvalid")
    other = installation.fresh_name()
    installation.init(other, "seal", count=1)
    stop(installation, other)
    unseal(installation, name, [])


async def test_a_stop_that_was_ordered_before_the_release_or_by_nobody_ends_no_program(
    installation: Installation, client: Client, tmp_path: Path
) -> None:
    name = installation.fresh_name()
    installation.init(name, "seal", count=1)
    holder = installation.stack.background(
        "unseal", name, "--exec", "--", sys.executable, "-c", HOLD_ON, str(tmp_path / "pid")
    )
    await asyncio.to_thread(eventually, (tmp_path / "pid").exists)
    entries = installation.stack.masterkey("ceremony", "list", "--all")["ceremonies"]
    ceremony = next(e["ceremony"] for e in entries if (e["master_key"], e["action"]) == (name, "unseal"))
    for turn, (who, age) in enumerate((("alice", timedelta(hours=1)), ("recipient", timedelta(0))), start=1):
        signer = Identity.load(installation.folder / "keys" / who)
        order = Stop(
            master_key=name,
            ceremony=names.new_ceremony_id(name, "seal"),
            reason="replayed",
            custodian=signer.fingerprint,
            issued=seconds(datetime.now(UTC)) - age,
        )
        handle = client.get_workflow_handle(names.hold_id(ceremony, turn))
        await until_running(handle)
        await handle.signal("stop", signer.sign(order))
    await until_running(client.get_workflow_handle(names.hold_id(ceremony, 3)))
    assert holder.poll() is None
    # One in force does, although it began anew twice.
    code, told = await asyncio.to_thread(stop, installation, name, "bob")
    assert [one["state"] for one in told["holders"]] == ["ended"], told
    assert (code, holder.wait(30)) == (0, 1)
    await asyncio.to_thread(change, installation, "seal", name, ["alice", "bob", "carol"], "--lift")


async def until_running(handle: WorkflowHandle[Any, Any]) -> None:
    """Wait until a workflow is there and runs."""
    for _ in range(300):
        try:
            if (await handle.describe()).status == WorkflowExecutionStatus.RUNNING:
                return
        except RPCError as error:
            assert error.status == RPCStatusCode.NOT_FOUND  # noqa: PT017 - it will be there in a moment
        await asyncio.sleep(0.1)
    raise AssertionError(f"{handle.id} does not run")
