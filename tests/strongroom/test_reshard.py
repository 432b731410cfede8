"""A reshard: the same MasterKey comes back from another protection, and nothing but what was approved is made."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from activities.crypto import envelope, shamir
from activities.crypto.hpke import PrivateKey, encrypt_to
from activities.keystores import datakey
from activities.keystores.kinds.base import KeyRef
from activities.strongroom import session
from activities.strongroom.datakeys import Session
from tests.strongroom.test_session import Ceremony, manifest_of, resigned
from tests.world import KEYSTORES, NAMES, World, acting, now
from workflows.contracts.messages.keystore import GenerateDataKey
from workflows.contracts.messages.protection import DekAnswer, StoredProtection
from workflows.contracts.messages.strongroom import Protect, Release, Reshard
from workflows.contracts.trust.canonical import Signed, decode64, digest, encode64
from workflows.contracts.trust.errors import (
    ApprovalInvalid,
    CiphertextInvalid,
    ConfigurationInvalid,
    ManifestInvalid,
    MasterKeyError,
    PlanInvalid,
)
from workflows.contracts.trust.plan import Plan, PlanRecipient, Target
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.roster import Governance
from workflows.contracts.trust.session import DekResponse, SessionAnnouncement, dek_info
from workflows.contracts.trust.signatures import open_signed

Change = Callable[[list[DekAnswer], list[DekAnswer]], None]


class Resharding(Ceremony):
    """Runs the steps of a reshard by calling the roles' own functions.

    Attributes:
        shown: what authorised the last one.
    """

    shown: Authority

    def generate(self, target: Target, authority: Authority, announced: Signed) -> list[DekAnswer]:
        """A fresh data key of every keystore that has a worker."""
        return [
            datakey.generate(
                self.world.desk(place.keystore),
                GenerateDataKey(keystore=place.keystore, index=place.index, authority=authority, session=announced),
                now(),
            )
            for place in target.shards
            if not self.world.is_offline(place.keystore)
        ]

    def reshard(
        self,
        stored: StoredProtection,
        target: Target,
        approvers: Sequence[str] = NAMES[:3],
        indexes: Sequence[int] = (1, 2, 3),
        *,
        change: Change = lambda opened, deks: None,
        rows: StoredProtection | None = None,
        attempt: int = 1,
        **fields: Any,
    ) -> StoredProtection:
        """The whole of a reshard; `change` is what a hostile orchestrator does to the data keys on their way."""
        plan = self.world.reshard_plan(stored, target, **fields)
        authority = self.shown = self.world.authority(plan, approvers)
        opened = self.open(plan, "reshard", attempt)
        announced = self.announce(opened)
        given = [self.unwrap(stored, index, authority, announced) for index in indexes]
        deks = self.generate(target, authority, announced)
        change(given, deks)
        work = Reshard(
            session="ab" * 16,
            authority=authority,
            protection=rows or stored,
            opened=tuple(given),
            deks=tuple(deks),
        )
        return session.reshard(opened, work, now())

    def refusals(
        self, stored: StoredProtection, plan: Plan, authority: Authority, *, index: int = 1
    ) -> tuple[MasterKeyError, MasterKeyError]:
        """What a keystore that shall unwrap, and the session, both asked directly, say."""
        opened = self.open(plan, "reshard")
        with pytest.raises(MasterKeyError) as at_keystore:
            self.unwrap(stored, index, authority, self.announce(opened))
        work = Reshard(session="ab" * 16, authority=authority, protection=stored, opened=(), deks=())
        with pytest.raises(MasterKeyError) as at_session:
            session.reshard(opened, work, now())
        return at_keystore.value, at_session.value


@pytest.fixture
def ceremony(tmp_path: Path) -> Resharding:
    return Resharding(World.make(tmp_path))


def both_refuse(
    ceremony: Resharding,
    stored: StoredProtection,
    plan: Plan,
    authority: Authority,
    error: type[MasterKeyError],
    says: str,
) -> None:
    for refused in ceremony.refusals(stored, plan, authority):
        assert (refused.failure_type, says in refused.message) == (error.__name__, True), refused


# --- what comes back ---------------------------------------------------------------------------------------

ALL = KEYSTORES
TOPOLOGIES: dict[str, tuple[tuple[str, int, int], tuple[str, ...], str, int]] = {
    "fewer shards, another threshold": (("sss", 3, 5), ALL[2:], "sss", 2),
    "all of four": (("sss", 3, 5), ALL[:4], "sss", 4),
    "more shards": (("sss", 2, 3), ALL, "sss", 3),
    "other keystores only": (("sss", 2, 3), ALL[3:], "sss", 2),
    "the same keystores: newer data keys": (("sss", 3, 5), ALL, "sss", 3),
    "the same keystores in another order": (("sss", 3, 5), ALL[::-1], "sss", 3),
    "sss to seal": (("sss", 3, 5), (ALL[0], ALL[4]), "seal", 1),
    "seal to sss": (("seal", 1, 2), ALL, "sss", 3),
    "seal to seal elsewhere": (("seal", 1, 2), ALL[2:4], "seal", 1),
}


def released(ceremony: Ceremony, stored: StoredProtection) -> bytes:
    """The MasterKey as its recipient gets it: from the last M shards."""
    manifest = manifest_of(stored)
    chosen = manifest.shards[-manifest.threshold :]
    owners = [name for shard in chosen for name in shard.custodians]
    approvers = tuple(dict.fromkeys([*owners, *NAMES]))[: max(3, len(owners))] if owners else ()
    return ceremony.unseal(stored, approvers, tuple(shard.binding.index for shard in chosen))[0]


@pytest.mark.parametrize(("before", "keystores", "mode", "threshold"), TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_the_same_masterkey_comes_back_from_another_protection(
    ceremony: Resharding, before: tuple[str, int, int], keystores: tuple[str, ...], mode: str, threshold: int
) -> None:
    stored = ceremony.protect(*before)
    key = released(ceremony, stored)
    made = ceremony.reshard(
        stored,
        ceremony.world.target_over(keystores, mode, threshold),
        indexes=range(1, manifest_of(stored).threshold + 1),
    )
    assert manifest_of(made).kcv == manifest_of(stored).kcv == envelope.key_check_value(key, "eu10")
    assert released(ceremony, made) == key
    # Nothing of the old protection is in the new one: all data keys, nonces and ciphertexts are fresh.
    old = {value for row in stored.shards for value in (row.wrapped_dek, row.nonce, row.ciphertext)}
    new = [value for row in made.shards for value in (row.wrapped_dek, row.nonce, row.ciphertext)]
    assert old.isdisjoint(new)
    assert len(set(new)) == 3 * len(keystores)


def test_old_and_new_shards_do_not_recombine_together(ceremony: Resharding) -> None:
    stored = ceremony.protect("sss", 2, 3)
    key = released(ceremony, stored)
    made = ceremony.reshard(stored, ceremony.world.target_over(ALL[:3]), indexes=(1, 2))

    def plain(protection: StoredProtection, place: int) -> bytes:
        row, shard = protection.shards[place], manifest_of(protection).shards[place]
        keystore = ceremony.world.memory[row.keystore]
        dek = keystore.unwrap(decode64(row.wrapped_dek), shard.binding.fields(), KeyRef(row.key_id, row.key_version))
        return envelope.decrypt_shard(decode64(row.nonce), decode64(row.ciphertext), dek, shard.binding)

    assert shamir.combine([plain(made, 0), plain(made, 1)]) == key
    assert shamir.combine([plain(stored, 0), plain(made, 1)]) != key


def test_an_emergency_protection_is_added_beside_the_primary_one(ceremony: Resharding) -> None:
    stored = ceremony.protect("seal", 1, 2)
    key = released(ceremony, stored)
    target = ceremony.world.target_over(ALL, "sss", 3, purpose="emergency")
    made = ceremony.reshard(stored, target, indexes=(1,))
    manifest = manifest_of(made)
    assert (manifest.purpose, manifest.predecessor) == ("emergency", None)
    for name in KEYSTORES:
        ceremony.note(name, stored)
        assert ceremony.note(name, made).master_keys[0].epochs == {"primary": 1, "emergency": 2}
    assert released(ceremony, made) == released(ceremony, stored) == key
    # And the emergency protection makes the primary one anew when that is lost.
    again = ceremony.world.target_over(ALL[3:], "seal", 1, epoch=3, predecessor=stored.manifest.digest)
    restored = ceremony.reshard(made, again, action="recover", ceremony="eu10.recover.0123456789ab")
    assert released(ceremony, restored) == key


def test_a_reshard_of_a_reshard_gives_the_same_masterkey(ceremony: Resharding) -> None:
    stored = ceremony.protect()
    key = released(ceremony, stored)
    for epoch, keystores in ((2, ALL[:3]), (3, ALL[1:4])):
        count = manifest_of(stored).threshold
        approvers = [shard.custodians[0] for shard in manifest_of(stored).shards[:count]]
        stored = ceremony.reshard(
            stored,
            ceremony.world.target_over(keystores, epoch=epoch),
            tuple(dict.fromkeys([*approvers, *NAMES]))[:3],
            range(1, count + 1),
        )
    assert released(ceremony, stored) == key
    assert manifest_of(stored).epoch == 3


def test_the_manifest_names_predecessor_epoch_plan_and_approvals(ceremony: Resharding) -> None:
    stored, world = ceremony.protect(), ceremony.world
    target = world.target_over(ALL[:3], epoch=7)
    made = ceremony.reshard(stored, target, NAMES[:4], attempt=5, governance_quorum=4)
    manifest = manifest_of(made)
    assert manifest.predecessor == stored.manifest.digest
    assert (manifest.epoch, manifest.attempt, manifest.governance_quorum) == (7, 5, 4)
    assert manifest.plan == digest(ceremony.shown.plan.encode())
    assert manifest.authority == tuple(sorted(signed.digest for signed in ceremony.shown.approvals))
    assert len(manifest.authority) == 4
    assert manifest.roster == world.chain.digest
    assert [shard.custodians for shard in manifest.shards] == [(name,) for name in NAMES[:3]]
    assert open_signed(type(manifest), made.manifest)[1] == world.strongroom.fingerprint


def test_the_answer_holds_neither_the_masterkey_nor_a_shard_nor_a_data_key(
    ceremony: Resharding, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = ceremony.protect()
    secrets: list[bytes] = []
    encrypt, decrypt = envelope.encrypt_shard, envelope.decrypt_shard

    def encrypting(shard: bytes, dek: bytes, binding: Any) -> tuple[bytes, bytes]:
        secrets.extend((shard[:32], dek))
        return encrypt(shard, dek, binding)

    def decrypting(nonce: bytes, ciphertext: bytes, dek: bytes, binding: Any) -> bytes:
        plain = decrypt(nonce, ciphertext, dek, binding)
        secrets.extend((plain[:32], dek))
        return plain

    monkeypatch.setattr(envelope, "encrypt_shard", encrypting)
    monkeypatch.setattr(envelope, "decrypt_shard", decrypting)
    made = ceremony.reshard(stored, ceremony.world.target_over(ALL[:3]))
    monkeypatch.undo()
    secrets.append(released(ceremony, made))
    assert len(set(secrets)) == 3 + 3 + 3 + 3 + 1
    assert set(made.model_dump()) == {"manifest", "shards"}
    answer = made.model_dump_json().encode()
    decoded = b"".join(decode64(text) for row in made.shards for text in (row.wrapped_dek, row.nonce, row.ciphertext))
    for secret in secrets:
        # Base64 at any offset: the middle of each of the three encodings.
        middles = [base64.b64encode(b"\0" * shift + secret)[4:-4] for shift in range(3)]
        for form in (secret, secret.hex().encode(), *middles):
            assert form not in answer
            assert form not in decoded


# --- offline keystores -------------------------------------------------------------------------------------


@pytest.fixture
def with_offline(tmp_path: Path) -> Resharding:
    """Two of the five keystores are age keys, each at its custodian's."""
    return Resharding(World.make(tmp_path, offline=("ks-2", "ks-5")))


def test_a_shard_goes_to_an_offline_custodian_and_comes_back_from_them(with_offline: Resharding) -> None:
    world, stored = with_offline.world, with_offline.protect("seal", 1, 1)
    key = released(with_offline, stored)
    made = with_offline.reshard(stored, world.target_over(ALL[1:], threshold=4), indexes=(1,))
    manifest = manifest_of(made)
    assert [shard.mechanism for shard in manifest.shards] == ["age-x25519", "aes-gcm", "aes-gcm", "age-x25519"]
    assert manifest.shards[0].binding.key_id == world.key_id("ks-2")
    assert [shard.binding.key_version for shard in manifest.shards] == ["", "1", "1", ""]
    # All four are needed: two data keys come from the age keys.
    assert with_offline.unseal(made, NAMES[1:], (1, 2, 3, 4))[0] == key
    assert len(with_offline.proofs(made)) == 4
    # And from the offline shards to keystores that have workers.
    back = with_offline.reshard(made, world.target_over((ALL[0], ALL[2]), epoch=3), NAMES[1:], (1, 2, 3, 4))
    assert with_offline.unseal(back, NAMES[:3], (1, 2))[0] == key


def test_an_init_protects_into_offline_keystores_too(with_offline: Resharding) -> None:
    world = with_offline.world
    plan = world.init_plan(world.target_over(ALL, threshold=3, epoch=1))
    authority, opened = world.authority(plan, NAMES[:3]), with_offline.open(plan, "protect")
    assert plan.target is not None
    deks = with_offline.generate(plan.target, authority, with_offline.announce(opened))
    assert len(deks) == 3
    stored = session.protect(opened, Protect(session="ab" * 16, authority=authority, deks=tuple(deks)), now())
    first = with_offline.unseal(stored, NAMES[:3], (1, 2, 3))[0]
    assert first == with_offline.unseal(stored, (NAMES[1], NAMES[3], NAMES[4]), (2, 4, 5))[0]


def test_a_plan_with_another_age_key_than_the_rosters_is_refused(with_offline: Resharding) -> None:
    world, stored = with_offline.world, with_offline.protect("seal", 1, 1)
    target = world.target_over(ALL[1:])
    shards = (target.shards[0].model_copy(update={"key_id": "age:sha256:" + "0" * 64}), *target.shards[1:])
    with pytest.raises(ApprovalInvalid, match="names another key of ks-2 than the roster does"):
        with_offline.reshard(stored, target.model_copy(update={"shards": shards}), indexes=(1,))


def test_a_strongroom_without_the_library_of_offline_keystores_says_what_to_install(
    with_offline: Resharding, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, stored = with_offline.world, with_offline.protect("seal", 1, 1)
    monkeypatch.setitem(sys.modules, "activities.crypto.age_wrap", None)
    with pytest.raises(ConfigurationInvalid) as refused:
        with_offline.reshard(stored, world.target_over(ALL[1:]), indexes=(1,))
    assert "offline" in refused.value.diagnostics


def test_a_data_key_for_an_offline_shard_is_never_taken_from_outside(with_offline: Resharding) -> None:
    # The orchestrator makes one of its own, for which it knows the DEK: the session has drawn another already.
    world, stored = with_offline.world, with_offline.protect("seal", 1, 1)

    def insert(opened: list[DekAnswer], deks: list[DekAnswer]) -> None:
        deks.insert(0, deks[0])

    with pytest.raises(ApprovalInvalid):
        with_offline.reshard(stored, world.target_over(ALL[1:]), indexes=(1,), change=insert)


# --- who must have approved --------------------------------------------------------------------------------


def test_a_reshard_without_the_governance_quorum_is_refused_everywhere(ceremony: Resharding) -> None:
    stored, world = ceremony.protect(), ceremony.world
    target = world.target_over(ALL[:3])
    plan = world.reshard_plan(stored, target)
    for approvers in ((), NAMES[:2], (NAMES[0], NAMES[0], NAMES[1])):
        authority = world.authority(plan, approvers)
        both_refuse(ceremony, stored, plan, authority, ApprovalInvalid, "3 are needed")
        with pytest.raises(ApprovalInvalid, match="3 are needed"):
            ceremony.generate(plan.target or target, authority, ceremony.announce(ceremony.open(plan, "reshard")))
    refusal = world.authority(plan, NAMES[:3])
    rejected = world.approval("dave", plan, decision="reject")
    shown = refusal.model_copy(update={"approvals": (*refusal.approvals, rejected)})
    both_refuse(ceremony, stored, plan, shown, ApprovalInvalid, "dave rejected this plan")


def test_the_quorum_alone_does_not_open_shards_without_their_custodians(tmp_path: Path) -> None:
    ceremony = Resharding(World.make(tmp_path, quorum=2))
    stored, world = ceremony.protect(), ceremony.world
    plan = world.reshard_plan(stored, world.target_over(ALL[:3]))
    authority = world.authority(plan, NAMES[:2])
    both_refuse(ceremony, stored, plan, authority, ApprovalInvalid, "custodians of 2 shards approved, 3 are needed")


def test_custodians_of_enough_shards_are_no_governance_quorum(tmp_path: Path) -> None:
    ceremony = Resharding(World.make(tmp_path))
    stored, world = ceremony.protect(), ceremony.world
    few = (Governance(master_key="*", custodians=("dave", "erin", "alice"), quorum=3),)
    world.write_roster(world.next_version(NAMES[:3], governance=few))
    plan = world.reshard_plan(stored, world.target_over(ALL[:3]), roster=world.chain.digest)
    authority = world.authority(plan, NAMES[:3])
    says = "1 custodians of the governance quorum approved, 3 are needed"
    both_refuse(ceremony, stored, plan, authority, ApprovalInvalid, says)


def test_a_sealed_protection_is_resharded_by_the_governance_quorum_and_by_nobody_else(ceremony: Resharding) -> None:
    stored, world = ceremony.protect("seal", 1, 2), ceremony.world
    plan = world.reshard_plan(stored, world.target_over(ALL[:3]))
    request = world.recipient.sign(world.request(stored, PrivateKey().public_key))
    for authority in (world.authority(plan, NAMES[:2]), world.authority(plan, NAMES[:2], request)):
        both_refuse(ceremony, stored, plan, authority, ApprovalInvalid, "3 are needed")


def test_a_keystore_and_the_session_refuse_a_shard_whose_own_custodian_did_not_approve(
    ceremony: Resharding, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, target = ceremony.protect(), ceremony.world.target_over(ALL[:3])
    with pytest.raises(ApprovalInvalid, match=r"none of the custodians of ks-4 approved \(dave\)"):
        ceremony.reshard(stored, target, NAMES[:3], (1, 2, 4))
    # A keystore worker that has gone bad gives it all the same: custodians of three shards approved, not of this one.
    real = datakey._own_shard

    def lax(desk: Any, manifest: Any, index: int) -> Any:
        return real(desk, manifest, index).model_copy(update={"custodians": NAMES})

    monkeypatch.setattr(datakey, "_own_shard", lax)
    with pytest.raises(ApprovalInvalid, match="none of the custodians of ks-4 approved") as refused:
        ceremony.reshard(stored, target, NAMES[:3], (1, 2, 4))
    assert refused.value.subject == "ks-4"
    with pytest.raises(ApprovalInvalid, match="none of the custodians of ks-4 approved"):
        ceremony.unseal(stored, NAMES[:3], (1, 2, 4))


def test_a_quorum_below_the_manifests_reshards_nothing_whatever_the_roster_asks(tmp_path: Path) -> None:
    ceremony = Resharding(World.make(tmp_path))
    stored, world = ceremony.protect(), ceremony.world
    lax = (Governance(master_key="*", custodians=NAMES, quorum=1),)
    world.write_roster(world.next_version(NAMES[:3], governance=lax))
    target = world.target_over(ALL[:3])
    plan = world.reshard_plan(stored, target, roster=world.chain.digest, governance_quorum=1)
    says = "smaller quorum than the manifest demands"
    both_refuse(ceremony, stored, plan, world.authority(plan, NAMES), ApprovalInvalid, says)
    made = ceremony.reshard(stored, target, roster=world.chain.digest, governance_quorum=3)
    assert manifest_of(made).governance_quorum == 3


# --- plans that say something else -------------------------------------------------------------------------


def source_with(**changes: Any) -> Callable[[Plan], Plan]:
    """A plan that describes what is opened otherwise than the manifest does."""
    return lambda plan: plan.model_copy(update={"source": plan.source.model_copy(update=changes)})  # type: ignore[union-attr]


def target_with(**changes: Any) -> Callable[[Plan], Plan]:
    """A plan with another target."""
    return lambda plan: plan.model_copy(update={"target": plan.target.model_copy(update=changes)})  # type: ignore[union-attr]


def plan_with(**changes: Any) -> Callable[[Plan], Plan]:
    """A plan that is otherwise in itself."""
    return lambda plan: plan.model_copy(update=changes)


OTHER = "sha256:" + "5" * 64
NOBODY = PlanRecipient(name="crypto", fingerprint="SHA256:" + "A" * 43, hpke_key=OTHER)
ABOUT_ANOTHER = "the plan is about another manifest"
BAD_PLANS: dict[str, tuple[Callable[[Plan], Plan], type[MasterKeyError], str]] = {
    "another source manifest": (
        lambda p: target_with(predecessor=OTHER)(source_with(manifest=OTHER)(p)),
        ApprovalInvalid,
        ABOUT_ANOTHER,
    ),
    "another source threshold": (source_with(threshold=2), ApprovalInvalid, ABOUT_ANOTHER),
    "another source count": (source_with(count=4), ApprovalInvalid, ABOUT_ANOTHER),
    "another source mode": (source_with(mode="seal"), ApprovalInvalid, ABOUT_ANOTHER),
    "another source epoch": (
        lambda p: target_with(epoch=3)(source_with(epoch=2)(p)),
        ApprovalInvalid,
        ABOUT_ANOTHER,
    ),
    "another MasterKey": (lambda p: acting(p, "reshard", master_key="eu11"), ApprovalInvalid, ABOUT_ANOTHER),
    "a recipient": (plan_with(recipient=NOBODY), ApprovalInvalid, "protects nothing"),
    "stops": (plan_with(stops=(OTHER,)), ApprovalInvalid, "names stops"),
    "the epoch of the source": (target_with(epoch=1), PlanInvalid, "does not follow epoch 1"),
    "an epoch that leaves no room": (target_with(epoch=1002), PlanInvalid, "does not follow epoch 1"),
    "no predecessor": (target_with(predecessor=None), PlanInvalid, "does not name the one of its purpose"),
    "another predecessor": (target_with(predecessor=OTHER), PlanInvalid, "does not name the one of its purpose"),
    "a predecessor of another purpose": (target_with(purpose="emergency"), PlanInvalid, "of its purpose"),
    "a threshold of one": (target_with(threshold=1), PlanInvalid, "threshold of 2 or more"),
    "a threshold above the number": (target_with(threshold=4), PlanInvalid, "could never be recovered"),
    "another strongroom": (
        plan_with(strongroom="SHA256:" + "A" * 43),
        ApprovalInvalid,
        "a strongroom that is not in the roster",
    ),
    "another roster": (plan_with(roster=OTHER), ApprovalInvalid, "another roster"),
    "a smaller quorum": (plan_with(governance_quorum=2), ApprovalInvalid, "smaller quorum than the roster's 3"),
    "an end in the past": (
        lambda p: plan_with(created=p.created - timedelta(hours=2), expires=p.created - timedelta(hours=1))(p),
        ApprovalInvalid,
        "expired",
    ),
    "an end in years": (
        lambda p: plan_with(expires=p.created + timedelta(days=400))(p),
        ApprovalInvalid,
        "longer than",
    ),
    "the action of an init": (lambda p: acting(p, "init"), ApprovalInvalid, "releases nothing|only the creation"),
    "the action of a release": (lambda p: acting(p, "unseal"), ApprovalInvalid, "(releases|protects) nothing"),
    "the action of a retirement": (lambda p: acting(p, "retire"), ApprovalInvalid, "(releases|protects) nothing"),
    "no source": (plan_with(source=None), ApprovalInvalid, "only the creation"),
    "no target": (plan_with(target=None), ApprovalInvalid, "protects nothing"),
}


@pytest.mark.parametrize(("change", "error", "says"), BAD_PLANS.values(), ids=BAD_PLANS)
def test_a_plan_that_says_something_else_opens_nothing_even_with_every_approval(
    ceremony: Resharding, change: Callable[[Plan], Plan], error: type[MasterKeyError], says: str
) -> None:
    stored, world = ceremony.protect(), ceremony.world
    plan = change(world.reshard_plan(stored, world.target_over(ALL[:3])))
    authority = world.authority(plan, NAMES)
    # The session itself is opened for the plan, whatever it says, where the strongroom would.
    good = world.reshard_plan(stored, world.target_over(ALL[:3]))
    opened = ceremony.open(good, "reshard")
    forged = opened.announcement.model_copy(update={"plan": plan.digest})
    announced = world.strongroom.sign(forged)
    with pytest.raises(error, match=says):
        ceremony.unwrap(stored, 1, authority, announced)
    work = Reshard(session="ab" * 16, authority=authority, protection=stored, opened=(), deks=())
    with pytest.raises(error, match=says):
        session.reshard(Session(opened.key, opened.identity, opened.chain, plan, forged), work, now())


def test_the_highest_epoch_that_is_allowed_is(ceremony: Resharding) -> None:
    stored = ceremony.protect()
    made = ceremony.reshard(stored, ceremony.world.target_over(ALL[:3], epoch=1001))
    assert manifest_of(made).epoch == 1001


def test_a_new_threshold_below_the_rosters_minimum_is_refused(tmp_path: Path) -> None:
    ceremony = Resharding(World.make(tmp_path, minimum_threshold=3))
    stored, world = ceremony.protect(), ceremony.world
    plan = world.reshard_plan(stored, world.target_over(ALL[:3], threshold=2))
    authority = world.authority(plan, NAMES[:3])
    both_refuse(ceremony, stored, plan, authority, PlanInvalid, "below the roster's minimum of 3")
    announced = ceremony.announce(ceremony.open(plan, "reshard"))
    with pytest.raises(PlanInvalid, match="below the roster's minimum of 3"):
        ceremony.generate(world.target_over(ALL[:3]), authority, announced)


def test_a_keystore_makes_no_data_key_for_an_epoch_that_it_would_refuse(ceremony: Resharding) -> None:
    stored, world = ceremony.protect(), ceremony.world
    made = ceremony.reshard(stored, world.target_over(ALL[:3], epoch=5))
    plan = world.reshard_plan(stored, world.target_over(ALL[:3], epoch=4))
    ceremony.note("ks-1", made)
    assert plan.target is not None
    authority, announced = world.authority(plan, NAMES[:3]), ceremony.announce(ceremony.open(plan, "reshard"))
    with pytest.raises(ManifestInvalid, match="epoch 4 is older than what ks-1 serves"):
        ceremony.generate(plan.target, authority, announced)


# --- manifests and rows ------------------------------------------------------------------------------------


def test_what_a_revoked_strongroom_signed_is_not_opened(tmp_path: Path) -> None:
    ceremony = Resharding(World.make(tmp_path))
    stored, world = ceremony.protect(), ceremony.world
    revoked = world.strongroom
    rooms = (world.roster.strongrooms[0].model_copy(update={"public_key": world.stranger.public_key}),)
    version = world.next_version(NAMES[:3], strongrooms=rooms, revoked=(revoked.fingerprint,))
    world.write_roster(version)
    plan = world.reshard_plan(
        stored, world.target_over(ALL[:3]), roster=world.chain.digest, strongroom=world.stranger.fingerprint
    )
    authority = world.authority(plan, NAMES)
    (world.folder / "strongroom").write_bytes((world.folder / "stranger").read_bytes())
    says = "not signed by a strongroom of the roster"
    both_refuse(ceremony, stored, plan, authority, ManifestInvalid, says)


def test_what_no_strongroom_signed_is_not_opened(ceremony: Resharding) -> None:
    stored, world = ceremony.protect(), ceremony.world
    forged = stored.model_copy(update={"manifest": world.stranger.sign(manifest_of(stored))})
    plan = world.reshard_plan(forged, world.target_over(ALL[:3]))
    both_refuse(ceremony, forged, plan, world.authority(plan, NAMES), ManifestInvalid, "not signed by a strongroom")


def test_another_manifest_of_the_same_strongroom_is_not_the_plans(ceremony: Resharding) -> None:
    stored, world = ceremony.protect(), ceremony.world
    other = ceremony.protect(threshold=4)
    plan = world.reshard_plan(stored, world.target_over(ALL[:3]))
    both_refuse(ceremony, other, plan, world.authority(plan, NAMES), ApprovalInvalid, ABOUT_ANOTHER)


@pytest.mark.parametrize("field", ["ciphertext", "nonce"])
def test_an_altered_row_names_its_keystore(ceremony: Resharding, field: str) -> None:
    stored = ceremony.protect()
    rows = list(stored.shards)
    old = decode64(getattr(rows[1], field))
    rows[1] = rows[1].model_copy(update={field: encode64(bytes([old[0] ^ 1]) + old[1:])})
    with pytest.raises(CiphertextInvalid, match="altered or swapped") as refused:
        ceremony.reshard(
            stored, ceremony.world.target_over(ALL[:3]), rows=stored.model_copy(update={"shards": tuple(rows)})
        )
    assert refused.value.subject == "ks-2"


def test_a_swapped_or_missing_row_is_refused(ceremony: Resharding) -> None:
    stored, target = ceremony.protect(), ceremony.world.target_over(ALL[:3])
    first, second, *others = stored.shards
    swapped = (
        first.model_copy(update={"nonce": second.nonce, "ciphertext": second.ciphertext}),
        second.model_copy(update={"nonce": first.nonce, "ciphertext": first.ciphertext}),
        *others,
    )
    with pytest.raises(CiphertextInvalid, match="altered or swapped"):
        ceremony.reshard(stored, target, rows=stored.model_copy(update={"shards": swapped}))
    with pytest.raises(ApprovalInvalid, match="belongs to no shard"):
        ceremony.reshard(stored, target, rows=stored.model_copy(update={"shards": stored.shards[1:]}))


def test_what_recombines_to_another_masterkey_is_not_protected_anew(ceremony: Resharding) -> None:
    # Even the strongroom's own signature does not turn one key into another: its check value is compared first.
    changed = resigned(ceremony, ceremony.protect(), kcv="00" * 16)
    with pytest.raises(CiphertextInvalid, match="key check value"):
        ceremony.reshard(changed, ceremony.world.target_over(ALL[:3]))


def test_a_wrong_recombination_is_noticed(ceremony: Resharding, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = ceremony.protect()
    real = shamir.combine

    def flipped(shares: Sequence[bytes]) -> bytes:
        key = real(shares)
        return bytes([key[0] ^ 1]) + key[1:]

    monkeypatch.setattr(shamir, "combine", flipped)
    with pytest.raises(CiphertextInvalid, match="key check value"):
        ceremony.reshard(stored, ceremony.world.target_over(ALL[:3]))


# --- data keys ---------------------------------------------------------------------------------------------


def test_fewer_data_keys_than_the_threshold_open_nothing(ceremony: Resharding) -> None:
    stored, target = ceremony.protect(), ceremony.world.target_over(ALL[:3])
    with pytest.raises(ApprovalInvalid, match="2 shards for a threshold of 3"):
        ceremony.reshard(stored, target, indexes=(1, 2))
    with pytest.raises(ApprovalInvalid, match="came twice"):
        ceremony.reshard(stored, target, change=lambda opened, deks: opened.__setitem__(2, opened[0]))


def test_a_data_key_of_the_source_is_none_for_the_target_and_the_other_way_round(ceremony: Resharding) -> None:
    stored, target = ceremony.protect(), ceremony.world.target_over(ALL, threshold=3)

    def old_for_new(opened: list[DekAnswer], deks: list[DekAnswer]) -> None:
        deks[0] = opened[0]

    def new_for_old(opened: list[DekAnswer], deks: list[DekAnswer]) -> None:
        opened[0] = deks[0]

    for change in (old_for_new, new_for_old):
        with pytest.raises(ApprovalInvalid, match="the DEK from ks-1 was made for something else"):
            ceremony.reshard(stored, target, change=change)


def test_data_keys_in_another_order_too_few_or_too_many_protect_nothing(ceremony: Resharding) -> None:
    stored, target = ceremony.protect(), ceremony.world.target_over(ALL[:3])
    changes: dict[str, Change] = {
        "is not signed by its worker": lambda opened, deks: deks.reverse(),
        "no DEK came for shard 1": lambda opened, deks: deks.clear(),
        "4 DEKs are more than 3 shards need": lambda opened, deks: deks.append(deks[0]),
    }
    for says, change in changes.items():
        with pytest.raises(ApprovalInvalid, match=says):
            ceremony.reshard(stored, target, change=change)


@pytest.mark.parametrize("which", ["opened", "deks"])
def test_a_data_key_of_another_session_or_authority_is_refused(ceremony: Resharding, which: str) -> None:
    stored, world = ceremony.protect(), ceremony.world
    target = world.target_over(ALL[:3])
    plan = world.reshard_plan(stored, target)
    assert plan.target is not None
    sessions = [ceremony.open(plan, "reshard", attempt) for attempt in (1, 2)]

    def asked(opened: Session, authority: Authority) -> dict[str, tuple[DekAnswer, ...]]:
        announced = ceremony.announce(opened)
        return {
            "opened": tuple(ceremony.unwrap(stored, index, authority, announced) for index in (1, 2, 3)),
            "deks": tuple(ceremony.generate(target, authority, announced)),
        }

    three, four = world.authority(plan, NAMES[:3]), world.authority(plan, NAMES[:4])
    good = asked(sessions[1], three)
    for other in (asked(sessions[0], three), asked(sessions[1], four)):
        work = Reshard(session="ab" * 16, authority=three, protection=stored, **{**good, which: other[which]})
        with pytest.raises(ApprovalInvalid, match="made for something else"):
            session.reshard(sessions[1], work, now())
    work = Reshard(session="ab" * 16, authority=three, protection=stored, **good)
    assert manifest_of(session.reshard(sessions[1], work, now())).epoch == 2


@pytest.mark.parametrize("which", ["opened", "deks"])
@pytest.mark.parametrize("signer", ["stranger", "another keystore", "the strongroom", "a custodian"])
def test_a_data_key_that_its_worker_did_not_sign_is_refused(ceremony: Resharding, which: str, signer: str) -> None:
    stored, world = ceremony.protect(), ceremony.world
    identity = {
        "stranger": world.stranger,
        "another keystore": world.keystores["ks-1"],
        "the strongroom": world.strongroom,
        "a custodian": world.custodians["bob"],
    }[signer]

    def forge(opened: list[DekAnswer], deks: list[DekAnswer]) -> None:
        answers = opened if which == "opened" else deks
        response, _ = open_signed(DekResponse, answers[1].response)
        answers[1] = answers[1].model_copy(update={"response": identity.sign(response)})

    with pytest.raises(ApprovalInvalid, match="the masterkey-dek document of ks-2 is not signed by its worker"):
        ceremony.reshard(stored, world.target_over(ALL[:3]), change=forge)


# --- a session does one thing ------------------------------------------------------------------------------


def test_a_session_to_reshard_releases_nothing_and_the_other_way_round(ceremony: Resharding) -> None:
    stored, world = ceremony.protect(), ceremony.world
    request = world.request(stored, PrivateKey().public_key)
    release_plan = world.unseal_plan(stored, request)
    reshard_plan = world.reshard_plan(stored, world.target_over(ALL[:3]))
    for_release = world.authority(release_plan, NAMES[:3], world.recipient.sign(request))
    for_reshard = world.authority(reshard_plan, NAMES[:3])
    fields: dict[str, Any] = {"session": "ab" * 16, "protection": stored, "deks": ()}
    releasing = Release(authority=for_release, **fields)
    resharding = Reshard(authority=for_reshard, opened=(), **fields)
    # The session's purpose.
    with pytest.raises(ApprovalInvalid, match="opened for another plan or purpose"):
        session.release(ceremony.open(release_plan, "reshard"), releasing, now())
    for purpose in ("release", "protect"):
        with pytest.raises(ApprovalInvalid, match="opened for another plan or purpose"):
            session.reshard(ceremony.open(reshard_plan, purpose), resharding, now())
    # The plan's action.
    with pytest.raises(ApprovalInvalid, match="releases nothing to a recipient"):
        session.release(ceremony.open(reshard_plan, "release"), Release(authority=for_reshard, **fields), now())
    with pytest.raises(ApprovalInvalid, match="protects nothing"):
        session.reshard(
            ceremony.open(release_plan, "reshard"), Reshard(authority=for_release, opened=(), **fields), now()
        )
    # And a new MasterKey is drawn for neither.
    work = Protect(session="ab" * 16, authority=for_reshard, deks=())
    with pytest.raises(ApprovalInvalid, match="drawn only at its creation"):
        session.protect(ceremony.open(reshard_plan, "protect"), work, now())
    with pytest.raises(ApprovalInvalid, match="opened for another plan or purpose"):
        session.protect(ceremony.open(reshard_plan, "reshard"), work, now())
    init = world.init_plan(world.target())
    work_of_init = Reshard(authority=world.authority(init, NAMES[:3]), opened=(), **fields)
    with pytest.raises(ApprovalInvalid, match="opens nothing to protect it anew"):
        session.reshard(ceremony.open(init, "reshard"), work_of_init, now())


@pytest.mark.parametrize("purpose", ["protect", "release", "reshard"])
def test_a_keystore_gives_data_keys_only_to_a_session_of_the_purpose_that_the_plan_has(
    ceremony: Resharding, purpose: str
) -> None:
    stored, world = ceremony.protect(), ceremony.world
    request = world.request(stored, PrivateKey().public_key)
    plans = {
        "release": (world.unseal_plan(stored, request), world.recipient.sign(request)),
        "reshard": (world.reshard_plan(stored, world.target_over(ALL[:3])), None),
    }
    for wanted, (plan, signed) in plans.items():
        announced = ceremony.announce(ceremony.open(plan, purpose))
        authority = world.authority(plan, NAMES[:3], signed)
        if purpose == wanted:
            assert ceremony.unwrap(stored, 1, authority, announced)
            continue
        with pytest.raises(ApprovalInvalid, match="opened for something else"):
            ceremony.unwrap(stored, 1, authority, announced)
        if plan.target is not None:
            with pytest.raises(ApprovalInvalid, match="opened for something else"):
                ceremony.generate(plan.target, authority, announced)


def test_a_session_takes_no_data_key_that_was_given_for_another_purpose(ceremony: Resharding) -> None:
    # All else is right: the same session, plan and shard; the keystore worker even signs the other purpose.
    stored, world = ceremony.protect(), ceremony.world

    def relabel(opened: list[DekAnswer], deks: list[DekAnswer]) -> None:
        response, _ = open_signed(DekResponse, opened[0].response)
        changed = response.model_copy(update={"purpose": "release"})
        opened[0] = opened[0].model_copy(update={"response": world.keystores["ks-1"].sign(changed)})

    with pytest.raises(ApprovalInvalid, match="made for something else"):
        ceremony.reshard(stored, world.target_over(ALL[:3]), change=relabel)


def test_a_data_key_is_encrypted_for_its_purpose(ceremony: Resharding) -> None:
    # The purpose is in the HPKE info too: a DEK that was encrypted for a release does not open in a reshard.
    stored, world = ceremony.protect(), ceremony.world
    plan = world.reshard_plan(stored, world.target_over(ALL[:3]))
    opened, authority = ceremony.open(plan, "reshard"), world.authority(plan, NAMES[:3])
    announced = ceremony.announce(opened)
    given = [ceremony.unwrap(stored, index, authority, announced) for index in (1, 2, 3)]
    response, _ = open_signed(DekResponse, given[0].response)
    announcement, _ = open_signed(SessionAnnouncement, announced)
    for purpose in ("release", "protect"):
        info = dek_info(announcement.digest, response.context, purpose)
        ciphertext = encrypt_to(announcement.hpke_public_key, b"d" * 32, info)
        signed = world.keystores["ks-1"].sign(response.model_copy(update={"ciphertext_hash": digest(ciphertext)}))
        other = given[0].model_copy(update={"response": signed, "ciphertext": encode64(ciphertext)})
        work = Reshard(
            session="ab" * 16,
            authority=authority,
            protection=stored,
            opened=(other, *given[1:]),
            deks=tuple(ceremony.generate(plan.target, authority, announced)),  # type: ignore[arg-type]
        )
        with pytest.raises(CiphertextInvalid):
            session.reshard(opened, work, now())


def test_approvals_of_a_reshard_are_none_of_a_recovery_or_of_another_target(ceremony: Resharding) -> None:
    stored, world = ceremony.protect(), ceremony.world
    approved = world.reshard_plan(stored, world.target_over(ALL[:3]))
    signed = world.authority(approved, NAMES).approvals
    others = {
        "a recovery": acting(approved, "recover"),
        "another keystore": world.reshard_plan(stored, world.target_over(ALL[1:4])),
        "another mode": world.reshard_plan(stored, world.target_over(ALL[:3], "seal", 1)),
        "another threshold": world.reshard_plan(stored, world.target_over(ALL[:3], threshold=3)),
        "another epoch": world.reshard_plan(stored, world.target_over(ALL[:3], epoch=3)),
        "another ceremony": approved.model_copy(update={"ceremony": "eu10.reshard.ffffffffffff"}),
    }
    for plan in others.values():
        shown = Authority(plan=plan.canonical().decode(), approvals=signed)
        both_refuse(ceremony, stored, plan, shown, ApprovalInvalid, "signed another plan")
        assert plan.target is not None
        with pytest.raises(ApprovalInvalid, match="signed another plan"):
            ceremony.generate(plan.target, shown, ceremony.announce(ceremony.open(plan, "reshard")))
