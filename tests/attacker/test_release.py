"""Releases that nobody authorised: other plans, requests, recipients, manifests and sessions than those signed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from activities.crypto.hpke import PrivateKey
from activities.identity import generate_identity
from activities.recipient import pinned_manifest
from tests.attacker.flows import EVERYBODY, QUORUM, Ceremonies
from tests.attacker.orchestrator import Hostile, Unforeseen
from tests.attacker.people import People, manifest_of
from tests.attacker.test_approvals import both_refuse
from tests.attacker.test_bad_plans import good_target
from tests.conftest import Installation
from tests.world import now
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import (
    AnswerInvalid,
    ApprovalInvalid,
    CiphertextInvalid,
    DocumentInvalid,
    ManifestInvalid,
)
from workflows.contracts.trust.plan import Plan, PlanRecipient, RecipientRequest
from workflows.contracts.trust.protection import KeystoreContext, Manifest
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.session import SessionAnnouncement


@dataclass(frozen=True)
class Scene:
    """A request by the recipient, the plan made from it, and everybody's approval."""

    people: People
    stored: StoredProtection
    request: RecipientRequest
    plan: Plan
    approvers: Sequence[str]

    @cached_property
    def signed(self) -> Authority:
        """Everything that was really signed, once."""
        return self.people.authority(self.plan, self.approvers, self.people.recipient.sign(self.request))

    def authority(self, **changes: Any) -> Authority:
        """What was signed, with changes by the attacker."""
        return self.signed.model_copy(update=changes)

    def about(self, **changes: Any) -> tuple[Plan, Authority]:
        """A changed plan with approvals of that very plan: a deceived quorum."""
        plan = self.plan.model_copy(update=changes)
        signed = self.people.recipient.sign(self.request)
        return plan, self.people.authority(plan, self.approvers, signed)

    def asked(self, **changes: Any) -> tuple[Plan, Authority]:
        """A changed request, signed by the recipient, with the unchanged plan."""
        signed = self.people.recipient.sign(self.request.model_copy(update=changes))
        return self.plan, self.authority(request=signed)


def scene_of(people: People, stored: StoredProtection, **changes: Any) -> Scene:
    """An honest scene."""
    request = people.wish(stored, PrivateKey().public_key, **changes)
    approvers = QUORUM if manifest_of(stored).mode == "sss" else ()
    return Scene(people, stored, request, people.release_plan(stored, request), approvers)


# --- plans that say something else than manifest and request ----------------------------------------------


def source_with(**changes: Any) -> Callable[[Scene], tuple[Plan, Authority]]:
    """A plan that describes the protection wrongly."""

    def change(scene: Scene) -> tuple[Plan, Authority]:
        assert scene.plan.source is not None
        return scene.about(source=scene.plan.source.model_copy(update=changes))

    return change


def recipient_with(**changes: Any) -> Callable[[Scene], tuple[Plan, Authority]]:
    """A plan that names another recipient."""

    def change(scene: Scene) -> tuple[Plan, Authority]:
        assert scene.plan.recipient is not None
        return scene.about(recipient=scene.plan.recipient.model_copy(update=changes))

    return change


OTHER_DIGEST = "sha256:" + "5" * 64
PLANS: dict[str, Callable[[Scene], tuple[Plan, Authority]]] = {
    "a lowered threshold": source_with(threshold=2),
    "a lowered count": source_with(count=3),
    "an sss shard presented as seal": source_with(mode="seal", threshold=1),
    "another epoch": source_with(epoch=2),
    "another manifest": source_with(manifest=OTHER_DIGEST),
    "no source": lambda s: s.about(source=None),
    "no recipient": lambda s: s.about(recipient=None),
    "another name of the recipient": recipient_with(name="mallory"),
    "another key of the recipient": recipient_with(hpke_key=OTHER_DIGEST),
    "another identity of the recipient": recipient_with(fingerprint="SHA256:" + "A" * 43),
    "a lowered governance quorum": lambda s: s.about(governance_quorum=1),
    "another MasterKey": lambda s: s.about(master_key="mk-199"),
    "another action": lambda s: s.about(action="init"),
    "another roster": lambda s: s.about(roster=OTHER_DIGEST),
    "an end in the past": lambda s: s.about(created=now() - timedelta(hours=2), expires=now() - timedelta(hours=1)),
    "an end in years": lambda s: s.about(expires=now() + timedelta(days=400)),
    "a request for another MasterKey": lambda s: s.asked(master_key="mk-199"),
    "a request of another ceremony": lambda s: s.asked(ceremony="mk-199.unseal.0123456789ab"),
    "a request for another manifest": lambda s: s.asked(manifest=OTHER_DIGEST),
    "a request for another epoch": lambda s: s.asked(epoch=7),
    "a request to another strongroom": lambda s: s.asked(strongroom="SHA256:" + "A" * 43),
    "a request with another key": lambda s: s.asked(hpke_public_key=PrivateKey().public_key),
    "a request in another's name": lambda s: s.asked(recipient="SHA256:" + "A" * 43),
    "a request that has expired": lambda s: s.asked(
        issued=now() - timedelta(minutes=9), expires=now() - timedelta(minutes=4)
    ),
    "a request from the future": lambda s: s.asked(
        issued=now() + timedelta(minutes=5), expires=now() + timedelta(minutes=9)
    ),
    "no request": lambda s: (s.plan, s.authority(request=None)),
    "a request that is an approval": lambda s: (
        s.plan,
        s.authority(request=s.people.approval("alice", s.plan)),
    ),
}


@pytest.mark.parametrize("change", PLANS.values(), ids=PLANS)
async def test_a_plan_or_request_that_says_something_else_releases_nothing(
    attacker: Hostile, people: People, sss: StoredProtection, change: Callable[[Scene], tuple[Plan, Authority]]
) -> None:
    plan, authority = change(scene_of(people, sss))
    await both_refuse(attacker, sss, plan, authority, ApprovalInvalid)


async def test_a_sealed_masterkey_needs_a_fresh_request(
    attacker: Hostile, people: People, seal: StoredProtection
) -> None:
    scene = scene_of(people, seal)
    old = scene.asked(issued=now() - timedelta(minutes=6), expires=now() - timedelta(minutes=1))
    long = scene.asked(expires=now() + timedelta(hours=1))
    none = (scene.plan, scene.authority(request=None))
    for plan, authority in (old, long, none):
        opened = await attacker.open(plan, "release")
        with pytest.raises(ApprovalInvalid, match=r"expired|longer than|needs a recipient's request"):
            await attacker.unwrap(seal, 1, authority, opened.announcement)
        with pytest.raises(ApprovalInvalid, match=r"expired|longer than|needs a recipient's request"):
            await attacker.release(opened, authority, seal, ())


# --- recipients -------------------------------------------------------------------------------------------


async def test_a_recipient_that_is_swapped_after_the_approvals_gets_nothing(
    attacker: Hostile, people: People, sss: StoredProtection, tmp_path: Path
) -> None:
    scene, mallory = scene_of(people, sss), generate_identity(tmp_path / "mallory")
    mine = scene.request.model_copy(
        update={"recipient": mallory.fingerprint, "hpke_public_key": PrivateKey().public_key}
    )
    # The plan that was approved, with the attacker's request.
    await both_refuse(attacker, sss, scene.plan, scene.authority(request=mallory.sign(mine)), ApprovalInvalid)
    # The attacker's plan, with approvals of the other.
    named = PlanRecipient(name="crypto", fingerprint=mallory.fingerprint, hpke_key=mine.hpke_key)
    plan = scene.plan.model_copy(update={"recipient": named})
    authority = scene.authority(plan=plan.canonical().decode(), request=mallory.sign(mine))
    await both_refuse(attacker, sss, plan, authority, ApprovalInvalid)
    # Even with a deceived quorum: it is not in the roster.
    authority = people.authority(plan, EVERYBODY, mallory.sign(mine))
    await both_refuse(attacker, sss, plan, authority, ApprovalInvalid, "not signed by a recipient of the roster")


async def test_in_a_running_ceremony_the_recipient_cannot_be_another(
    people: People, ceremonies: Ceremonies, sss: StoredProtection, seal: StoredProtection, tmp_path: Path
) -> None:
    mallory = generate_identity(tmp_path / "mallory")
    for stored in (sss, seal):
        request = people.wish(stored, PrivateKey().public_key, recipient=mallory.fingerprint)
        handle = await ceremonies.start_unseal(request, signed=mallory.sign(request))
        ended = await ceremonies.ended(request.ceremony, handle)
        assert type(ended.error) is ApprovalInvalid
        assert '"error":"ApprovalInvalid"' in ended.bodies("ceremony-failed")[0]


async def test_a_recipient_that_is_not_enrolled_for_this_masterkey_gets_nothing(
    attacker: Hostile, people: People, ceremonies: Ceremonies
) -> None:
    stored = await ceremonies.init("not-for-crypto", "seal", 1, ["bao-1", "bao-2"])
    scene = scene_of(people, stored)
    opened = await attacker.open(scene.plan, "release")
    with pytest.raises(ApprovalInvalid, match="crypto is not enrolled for MasterKey not-for-crypto"):
        await attacker.unwrap(stored, 1, scene.authority(), opened.announcement)
    with pytest.raises(ApprovalInvalid, match="crypto is not enrolled for MasterKey not-for-crypto"):
        await attacker.release(opened, scene.authority(), stored, ())
    handle = await ceremonies.start_unseal(scene.request)
    ended = await ceremonies.ended(scene.request.ceremony, handle)
    assert type(ended.error) is ApprovalInvalid
    assert "not enrolled" in ended.bodies("ceremony-failed")[0]


# --- manifests --------------------------------------------------------------------------------------------


def forged(stored: StoredProtection, signer: Any, **changes: Any) -> StoredProtection:
    """A protection whose manifest the attacker has changed, shard by shard, and signed."""
    fields = {**manifest_of(stored).model_dump(), **changes}
    bound = {name: value for name, value in changes.items() if name in KeystoreContext.model_fields}
    for shard in fields["shards"]:
        shard["binding"].update(bound)
    return stored.model_copy(update={"manifest": signer.sign(Manifest.model_validate(fields))})


async def test_a_manifest_that_the_strongroom_did_not_sign_releases_nothing(
    attacker: Hostile, people: People, ceremonies: Ceremonies, sss: StoredProtection, tmp_path: Path
) -> None:
    mallory = generate_identity(tmp_path / "mallory")
    mine = [{**shard.model_dump(), "custodians": ("alice", "carol", "dave")} for shard in manifest_of(sss).shards]
    for protection in (
        forged(sss, mallory),
        forged(sss, mallory, strongroom=mallory.fingerprint),
        forged(sss, mallory, threshold=2),
        forged(sss, mallory, shards=mine),
        forged(sss, mallory, governance_quorum=1),
        # Real signatures of others in the roster: the recipient's is one that the attacker may come by.
        forged(sss, people.recipient),
        # The strongroom's own signature, over other text.
        sss.model_copy(
            update={
                "manifest": Signed(
                    document=forged(sss, mallory, threshold=2).manifest.document, signature=sss.manifest.signature
                )
            }
        ),
    ):
        scene = scene_of(people, protection)
        await both_refuse(attacker, protection, scene.plan, scene.authority(), ManifestInvalid)
        with pytest.raises(ManifestInvalid):
            await attacker.check(protection, 1)
        with pytest.raises(ManifestInvalid):
            await attacker.note("bao-1", protection.manifest)
        with pytest.raises(ManifestInvalid):
            pinned_manifest(protection.manifest, people.chain, manifest_of(sss).master_key, manifest_of(sss).kcv)


async def test_an_sss_protection_cannot_be_turned_into_seal(
    attacker: Hostile, people: People, sss: StoredProtection, tmp_path: Path
) -> None:
    mallory = generate_identity(tmp_path / "mallory")
    shards = [{**shard.model_dump(), "custodians": ()} for shard in manifest_of(sss).shards]
    protection = forged(sss, mallory, mode="seal", threshold=1, shards=shards)
    scene = scene_of(people, protection)
    await both_refuse(attacker, protection, scene.plan, scene.authority(), ManifestInvalid)
    # The sss manifest itself, with no approvals, as if a recipient's request were enough.
    honest = scene_of(people, sss)
    authority = honest.authority(approvals=())
    await both_refuse(attacker, sss, honest.plan, authority, ApprovalInvalid, "3 are needed")


# --- sessions ---------------------------------------------------------------------------------------------


async def test_a_session_key_that_the_strongroom_did_not_sign_gets_no_dek(
    attacker: Hostile, people: People, sss: StoredProtection, seal: StoredProtection, tmp_path: Path
) -> None:
    mallory = generate_identity(tmp_path / "mallory")
    for stored in (sss, seal):
        scene = scene_of(people, stored)
        opened = await attacker.open(scene.plan, "release")
        genuine = SessionAnnouncement.parse(opened.announcement.document.encode())
        mine = genuine.model_copy(update={"hpke_public_key": PrivateKey().public_key})
        for announcement in (
            mallory.sign(mine),
            mallory.sign(mine.model_copy(update={"strongroom": mallory.fingerprint})),
            people.recipient.sign(mine),
            Signed(document=mine.canonical().decode(), signature=opened.announcement.signature),
            Signed(document=genuine.canonical().decode(), signature=""),
        ):
            with pytest.raises(ApprovalInvalid) as refused:
                await attacker.unwrap(stored, 1, scene.authority(), announcement)
            assert type(refused.value) in (AnswerInvalid, DocumentInvalid)


async def test_a_real_session_that_was_opened_for_something_else_gets_no_dek(
    attacker: Hostile, people: People, sss: StoredProtection, seal: StoredProtection
) -> None:
    scene, other, sealed = scene_of(people, sss), scene_of(people, sss), scene_of(people, seal)
    for plan, purpose in ((scene.plan, "protect"), (other.plan, "release"), (sealed.plan, "release")):
        opened = await attacker.open(plan, purpose)
        with pytest.raises(ApprovalInvalid, match="opened for something else"):
            await attacker.unwrap(sss, 1, scene.authority(), opened.announcement)


# --- other doors ------------------------------------------------------------------------------------------


async def test_a_keystore_answers_only_for_its_own_shard(
    attacker: Hostile, people: People, sss: StoredProtection
) -> None:
    scene = scene_of(people, sss)
    opened = await attacker.open(scene.plan, "release")
    with pytest.raises(ApprovalInvalid, match="does not lie in bao-2"):
        await attacker.unwrap(sss, 1, scene.authority(), opened.announcement, at="bao-2")
    with pytest.raises(ManifestInvalid, match="no such shard"):
        await attacker.unwrap(sss, 1, scene.authority(), opened.announcement, index=6)
    with pytest.raises(ApprovalInvalid):
        await attacker.unwrap(sss, 1, scene.authority(), opened.announcement, index=2)
    with pytest.raises(CiphertextInvalid, match="altered or swapped"):
        await attacker.unwrap(sss, 1, scene.authority(), opened.announcement, wrapped_dek=sss.shards[1].wrapped_dek)


async def test_a_check_answers_yes_or_fails_and_never_gives_a_dek(
    attacker: Hostile, sss: StoredProtection, seal: StoredProtection
) -> None:
    answer = await attacker.check(sss, 1)
    said = answer.document
    assert '"matches":true' in said
    assert len(said) < 600
    assert sss.shards[0].wrapped_dek not in said
    # As an oracle it would need wrapped DEKs of the attacker's choice: only the very one of the manifest is tried.
    for other in (sss.shards[1].wrapped_dek, seal.shards[0].wrapped_dek, "", "AAAA"):
        with pytest.raises(CiphertextInvalid, match="altered or swapped"):
            await attacker.check(sss, 1, wrapped_dek=other)


async def test_what_is_asked_past_the_workflow_and_refused_stands_in_the_workers_own_log(
    attacker: Hostile, people: People, sss: StoredProtection, caplog: pytest.LogCaptureFixture
) -> None:
    scene = scene_of(people, sss)
    opened = await attacker.open(scene.plan, "release")
    authority = scene.authority(approvals=())
    caplog.clear()
    with pytest.raises(ApprovalInvalid):
        await attacker.unwrap(sss, 1, authority, opened.announcement)
    with pytest.raises(ApprovalInvalid):
        await attacker.release(opened, authority, sss, ())
    for activity in ("unwrap_data_key", "release"):
        told = [record for record in caplog.records if f"'{activity}'" in record.getMessage()]
        assert any(
            "ApprovalInvalid: 0 custodians of the governance quorum approved" in one.exc_text
            for one in told
            if one.exc_text
        )


async def test_an_approved_init_cannot_be_used_to_read_back_what_it_protected(
    attacker: Hostile, people: People, sss: StoredProtection, installation: Installation
) -> None:
    # The attacker runs an approved init by itself and keeps all that the session answered.
    name = installation.fresh_name()
    plan = people.init_plan(good_target(sss), master_key=name, ceremony=new_ceremony_id(name, "init"))
    authority = people.authority(plan, QUORUM)
    stolen = await attacker.create(plan, authority)
    opened = await attacker.open(plan, "release")
    with pytest.raises(ApprovalInvalid, match="a plan to init releases nothing"):
        await attacker.unwrap(stolen, 1, authority, opened.announcement)
    with pytest.raises(ApprovalInvalid, match="a plan to init releases nothing"):
        await attacker.release(opened, authority, stolen, ())


async def test_activities_of_one_role_are_not_served_by_another(attacker: Hostile) -> None:
    with pytest.raises(Unforeseen, match="not registered"):
        await attacker.ask("unwrap_data_key", "masterkey-strongroom-vault", {})
    with pytest.raises(Unforeseen, match="not registered"):
        await attacker.ask("release", "masterkey-keystore-bao-1", {})
    with pytest.raises(Unforeseen, match="not registered"):
        await attacker.ask("begin_ceremony", "masterkey-keystore-bao-1", {})


async def test_many_wrong_requests_at_once_do_not_stop_a_right_one(
    attacker: Hostile, people: People, ceremonies: Ceremonies, sss: StoredProtection
) -> None:
    scene = scene_of(people, sss)
    opened = await attacker.open(scene.plan, "release")
    wrong = [attacker.unwrap(sss, 1 + n % 5, scene.authority(approvals=()), opened.announcement) for n in range(20)]
    answers, (key, _) = await asyncio.gather(
        asyncio.gather(*wrong, return_exceptions=True), ceremonies.unseal(sss, QUORUM)
    )
    assert all(isinstance(answer, ApprovalInvalid) for answer in answers)
    assert len(key) == 32
