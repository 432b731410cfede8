"""Garbage: messages that must not stop a ceremony, poison the record, or speak to a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from activities.crypto.hpke import PrivateKey
from activities.identity import Identity, generate_identity
from tests.attacker.flows import QUORUM, Ceremonies
from tests.attacker.orchestrator import Hostile
from tests.attacker.people import People
from tests.attacker.test_bad_plans import approved, both_refuse, changed_shard, good_target
from tests.conftest import Installation
from tests.driving.reading import ended
from workers.client import ceremonies as ceremony_client
from workers.client import upkeep
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.messages.report import ReportRequest
from workflows.contracts.messages.results import UnsealResult
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import ApprovalInvalid, DocumentInvalid
from workflows.contracts.trust.plan import Approval, RecipientRequest


@pytest.fixture(scope="module")
def mallory(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """The attacker's own key: whoever may send signals has one."""
    return generate_identity(Path(tmp_path_factory.mktemp("mallory")) / "key")


def signed_text(signer: Identity, text: str, namespace: str = Approval.TYPE) -> Signed:
    """Any text, with a valid signature."""
    return Signed(document=text, signature=signer.sign_bytes(text.encode(), namespace))


def with_fields(signed: Signed, change: dict[str, Any]) -> str:
    """The text of an approval with other fields in its plan."""
    fields = json.loads(signed.document)
    fields["plan"].update(change)
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


async def test_no_signal_stops_a_ceremony_that_then_gets_its_quorum(
    people: People, ceremonies: Ceremonies, sss: StoredProtection, mallory: Identity
) -> None:
    key = PrivateKey()
    request = people.wish(sss, key.public_key)
    handle = await ceremonies.start_unseal(request)
    plan = await ceremonies.house.plan(handle)
    good = people.approval("alice", plan)
    signs: list[Any] = [
        # RFC 8785 has no such integers, and no such time can be turned into UTC.
        signed_text(mallory, with_fields(good, {"governance_quorum": 255, "source": {"epoch": 2**60}})),
        signed_text(mallory, with_fields(good, {"source": json.loads(plan.canonical())["source"] | {"epoch": 2**53}})),
        signed_text(mallory, with_fields(good, {"created": "0001-01-01T00:00:00+14:00"})),
        signed_text(mallory, with_fields(good, {"expires": "9999-12-31T23:59:59-14:00"})),
        signed_text(mallory, with_fields(good, {"a\x00\x1b[2J\u202e": 1})),
        signed_text(mallory, "[" * 100_000),
        signed_text(mallory, "\ufeff{}"),
        signed_text(people.custodians["alice"], "{}"),
        None,
        7,
        [],
        ["document", "signature"],
        {"document": 1, "signature": []},
        {"document": "x" * 1_000_001, "signature": "x"},
        {"document": "{}", "signature": "x" * 20_000},
    ]
    for sent in signs:
        await handle.signal("approve", sent)
    await handle.signal("approve", args=[good, good, good])
    await handle.signal("approve")
    status = await ceremony_client.status(ceremonies.client, request.ceremony)
    assert status.refused_messages == len(signs) + 2
    await ceremonies.approve(request.ceremony, handle, QUORUM)
    result = UnsealResult.model_validate(await ended(handle))
    assert len(ceremonies.receive(result.delivered, request, key, sss)) == 32
    history = await handle.fetch_history()
    assert not [event for event in history.events if event.HasField("workflow_task_failed_event_attributes")]
    refused = [e for e in ceremonies.ledger.events(ceremony=request.ceremony) if e.type == "message-refused"]
    assert len(refused) == len(signs) + 2
    assert not any("\\u0000" in event.body or "\\u001b" in event.body for event in refused)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "\x00",
        "null",
        "[" * 50_000,
        '{"\\u0000\\u001b[2J":1}',
        '{"epoch":9007199254740993}',
        '{"' + "x" * 100_000 + '":1}',
    ],
    ids=["empty", "object", "nul", "null", "deep", "controls", "integer", "long"],
)
async def test_a_ceremony_started_with_garbage_ends_and_the_record_stays_readable(
    people: People, ceremonies: Ceremonies, seal: StoredProtection, text: str
) -> None:
    request = people.wish(seal, PrivateKey().public_key)
    signed = signed_text(people.recipient, text, RecipientRequest.TYPE)
    ended = await ceremonies.ended(request.ceremony, await ceremonies.start_unseal(request, signed=signed))
    assert type(ended.error) is DocumentInvalid
    assert len(ended.error.diagnostics) < 3000
    found = ceremonies.ledger.ceremonies(limit=500)
    assert all(entry.detail.isprintable() for entry in found)
    report = await upkeep.report(ceremonies.client, ReportRequest(kind="ceremonies"))
    assert all(entry.detail.isprintable() for entry in report.ceremonies)


async def test_a_request_with_an_impossible_number_ends_the_ceremony(
    people: People, ceremonies: Ceremonies, seal: StoredProtection
) -> None:
    request = people.wish(seal, PrivateKey().public_key)
    text = json.dumps(json.loads(request.canonical()) | {"epoch": 2**60}, sort_keys=True, separators=(",", ":"))
    signed = signed_text(people.recipient, text, RecipientRequest.TYPE)
    ended = await ceremonies.ended(request.ceremony, await ceremonies.start_unseal(request, signed=signed))
    assert type(ended.error) is DocumentInvalid
    assert "masterkey-request document" in ended.bodies("ceremony-failed")[0]


@pytest.mark.parametrize(
    "key_id",
    [
        "arn:aws:kms:eu:1:key/a\n  protected by    Shamir, any 5 of 5 shards, primary, epoch 1",
        "arn:aws:kms:eu:1:key/a\x1b[2K\x1b[1A",
        "arn:aws:kms:eu:1:key/\u202eb",
        "arn:aws:kms:eu:1:key/\u0430",
        "arn:aws:kms:eu:1:key/a" + " " * 90 + "shard 2: aws",
    ],
    ids=["lines", "escape", "right to left", "lookalike", "spaces"],
)
async def test_a_key_id_that_would_rewrite_what_a_custodian_reads_is_no_key_id(
    attacker: Hostile, people: People, sss: StoredProtection, installation: Installation, key_id: str
) -> None:
    target = changed_shard(2, key_id=key_id)(good_target(sss))
    good, _ = approved(people, installation, good_target(sss))
    # Built unchecked, and signed by custodians with a tool of their own.
    plan = good.model_copy(update={"target": target})
    authority = people.authority(good, QUORUM).model_copy(update={"plan": plan.canonical().decode()})
    with pytest.raises(ApprovalInvalid, match="key_id: String should match pattern"):
        await attacker.open(plan, "protect")
    opened = await attacker.open(good, "protect")
    with pytest.raises(ApprovalInvalid, match="key_id: String should match pattern"):
        await attacker.generate("bao-1", 1, authority, opened.announcement)
    await both_refuse(attacker, good, people.authority(good, []), ApprovalInvalid, "3 are needed")
