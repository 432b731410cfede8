"""Approvals that are none: refused by the running ceremony, by each keystore worker and by the session."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from activities.crypto.hpke import PrivateKey
from activities.identity import Identity, generate_identity
from tests.attacker.flows import QUORUM, Ceremonies
from tests.attacker.orchestrator import Hostile
from tests.attacker.people import People
from tests.world import now
from workers.client import ceremonies as ceremony_client
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.plan import Approval, Plan


@dataclass(frozen=True)
class Scene:
    """A plan that waits for its quorum, and what the attacker has collected."""

    people: People
    plan: Plan
    stranger: Identity
    earlier: Signed
    other_plan: Plan


Forge = Callable[[Scene], Signed]


def changed(signed: Signed, change: Callable[[dict[str, Any]], None]) -> Signed:
    """The same signature over altered text."""
    fields = json.loads(signed.document)
    change(fields)
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return Signed(document=text, signature=signed.signature)


def by_stranger(scene: Scene, **fields: Any) -> Signed:
    """An approval signed with the attacker's own key."""
    good = Approval.parse(scene.people.approval("alice", scene.plan).document.encode())
    return scene.stranger.sign(good.model_copy(update=fields))


def with_namespace(scene: Scene, namespace: str) -> Signed:
    """The right bytes, signed by the right key for another purpose."""
    good = scene.people.approval("alice", scene.plan)
    signature = scene.people.custodians["alice"].sign_bytes(good.document.encode(), namespace)
    return Signed(document=good.document, signature=signature)


def not_canonical(scene: Scene) -> Signed:
    """The right words with other spacing, really signed by the custodian."""
    good = scene.people.approval("alice", scene.plan)
    text = json.dumps(json.loads(good.document), indent=1)
    return Signed(document=text, signature=scene.people.custodians["alice"].sign_bytes(text.encode(), Approval.TYPE))


def other_recipient(scene: Scene) -> Signed:
    """An approval of a release to another HPKE key."""
    assert scene.plan.recipient is not None
    recipient = scene.plan.recipient.model_copy(update={"hpke_key": "sha256:" + "1" * 64})
    return scene.people.approval("alice", scene.plan.model_copy(update={"recipient": recipient}))


FORGERIES: dict[str, Forge] = {
    "over another statement": lambda s: Signed(
        document=s.people.approval("alice", s.plan).document,
        signature=s.people.approval("alice", s.other_plan).signature,
    ),
    "by a stranger who says who he is": lambda s: by_stranger(s, custodian=s.stranger.fingerprint),
    "by a stranger in a custodian's name": by_stranger,
    "by one custodian in another's name": lambda s: s.people.approval(
        "alice", s.plan, custodian=s.people.custodians["carol"].fingerprint
    ),
    "by the recipient": lambda s: s.people.recipient.sign(
        Approval.parse(s.people.approval("alice", s.plan).document.encode()).model_copy(
            update={"custodian": s.people.recipient.fingerprint}
        )
    ),
    "expired": lambda s: s.people.approval(
        "alice", s.plan, issued=now() - timedelta(hours=2), expires=now() - timedelta(hours=1)
    ),
    "from the future": lambda s: s.people.approval(
        "alice", s.plan, issued=now() + timedelta(minutes=5), expires=now() + timedelta(hours=1)
    ),
    "in force for years": lambda s: s.people.approval("alice", s.plan, expires=now() + timedelta(days=900)),
    "a rejection presented as approval": lambda s: changed(
        s.people.approval("alice", s.plan, decision="reject"), lambda fields: fields.update(decision="approve")
    ),
    "for another recipient": other_recipient,
    "for another ceremony": lambda s: s.people.approval(
        "alice", s.plan.model_copy(update={"ceremony": s.other_plan.ceremony})
    ),
    "replayed from an earlier ceremony": lambda s: s.earlier,
    "of an earlier ceremony, moved to this one": lambda s: changed(
        s.earlier, lambda fields: fields.update(plan=json.loads(s.plan.canonical()), plan_digest=s.plan.digest)
    ),
    "signed as a roster": lambda s: with_namespace(s, "masterkey-roster"),
    "signed as a file": lambda s: with_namespace(s, "file"),
    "not canonical": not_canonical,
    "with a malformed signature": lambda s: Signed(
        document=s.people.approval("alice", s.plan).document,
        signature="-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n",
    ),
    "without a signature": lambda s: Signed(document=s.people.approval("alice", s.plan).document, signature=""),
    "that is no document": lambda s: Signed(
        document="\x00", signature=s.people.custodians["alice"].sign_bytes(b"\x00", Approval.TYPE)
    ),
}


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """The attacker's own key."""
    return generate_identity(Path(tmp_path_factory.mktemp("stranger")) / "key")


async def test_a_running_ceremony_refuses_every_forgery_says_so_and_records_it(
    attacker: Hostile, people: People, ceremonies: Ceremonies, sss: StoredProtection, stranger: Identity
) -> None:
    first = people.wish(sss, PrivateKey().public_key)
    first_handle = await ceremonies.start_unseal(first)
    earlier = await ceremonies.approve(first.ceremony, first_handle, ["alice"])
    request = people.wish(sss, PrivateKey().public_key)
    handle = await ceremonies.start_unseal(request)
    plan = await ceremonies.house.plan(handle)
    scene = Scene(people, plan, stranger, people.approval("alice", earlier), earlier)
    for what, forge in FORGERIES.items():
        forged = forge(scene)
        with pytest.raises(ApprovalInvalid):
            await ceremony_client.submit(ceremonies.client, request.ceremony, forged)
        await handle.signal("approve", forged)
        status = await ceremony_client.status(ceremonies.client, request.ceremony)
        assert status.approved_by == (), what
    assert status.refused_messages == len(FORGERIES)
    for ceremony, refused_plan in ((first.ceremony, earlier), (request.ceremony, plan)):
        await ceremonies.refuse(ceremony, refused_plan)
    await ceremonies.ended(first.ceremony, first_handle)
    ended = await ceremonies.ended(request.ceremony, handle)
    assert ended.types.count("message-refused") == len(FORGERIES)
    assert all('"error":"ApprovalInvalid"' in body for body in ended.bodies("message-refused"))
    assert ended.types.count("rejection-recorded") == 3
    assert "approval-recorded" not in ended.types
    assert "refused by carol, dave, erin" in ended.error.message


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
async def test_two_good_approvals_and_a_forged_one_release_nothing(
    attacker: Hostile, people: People, sss: StoredProtection, stranger: Identity, forge: Forge
) -> None:
    earlier_request = people.wish(sss, PrivateKey().public_key)
    earlier = people.release_plan(sss, earlier_request)
    request = people.wish(sss, PrivateKey().public_key)
    plan = people.release_plan(sss, request)
    scene = Scene(people, plan, stranger, people.approval("alice", earlier), earlier)
    honest = people.authority(plan, ["carol", "dave"], people.recipient.sign(request))
    authority = honest.model_copy(update={"approvals": (forge(scene), *honest.approvals)})
    await both_refuse(attacker, sss, plan, authority, ApprovalInvalid)


async def both_refuse(
    attacker: Hostile, stored: StoredProtection, plan: Plan, authority: Any, error: type[Exception], says: str = "."
) -> None:
    """Keystore worker and session, asked directly, refuse a release with this very error."""
    for answer in await attacker.refusals(plan, authority, stored=stored, place=3):
        assert answer.failure_type == error.__name__, answer
        assert re.search(says, str(answer))


async def test_a_rejection_among_the_approvals_releases_nothing(
    attacker: Hostile, people: People, sss: StoredProtection
) -> None:
    request = people.wish(sss, PrivateKey().public_key)
    plan = people.release_plan(sss, request)
    honest = people.authority(plan, ["carol", "dave"], people.recipient.sign(request))
    rejection = people.approval("alice", plan, decision="reject")
    authority = honest.model_copy(update={"approvals": (*honest.approvals, rejection)})
    await both_refuse(attacker, sss, plan, authority, ApprovalInvalid, "alice rejected this plan")


@pytest.mark.parametrize("approvers", [[], ["alice"], ["alice", "carol"], ["alice", "alice", "carol"]])
async def test_too_few_distinct_custodians_release_nothing(
    attacker: Hostile, people: People, sss: StoredProtection, approvers: list[str]
) -> None:
    request = people.wish(sss, PrivateKey().public_key)
    plan = people.release_plan(sss, request)
    authority = people.authority(plan, approvers, people.recipient.sign(request))
    await both_refuse(attacker, sss, plan, authority, ApprovalInvalid, "3 are needed")


async def test_a_shard_is_released_only_with_its_own_custodian(
    attacker: Hostile, people: People, sss: StoredProtection
) -> None:
    request = people.wish(sss, PrivateKey().public_key)
    plan = people.release_plan(sss, request)
    authority = people.authority(plan, QUORUM, people.recipient.sign(request))
    opened = await attacker.open(plan, "release")
    answers = await asyncio.gather(
        *(attacker.unwrap(sss, index, authority, opened.announcement) for index in range(1, 6)),
        return_exceptions=True,
    )
    refused = {index for index, answer in enumerate(answers, start=1) if isinstance(answer, ApprovalInvalid)}
    assert refused == {2, 5}, "bob and erin did not approve"
    with pytest.raises(ApprovalInvalid, match="none of the custodians of bao-2 approved"):
        raise answers[1]  # type: ignore[misc]
