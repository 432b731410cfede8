"""The quorum's own rules, at their edges."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tests.world import World
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.roster import Governance
from workflows.steps.quorum import Quorum

CUSTODY = (("alice",), ("bob",), ("carol",), ("dave",))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path)


@pytest.fixture
def plan(world: World) -> Plan:
    return world.init_plan(world.target())


def test_in_the_very_second_of_its_end_an_approval_counts_and_is_not_counted_anew(world: World, plan: Plan) -> None:
    # Else the same event would be recorded twice, with two signatures, which the ledger refuses.
    quorum, end = Quorum(plan, world.roster, (), 0), plan.created + timedelta(seconds=5)
    signed = world.approval("alice", plan, expires=end)
    assert quorum.add(signed, plan.created).state == "accepted"
    again = Signed(document=signed.document, signature=signed.signature + "\n")
    assert quorum.add(again, end).state == "duplicate"
    assert list(quorum.approvals(end)) == ["alice"]
    assert quorum.approvals(end + timedelta(seconds=1)) == {}


def test_a_refusal_counts_against_the_shards_that_can_be_opened_at_all(world: World, plan: Plan) -> None:
    excluded: set[int] = set()
    quorum = Quorum(plan, world.roster, CUSTODY, 3, excluded)
    quorum.add(world.approval("dave", plan, decision="reject"), plan.created)
    assert not quorum.unreachable()
    excluded.add(4)
    assert not quorum.unreachable()
    excluded.add(1)
    assert quorum.unreachable()


def test_an_answer_says_of_what_is_needed_the_same_as_the_screen(world: World, plan: Plan) -> None:
    excluded = {1}
    quorum = Quorum(plan, world.roster, CUSTODY, 2, excluded)
    for name in ("alice", "bob"):
        answer = quorum.add(world.approval(name, plan), plan.created)
        assert answer.needed == quorum.needed(plan.created)
    assert answer.needed.endswith("custodians of 1 more shards of 2")
    assert not quorum.reached(plan.created)
    excluded.clear()
    assert "shards" not in quorum.needed(plan.created)


def test_a_custodian_who_was_not_asked_decides_nothing(world: World) -> None:
    governance = Governance(master_key="*", custodians=("alice", "bob", "carol"), quorum=2, minimum_threshold=2)
    roster = world.roster.model_copy(update={"governance": (governance,)})
    plan = world.init_plan(world.target())
    quorum = Quorum(plan, roster, (), 0)
    for decision in ("approve", "reject"):
        with pytest.raises(ApprovalInvalid, match="not among the custodians asked"):
            quorum.add(world.approval("erin", plan, decision=decision), plan.created)
    assert quorum.approved_by == quorum.rejected_by == ()
