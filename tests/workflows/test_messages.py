"""Messages to a ceremony: whatever is sent, whenever, by whomever, only valid decisions count and nothing breaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.client import WorkflowUpdateFailedError
from temporalio.common import RawValue
from temporalio.service import RPCError, RPCStatusCode

from activities.identity import Identity, generate_identity
from tests.driving.gates import wait_for_gates
from tests.driving.house import House
from tests.driving.reading import Handle, clean, ended, eventually, failure
from tests.workflows.gated import GatedHouse
from workers.client import ceremonies as ceremony_client
from workflows.contracts import names
from workflows.contracts.messages.results import InitResult, UnsealResult
from workflows.contracts.messages.status import SubmitOutcome
from workflows.contracts.trust.canonical import Signed, canonical_json, seconds
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.plan import Approval, Plan
from workflows.contracts.trust.service_errors import CeremonyEnded, DeadlinePassed

GARBAGE: tuple[tuple[Any, ...], ...] = (
    (),
    (None,),
    ("approve",),
    (0,),
    (3.5,),
    (True,),
    ([],),
    ({},),
    ({"document": 1, "signature": 2},),
    ({"document": "", "signature": ""},),
    ({"document": "{}", "signature": "-----BEGIN SSH SIGNATURE-----\n-----END SSH SIGNATURE-----"},),
    ({"document": "x" * 1_000_001, "signature": "x"},),
    ({"document": "x", "signature": "x" * 16_385},),
    ([[[[[[[[]]]]]]]],),
    ("one", "two"),
    ({"document": "a", "signature": "b"}, "extra"),
    tuple(range(30)),
    (RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b"\xff\xfe{")),),
    (RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b'{"document": "\\ud800", "signature": ""}')),),
    (RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b"[" * 5000)),),
    (RawValue(Payload(metadata={"encoding": b"binary/plain"}, data=bytes(range(256)))),),
    (RawValue(Payload(metadata={"encoding": b"binary/unheard-of"}, data=b"?")),),
    (RawValue(Payload(data=b"no encoding at all")),),
)


def crafted(plan: Plan, signer: Identity) -> list[Signed]:
    """Validly signed documents with fields that nobody should have written."""
    good = json.loads(
        Approval(
            decision="approve",
            plan=plan,
            plan_digest=plan.digest,
            custodian=signer.fingerprint,
            issued=seconds(datetime.now(UTC)),
            expires=plan.expires,
        ).canonical()
    )
    source = {"manifest": "sha256:" + "0" * 64, "epoch": 2**60, "mode": "sss", "threshold": 2, "count": 3}
    texts = [
        json.dumps({**good, **change})
        for change in (
            {"expires": "9999-12-31T23:59:59-01:00"},
            {"issued": "0001-01-01T00:00:00+05:00"},
            {"expires": "9999-12-31T23:59:59Z"},
            {"issued": 10**18},
            {"expires": -(10**30)},
            {"expires": float("nan")},
            {"version": 2**70},
            {"plan": {**good["plan"], "source": source}},
            {"plan": {**good["plan"], "governance_quorum": 10**400}},
            {"plan": None},
            {"custodian": None},
            {"decision": "approve\x00"},
            {"more": 1},
        )
    ]
    texts += ["null", "[]", "", " ", "\x00", "9" * 5000, "[" * 100_000, '{"type":' * 1000, json.dumps(good, indent=1)]
    texts.append(canonical_json({**good, "expires": "2999-01-01T00:00:00Z"}).decode())
    return [
        Signed(document=text, signature=signer.sign_bytes(text.encode(), namespace))
        for text in texts
        for namespace in (Approval.TYPE, Plan.TYPE)
    ]


async def poison(handle: Handle, plan: Plan, signers: list[Identity]) -> int:
    """Send everything that could break a handler; gives back how many signals ought to be refused."""
    sent = 0
    for arguments in GARBAGE:
        await handle.signal("approve", args=arguments)
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("submit", args=arguments)
        sent += 1
    for name in ("", "Approve", "submit", "__temporal_what", "status", "reject"):
        if name:
            await handle.signal(name, args=("unknown", {"to": "all"}))
            with pytest.raises((WorkflowUpdateFailedError, RPCError)):
                await handle.execute_update(f"{name}-unknown", "x")
    for signed in (one for signer in signers for one in crafted(plan, signer)):
        await handle.signal("approve", signed)
        sent += 1
    for signed in crafted(plan, signers[0])[:12]:
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("submit", signed)
    return sent


async def test_an_init_survives_every_poison_message_and_then_completes(house: House, tmp_path: Path) -> None:
    name = house.fresh_name()
    handle = await house.start_init(name)
    plan = await house.plan(handle)
    sent = await poison(handle, plan, [generate_identity(tmp_path / "stranger"), house.identity("alice")])
    status = await house.status(handle)
    assert status.phase == "quorum"
    assert status.approved_by == ()
    assert 40 < status.refused_messages <= sent
    await house.approve(handle, ["alice", "bob", "carol"])
    assert InitResult.model_validate(await ended(handle)).approved_by == ("alice", "bob", "carol")
    await clean(handle)
    refused = [e for e in house.ledger.events(ceremony=status.ceremony) if e.type == "message-refused"]
    assert len(refused) == 20, "the first twenty are remembered, so that a flood cannot fill the ledger"


async def test_an_unseal_survives_every_poison_message_and_then_completes(house: House, tmp_path: Path) -> None:
    name = house.fresh_name()
    made = await house.init(name)
    asked = await house.ask(name, made)
    plan = await house.plan(asked.handle)
    await poison(asked.handle, plan, [generate_identity(tmp_path / "stranger")])
    await house.approve(asked.handle, ["alice", "bob", "dave"])
    result = UnsealResult.model_validate(await ended(asked.handle))
    assert len(house.receive(asked, result, made)) == 32
    await clean(asked.handle)


async def test_poison_before_the_first_workflow_task_is_harmless(house: House) -> None:
    request = house.init_request(house.fresh_name())
    handle = await house.client.start_workflow(
        "InitWorkflow",
        request,
        id=names.workflow_id(request.ceremony),
        task_queue=names.ORCHESTRATOR_QUEUE,
        start_signal="approve",
        start_signal_args=[{"document": "before there is a plan", "signature": ""}],
    )
    await house.approve(handle, ["alice", "bob", "carol"])
    await ended(handle)
    await clean(handle)
    events = [e for e in house.ledger.events(ceremony=request.ceremony) if e.type == "message-refused"]
    assert [json.loads(e.body)["error"] for e in events] == ["CeremonyEnded"]


async def test_before_there_is_a_plan_a_decision_is_refused_politely(gated: GatedHouse) -> None:
    elsewhere = gated.fresh_name()
    other = await gated.start_init(elsewhere)
    some = gated.decision("alice", await gated.plan(other))
    name = gated.fresh_name()
    gate = gated.gate(name, names.DESCRIBE_KEY)
    handle = await gated.start_init(name)
    await wait_for_gates([gate])
    with pytest.raises(CeremonyEnded, match="asks nobody, or not yet"):
        await ceremony_client.submit(gated.client, (await gated.status(handle)).ceremony, some)
    await handle.signal("approve", some)
    assert (await gated.status(handle)).phase == "planning"
    gate.open()
    await gated.approve(handle, ["alice", "bob", "carol"])
    await ended(handle)
    await clean(handle)
    await other.terminate()


async def test_a_seal_unseal_asks_nobody_and_says_so(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    made = await gated.init(name, "seal")
    ceremony = names.new_ceremony_id(name, "unseal")
    gate = gated.gate(ceremony, names.OPEN_SESSION)
    asked = await gated.ask(name, made, ceremony=ceremony)
    await wait_for_gates([gate])
    status = await gated.status(asked.handle)
    assert status.plan is not None
    plan = Plan.parse(status.plan.encode())
    with pytest.raises(CeremonyEnded, match="asks nobody"):
        await ceremony_client.submit(gated.client, status.ceremony, gated.decision("alice", plan))
    await asked.handle.signal("approve", gated.decision("alice", plan, "reject"))
    gate.open()
    gated.receive(asked, UnsealResult.model_validate(await ended(asked.handle)), made)
    await clean(asked.handle)


async def test_late_arrivals_are_answered_politely(gated: GatedHouse) -> None:
    name = gated.fresh_name()
    gate = gated.gate(name, names.COMMIT_PROTECTION)
    handle = await gated.start_init(name)
    plan = await gated.plan(handle)
    await gated.approve(handle, ["alice", "bob", "carol"])
    await wait_for_gates([gate])
    late = await ceremony_client.submit(gated.client, plan.ceremony, gated.decision("dave", plan))
    assert (late.state, late.decision, late.needed) == ("accepted", "approve", "")
    gate.open()
    await ended(handle)
    await clean(handle)
    with pytest.raises(CeremonyEnded, match="is over"):
        await ceremony_client.submit(gated.client, plan.ceremony, gated.decision("erin", plan))
    with pytest.raises(RPCError) as refused:
        await handle.signal("approve", gated.decision("erin", plan))
    assert refused.value.status == RPCStatusCode.NOT_FOUND


async def test_duplicates_count_once(house: House) -> None:
    handle = await house.start_init(house.fresh_name())
    plan = await house.plan(handle)
    for seconds_ago in (0, 1, 2):
        issued = seconds(datetime.now(UTC)) - timedelta(seconds=seconds_ago)
        for _ in range(2):
            await handle.signal("approve", house.decision("alice", plan, issued=issued))
    again = await handle.execute_update("submit", house.decision("alice", plan), result_type=SubmitOutcome)
    assert (again.state, again.needed) == ("duplicate", "2 more of the governance quorum of 3")
    status = await house.status(handle)
    assert (status.phase, status.approved_by, status.refused_messages) == ("quorum", ("alice",), 0)
    await house.approve(handle, ["bob", "carol"])
    await ended(handle)
    recorded = [e for e in house.ledger.events(ceremony=plan.ceremony) if e.type == "approval-recorded"]
    assert len(recorded) == 3
    await clean(handle)


async def test_a_rejection_after_an_approval_stands(house: House) -> None:
    handle = await house.start_init(house.fresh_name())
    plan = await house.plan(handle)
    await house.approve(handle, ["alice"])
    await handle.signal("approve", house.decision("alice", plan, "reject"))
    again = await handle.execute_update("submit", house.decision("alice", plan), result_type=SubmitOutcome)
    assert (again.state, again.decision) == ("duplicate", "reject")
    status = await house.status(handle)
    assert (status.approved_by, status.rejected_by) == ((), ("alice",))
    assert status.needed == "3 more of the governance quorum of 3"
    await house.approve(handle, ["bob", "carol", "dave"])
    assert InitResult.model_validate(await ended(handle)).approved_by == ("bob", "carol", "dave")
    await clean(handle)


async def test_when_the_quorum_can_no_longer_be_reached_the_ceremony_ends_and_says_who_refused(house: House) -> None:
    name = house.fresh_name()
    handle = await house.start_init(name)
    plan = await house.plan(handle)
    await house.approve(handle, ["alice", "bob"])
    for who in ("bob", "dave"):
        await handle.signal("approve", house.decision(who, plan, "reject"))
    assert (await house.status(handle)).phase == "quorum", "three are left, and three are enough"
    await handle.signal("approve", house.decision("erin", plan, "reject"))
    error = await failure(handle)
    assert isinstance(error, CeremonyEnded)
    assert "refused by bob, dave, erin" in error.message
    await clean(handle)
    record = house.ledger.ceremony(plan.ceremony)
    assert (record.outcome, record.phase) == ("refused", "quorum")
    assert "bob, dave, erin" in record.detail
    assert house.ledger.protections(name) == []


async def test_an_unseal_ends_when_too_few_shards_are_left_though_the_quorum_is_not(house: House) -> None:
    name = house.fresh_name()
    made = await house.init(name)
    asked = await house.ask(name, made)
    plan = await house.plan(asked.handle)
    for who in ("alice", "bob"):
        await asked.handle.signal("approve", house.decision(who, plan, "reject"))
    error = await failure(asked.handle)
    assert isinstance(error, CeremonyEnded)
    assert "refused by alice, bob" in error.message
    await clean(asked.handle)


async def test_an_approval_that_expires_before_the_quorum_stands_does_not_count(house: House) -> None:
    handle = await house.start_init(house.fresh_name())
    plan = await house.plan(handle)
    times: dict[str, Any] = {"issued": ago(1), "expires": seconds(datetime.now(UTC)) + timedelta(seconds=2)}
    await handle.signal("approve", house.decision("alice", plan, **times))
    await house.approve(handle, ["bob"])

    async def expired() -> bool:
        return "alice" in (await house.status(handle)).missing

    await eventually(expired)
    await house.approve(handle, ["carol"])
    status = await house.status(handle)
    assert (status.phase, status.needed) == ("quorum", "1 more of the governance quorum of 3")
    with pytest.raises(ApprovalInvalid, match="expired"):
        await ceremony_client.submit(house.client, plan.ceremony, house.decision("alice", plan, **times))
    await house.approve(handle, ["alice"])
    await ended(handle)
    await clean(handle)


async def test_at_the_deadline_the_ceremony_ends_and_says_what_was_missing(house: House) -> None:
    name = house.fresh_name()
    handle = await house.start_init(name, quorum_timeout_seconds=2)
    plan = await house.plan(handle)
    await house.approve(handle, ["alice", "bob"])
    error = await failure(handle)
    assert isinstance(error, DeadlinePassed)
    assert "1 more of the governance quorum of 3" in error.message
    assert house.ledger.ceremony(plan.ceremony).outcome == "expired"
    await clean(handle)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("another plan", lambda house, plan: house.decision("alice", plan.model_copy(update={"governance_quorum": 1}))),
        ("expired", lambda house, plan: house.decision("alice", plan, issued=ago(9), expires=ago(5))),
        ("dated in the future", lambda house, plan: house.decision("alice", plan, issued=ago(-5))),
        ("in force for longer", lambda house, plan: house.decision("alice", plan, expires=ago(-(60 * 24 * 40)))),
        (
            "not signed by a custodian of the roster",
            lambda house, plan: house.sign("recipient", approval_by(house, "recipient", plan)),
        ),
        ("or by another than it names", lambda house, plan: house.sign("alice", approval_by(house, "carol", plan))),
    ],
)
async def test_an_update_tells_its_sender_what_is_wrong(
    house: House, waiting: Handle, what: str, change: Callable[[House, Plan], Signed]
) -> None:
    plan = await house.plan(waiting)
    with pytest.raises(ApprovalInvalid, match=what):
        await ceremony_client.submit(house.client, plan.ceremony, change(house, plan))


@pytest.fixture(scope="module", name="waiting")
async def _waiting(house: House) -> Any:
    """An init that waits for its quorum."""
    handle = await house.start_init(house.fresh_name())
    yield handle
    await handle.terminate()


def ago(minutes: int) -> datetime:
    """A time so many minutes ago."""
    return seconds(datetime.now(UTC)) - timedelta(minutes=minutes)


def approval_by(house: House, name: str, plan: Plan) -> Approval:
    """An approval that names somebody."""
    return Approval(
        decision="approve",
        plan=plan,
        plan_digest=plan.digest,
        custodian=house.identity(name).fingerprint,
        issued=seconds(datetime.now(UTC)),
        expires=plan.expires,
    )
