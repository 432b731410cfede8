"""Resharding on a running installation: the same MasterKey under other protections, the old one retired."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.conftest import Installation
from tests.e2e.test_main_job import READ_AND_DERIVE
from tests.support import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def unseal(installation: Installation, name: str, who: list[str], *words: str) -> tuple[dict[str, Any], str]:
    """Unseal with these approvals; the answer, and what the receiving program says."""
    child = installation.stack.background(
        "unseal", name, *words, "--exec", "--", sys.executable, "-c", READ_AND_DERIVE, name
    )
    if who:
        approve_waiting(installation, name, "unseal", who)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    return json.loads(out), err


def approve_waiting(installation: Installation, name: str, action: str, who: list[str]) -> str:
    """Approve the ceremony of this action that waits for its quorum."""

    def waiting() -> list[str]:
        return [
            entry["ceremony"]
            for entry in installation.stack.masterkey("ceremony", "list")["ceremonies"]
            if (entry["master_key"], entry["action"], entry["phase"]) == (name, action, "quorum")
        ]

    ceremony = eventually(waiting)[0]
    installation.approve(ceremony, who)
    return ceremony


def change(installation: Installation, command: str, name: str, who: list[str], *words: str) -> dict[str, Any]:
    """Run a command that changes a MasterKey, with these approvals."""
    child = installation.stack.background(command, name, *words)
    action = {"reshard": "retire" if "--drop" in words else "reshard", "seal": "lift"}.get(command, command)
    approve_waiting(installation, name, action, who)
    out, err = child.communicate(timeout=90)
    assert child.returncode == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_an_sss_masterkey_moves_to_other_keystores_and_numbers(installation: Installation) -> None:
    name = installation.fresh_name()
    made = installation.init(name, count=4)
    words = [word for index in (2, 3, 4, 5) for word in ("--keystore", f"bao-{index}")]
    result = change(installation, "reshard", name, ["alice", "bob", "carol"], "--threshold", "2", *words)
    assert result["kcv"] == made["kcv"]
    assert result["retired"] == made["manifest"]
    assert result["not_told"] == []
    assert any(line.startswith("loses   bao-1") for line in result["changes"])
    answer, said = unseal(installation, name, ["bob", "dave", "erin"])
    assert f"32 {made['kcv']}" in said
    assert set(answer["served_by"]) <= {"bao-2", "bao-4", "bao-5"}


@pytest.mark.parametrize("to", ["seal", "sss"])
def test_a_masterkey_changes_its_mode(installation: Installation, to: str) -> None:
    name = installation.fresh_name()
    made = installation.init(name) if to == "seal" else installation.init(name, "seal", count=2)
    words = ["--keystore", "bao-1", "--keystore", "bao-2", "--keystore", "bao-3"]
    words += ["--mode", to, *(["--threshold", "2"] if to == "sss" else [])]
    result = change(installation, "reshard", name, ["alice", "bob", "carol"], *words)
    assert result["kcv"] == made["kcv"]
    answer, said = unseal(installation, name, ["alice", "bob", "carol"] if to == "sss" else [])
    assert f"32 {made['kcv']}" in said
    assert bool(answer["approved_by"]) == (to == "sss")


def test_a_keystore_that_missed_the_commit_is_told_by_the_next_drill(installation: Installation) -> None:
    name = installation.fresh_name()
    installation.init(name, "seal", count=2)
    remembered = installation.folder / "state" / "bao-1" / "state.json"
    before = remembered.read_bytes()
    change(installation, "reshard", name, ["alice", "bob", "carol"], "--keystore", "bao-2", "--keystore", "bao-3")
    assert json.loads(remembered.read_bytes())["master_keys"][name]["epochs"] == {"primary": 2}
    # As if its worker had been down then: it would still serve what was retired.
    remembered.write_bytes(before)
    drilled = installation.stack.masterkey("drill", name)
    assert [one["not_told"] for one in drilled["protections"]] == [[]]
    assert json.loads(remembered.read_bytes())["master_keys"][name]["epochs"] == {"primary": 2}


def test_what_was_retired_is_destroyed_by_the_quorum_and_by_the_collector(installation: Installation) -> None:
    name = installation.fresh_name()
    installation.init(name, "seal", count=2)
    change(installation, "reshard", name, ["alice", "bob", "carol"])
    change(installation, "reshard", name, ["alice", "bob", "carol"], "--retention-hours", "0")
    found = {one["epoch"]: one for one in installation.stack.masterkey("status", name)["protections"]}
    assert [found[epoch]["status"] for epoch in (1, 2, 3)] == ["retired", "retired", "active"]
    assert (found[1]["destroy_after"], bool(found[2]["destroy_after"])) == (None, True)
    child = installation.stack.background("destroy", name, "--epoch", "3")
    assert json.loads(child.communicate(timeout=120)[0])["error"] == "PlanInvalid"
    told = change(installation, "destroy", name, ["alice", "bob", "carol"], "--epoch", "1")
    assert {one["keystore"] for one in told["old_keys"]} == {"bao-1", "bao-2"}
    installation.stack.masterkey("ledger", "collect")
    found = {one["epoch"]: one["status"] for one in installation.stack.masterkey("status", name)["protections"]}
    assert found == {1: "destroyed", 2: "destroyed", 3: "active"}
    unseal(installation, name, [])


def test_a_rotated_key_wraps_anew_with_its_newer_version_and_the_old_one_is_named(installation: Installation) -> None:
    name = installation.fresh_name()
    made = installation.init(name, "seal", count=2)
    installation.bao.ask("POST", "transit/keys/wrap-2/rotate", {})
    was = {shard["keystore"]: int(shard["key_version"]) for shard in made["shards"]}
    result = change(installation, "reshard", name, ["alice", "bob", "carol"])
    assert result["changes"] == ["same keystores and custodians; all data keys and shards are made anew"]
    shards = installation.stack.masterkey("status", name)["protections"][-1]["shards"]
    assert {shard["keystore"]: int(shard["key_version"]) - was[shard["keystore"]] for shard in shards} == {
        "bao-1": 0,
        "bao-2": 1,
    }
    # What is to be destroyed to revoke the old protection, and what must be rotated before.
    old = {key["keystore"]: (int(key["key_version"]), key["in_use"]) for key in result["old_keys"]}
    assert old == {"bao-1": (was["bao-1"], True), "bao-2": (was["bao-2"], False)}
