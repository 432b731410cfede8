"""Disaster recovery on a running installation: what is lost is replaced, and the same MasterKey comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import Installation
from tests.life.test_reshard import approve_waiting, change, unseal
from tests.support import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

QUORUM = ["alice", "bob", "carol"]


@contextmanager
def deleted(installation: Installation, *keystores: str) -> Iterator[None]:
    """The keys of these keystores are deleted for good; afterwards there are other keys by the same names."""
    for keystore in keystores:
        key = f"wrap-{keystore.rpartition('-')[2]}"
        installation.bao.ask("POST", f"transit/keys/{key}/config", {"deletion_allowed": True})
        installation.bao.ask("DELETE", f"transit/keys/{key}")
    try:
        yield
    finally:
        for keystore in keystores:
            installation.bao.create_key(f"wrap-{keystore.rpartition('-')[2]}")


def keystores(*numbers: int) -> list[str]:
    return [word for number in numbers for word in ("--keystore", f"bao-{number}")]


def protection(installation: Installation, name: str, purpose: str = "primary") -> dict[str, Any]:
    found = installation.stack.masterkey("status", name)["protections"]
    return next(one for one in found if one["status"] == "active" and one["purpose"] == purpose)


def test_nothing_is_recovered_where_nothing_is_lost(losing: Installation) -> None:
    name = losing.fresh_name()
    losing.init(name, threshold=2, count=3)
    child = losing.stack.background("recover", name)
    out, _ = child.communicate(timeout=120)
    assert (child.returncode, json.loads(out)["error"]) == (1, "PlanInvalid")
    assert "an unseal just works" in json.loads(out)["next_step"]


def test_a_deleted_kms_key_is_replaced_with_the_fewest_changes(losing: Installation) -> None:
    name = losing.fresh_name()
    made = losing.init(name, threshold=3, count=5)
    with deleted(losing, "bao-2"):
        # Bob counts for the governance quorum, but his shard is gone: a third shard's custodian is needed.
        result = change(losing, "recover", name, [*QUORUM, "erin"])
    assert result["kcv"] == made["kcv"]
    assert [line.split()[:2] for line in result["changes"]] == [["loses", "bao-2"], ["gains", "bao-6"]]
    health = {one["keystore"]: one["state"] for one in result["health"]}
    assert (health["bao-2"], health["bao-1"]) == ("gone", "healthy")
    now = protection(losing, name)
    assert [shard["keystore"] for shard in now["shards"]] == ["bao-1", "bao-6", "bao-3", "bao-4", "bao-5"]
    # The custodian of what was lost keeps their part.
    assert now["shards"][1]["custodians"] == ["bob"]
    assert f"32 {made['kcv']}" in unseal(losing, name, ["bob", "dave", "erin"])[1]


def test_as_many_keystores_as_may_be_lost_are_lost_at_once(losing: Installation) -> None:
    name = losing.fresh_name()
    made = losing.init(name, threshold=3, count=5)
    with deleted(losing, "bao-1", "bao-3"):
        assert losing.stack.background("drill", name).wait(60) == 1
        result = change(losing, "recover", name, ["bob", "dave", "erin"], "--replace", "bao-8", "--replace", "bao-7")
        assert result["kcv"] == made["kcv"]
        now = protection(losing, name)
        assert [shard["keystore"] for shard in now["shards"]] == ["bao-8", "bao-2", "bao-7", "bao-4", "bao-5"]
        assert f"32 {made['kcv']}" in unseal(losing, name, ["alice", "bob", "carol"])[1]


def test_the_seal_provider_is_lost_and_a_second_one_is_left(losing: Installation) -> None:
    name = losing.fresh_name()
    made = losing.init(name, "seal", count=2)
    with deleted(losing, "bao-1"):
        assert f"32 {made['kcv']}" in unseal(losing, name, [])[1]
        result = change(losing, "recover", name, QUORUM)
        assert [line.split()[:2] for line in result["changes"]] == [["loses", "bao-1"], ["gains", "bao-3"]]
        assert f"32 {made['kcv']}" in unseal(losing, name, [])[1]


def test_the_only_seal_provider_is_lost_and_the_emergency_shards_bring_it_back(losing: Installation) -> None:
    name = losing.fresh_name()
    made = losing.init(name, "seal", count=1)
    words = ["--purpose", "emergency", "--mode", "sss", "--threshold", "2", *keystores(2, 3, 4)]
    assert change(losing, "reshard", name, QUORUM, *words)["retired"] is None
    assert {one["purpose"] for one in losing.stack.masterkey("status", name)["protections"]} == {"primary", "emergency"}
    with deleted(losing, "bao-1"):
        child = losing.stack.background("unseal", name, "--exec", "--", "true")
        assert child.wait(60) == 1
        result = change(losing, "recover", name, ["bob", "carol", "dave"])
        assert set(result["opened_by"]) <= {"bao-2", "bao-3", "bao-4"}
        assert f"32 {made['kcv']}" in unseal(losing, name, [])[1]
    # The emergency protection stands still, and can be dropped.
    dropped = change(losing, "reshard", name, QUORUM, "--drop", "emergency")
    assert all(one["acknowledged"] for one in dropped["keystores"])
    assert {one["status"] for one in losing.stack.masterkey("status", name)["protections"]} == {"active", "retired"}


def test_too_few_keystores_answer_and_the_recovery_waits_for_them_and_takes_another_plan(losing: Installation) -> None:
    name = losing.fresh_name()
    made = losing.init(name, threshold=2, count=3)
    # Two of three are away (their policies are gone), and a third is lost: nobody can be reconstructed from now.
    for key in ("wrap-1", "wrap-2"):
        losing.bao.ask("DELETE", f"sys/policies/acl/{key}")
    try:
        with deleted(losing, "bao-3"):
            child = losing.stack.background(
                "recover", name, "--replace", "bao-6", "--replace", "bao-7", "--replace", "bao-8"
            )
            ceremony = approve_waiting(losing, name, "recover", ["alice", "bob", "carol"])

            def waits() -> dict[str, Any] | None:
                found = losing.stack.masterkey("ceremony", "show", ceremony)
                return found if found["phase"] == "waiting" else None

            shown = eventually(waits)
            assert {one["keystore"]: one["state"] for one in shown["health"]}["bao-1"] == "denied"
            assert any("KeystoreAccessDenied" in one["error"] for one in shown["keystores"])
            # Another plan needs new approvals.
            losing.stack.masterkey("recover", name, "--ceremony", ceremony, *keystores(5, 6, 7))
            eventually(lambda: losing.stack.masterkey("ceremony", "show", ceremony)["phase"] == "quorum")
            shown = losing.stack.masterkey("ceremony", "show", ceremony)
            assert shown["approved_by"] == []
            losing.approve(ceremony, ["alice", "bob", "carol"])
            eventually(waits)
            for key in ("wrap-1", "wrap-2"):
                losing.bao.allow(key)
            out, err = child.communicate(timeout=120)
            assert child.returncode == 0, err
            assert json.loads(out)["kcv"] == made["kcv"]
            assert [shard["keystore"] for shard in protection(losing, name)["shards"]] == ["bao-5", "bao-6", "bao-7"]
    finally:
        for key in ("wrap-1", "wrap-2"):
            losing.bao.allow(key)


def test_so_much_is_gone_that_nothing_can_be_done_and_that_is_said(losing: Installation) -> None:
    name = losing.fresh_name()
    losing.init(name, threshold=2, count=3)
    with deleted(losing, "bao-1", "bao-2"):
        child = losing.stack.background("recover", name)
        out, _ = child.communicate(timeout=120)
    told = json.loads(out)
    assert (child.returncode, told["error"]) == (1, "QuorumUnreachable")
    assert "bao-1, bao-2" in told["message"]
