"""The session: what it protects comes back, and nothing else than what was authorised does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from activities.crypto import envelope, shamir
from activities.crypto.hpke import PrivateKey, encrypt_to
from activities.keystores import datakey
from activities.keystores import memory as orders
from activities.keystores.kinds.base import KeyRef, WrappedKey
from activities.recipient import open_delivery, pinned_manifest
from activities.strongroom import session
from activities.strongroom.datakeys import Session
from activities.strongroom.session import SessionTerms
from tests.world import KEYSTORES, NAMES, UNSEAL, MemoryKeystore, World, now
from workflows.contracts.messages.keystore import CheckDataKey, GenerateDataKey, NoteCommit, UnwrapDataKey
from workflows.contracts.messages.protection import DekAnswer, StoredProtection
from workflows.contracts.messages.strongroom import Delivered, Protect, Release
from workflows.contracts.trust.canonical import Signed, decode64, digest, encode64
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import (
    AnswerInvalid,
    ApprovalInvalid,
    CiphertextInvalid,
    ManifestInvalid,
    PlanInvalid,
)
from workflows.contracts.trust.keystore import StateStatement, check_session
from workflows.contracts.trust.plan import RecipientRequest
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.roster import Strongroom
from workflows.contracts.trust.session import DekResponse, Delivery, delivery_info
from workflows.contracts.trust.signatures import open_signed


class Ceremony:
    """Runs the steps of init and unseal by calling the roles' own functions."""

    def __init__(self, world: World) -> None:
        self.world = world

    def open(self, plan: Any, purpose: str, attempt: int = 1) -> Session:
        terms = SessionTerms(
            identity=str(self.world.folder / "strongroom"),
            roster_file=str(self.world.roster_file),
            roster_genesis=self.world.roster.digest,
            roster_minimum=1,
            purpose=purpose,
            plan=plan.canonical().decode(),
            attempt=attempt,
            session="ab" * 16,
        )
        return session.open_session(terms, now())

    def announce(self, opened: Session) -> Signed:
        return opened.identity.sign(opened.announcement)

    def protect(
        self,
        mode: str = "sss",
        threshold: int = 3,
        count: int = 5,
        approvers: tuple[str, ...] = NAMES[:3],
        change: Callable[[list[DekAnswer]], None] = lambda deks: None,
    ) -> StoredProtection:
        plan = self.world.init_plan(self.world.target(mode, threshold, count))
        authority = self.world.authority(plan, approvers)
        opened = self.open(plan, "protect")
        deks = [
            datakey.generate(
                self.world.desk(KEYSTORES[index - 1]),
                GenerateDataKey(
                    keystore=KEYSTORES[index - 1], index=index, authority=authority, session=self.announce(opened)
                ),
                now(),
            )
            for index in range(1, count + 1)
        ]
        change(deks)
        return session.protect(opened, Protect(session="ab" * 16, authority=authority, deks=tuple(deks)), now())

    def unseal(
        self,
        stored: StoredProtection,
        approvers: tuple[str, ...] = NAMES[:3],
        indexes: tuple[int, ...] = (1, 2, 3),
        *,
        rows: StoredProtection | None = None,
        change: Callable[[list[DekAnswer]], None] = lambda deks: None,
        at_session: Callable[[Authority], Authority] = lambda authority: authority,
    ) -> tuple[bytes, Delivered]:
        key = PrivateKey()
        request = self.world.request(stored, key.public_key)
        signed = self.world.recipient.sign(request)
        plan = self.world.unseal_plan(stored, request)
        authority = self.world.authority(plan, approvers, signed)
        opened = self.open(plan, "release")
        deks = [self.unwrap(stored, index, authority, self.announce(opened)) for index in indexes]
        change(deks)
        work = Release(session="ab" * 16, authority=at_session(authority), protection=rows or stored, deks=tuple(deks))
        delivered = session.release(opened, work, now())
        return self.receive(delivered, request, key, stored), delivered

    def unwrap(self, stored: StoredProtection, index: int, authority: Authority, announced: Signed) -> DekAnswer:
        keystore = stored.shards[index - 1].keystore
        return datakey.unwrap(
            self.world.desk(keystore),
            UnwrapDataKey(
                keystore=keystore,
                index=index,
                authority=authority,
                session=announced,
                manifest=stored.manifest,
                wrapped_dek=stored.shards[index - 1].wrapped_dek,
            ),
            now(),
        )

    def proofs(self, stored: StoredProtection) -> tuple[Signed, ...]:
        """Every keystore's proof that it can give back its data key."""
        return tuple(
            datakey.check(
                self.world.desk(row.keystore),
                CheckDataKey(
                    keystore=row.keystore,
                    index=row.index,
                    manifest=stored.manifest,
                    wrapped_dek=row.wrapped_dek,
                    nonce="cd" * 16,
                ),
                now(),
            )
            for row in stored.shards
        )

    def note(self, keystore: str, stored: StoredProtection, proofs: tuple[Signed, ...] | None = None) -> StateStatement:
        """Tell a keystore's worker what is in force, with all proofs unless others are given."""
        shown = self.proofs(stored) if proofs is None else proofs
        request = NoteCommit(keystore=keystore, manifest=stored.manifest, proofs=shown)
        signed = orders.note_commit(self.world.desk(keystore), request, now())
        statement, signer = open_signed(StateStatement, signed)
        assert signer == self.world.keystores[keystore].fingerprint
        return statement

    def receive(
        self, delivered: Delivered, request: RecipientRequest, key: PrivateKey, stored: StoredProtection
    ) -> bytes:
        kcv = manifest_of(stored).kcv
        return open_delivery(delivered, request, self.world.chain, key, kcv, now())


def manifest_of(stored: StoredProtection) -> Manifest:
    return Manifest.parse(stored.manifest.document.encode())


@pytest.fixture
def ceremony(tmp_path: Path) -> Ceremony:
    return Ceremony(World.make(tmp_path))


def test_an_sss_masterkey_comes_back_from_any_threshold_of_shards(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    first, _ = ceremony.unseal(stored, NAMES[:3], (1, 2, 3))
    second, _ = ceremony.unseal(stored, NAMES[2:], (5, 3, 4))
    assert first == second
    assert len(first) == 32
    assert envelope.key_check_value(first, "eu10") == manifest_of(stored).kcv


def test_a_sealed_masterkey_comes_back_from_either_keystore(ceremony: Ceremony) -> None:
    stored = ceremony.protect("seal", 1, 2)
    first, _ = ceremony.unseal(stored, (), (1,))
    second, _ = ceremony.unseal(stored, (), (2,))
    assert first == second


def test_two_inits_make_two_masterkeys(ceremony: Ceremony) -> None:
    assert manifest_of(ceremony.protect()).kcv != manifest_of(ceremony.protect()).kcv


def test_a_stored_shard_recombines_with_the_tools_of_vault(ceremony: Ceremony) -> None:
    # The plaintext of a shard is y bytes and the x byte: nothing of ours is inside.
    stored = ceremony.protect()
    plain = []
    for row, shard in zip(stored.shards[:3], manifest_of(stored).shards[:3], strict=True):
        wrapped = decode64(row.wrapped_dek)
        keystore = ceremony.world.memory[row.keystore]
        dek = keystore.unwrap(wrapped, shard.binding.fields(), KeyRef(row.key_id, row.key_version))
        plain.append(envelope.decrypt_shard(decode64(row.nonce), decode64(row.ciphertext), dek, shard.binding))
    assert [(len(share), share[-1]) for share in plain] == [(33, 1), (33, 2), (33, 3)]
    assert shamir.combine(plain) == ceremony.unseal(stored)[0]


def test_the_manifest_says_who_approved_and_what_was_planned(ceremony: Ceremony) -> None:
    manifest = manifest_of(ceremony.protect())
    assert len(manifest.authority) == 3
    assert manifest.strongroom == ceremony.world.strongroom.fingerprint
    assert [shard.custodians for shard in manifest.shards] == [(name,) for name in NAMES]


def test_init_without_the_quorum_is_refused_by_the_keystore(ceremony: Ceremony) -> None:
    with pytest.raises(ApprovalInvalid, match="3 are needed"):
        ceremony.protect(approvers=NAMES[:2])


def test_release_without_the_quorum_is_refused_by_the_session_too(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    with pytest.raises(ApprovalInvalid, match="3 are needed"):
        ceremony.unseal(
            stored,
            at_session=lambda authority: authority.model_copy(update={"approvals": authority.approvals[:2]}),
        )


def test_release_without_custodians_of_enough_shards_is_refused(tmp_path: Path) -> None:
    ceremony = Ceremony(World.make(tmp_path, quorum=1))
    stored = ceremony.protect(approvers=NAMES[:1])
    with pytest.raises(ApprovalInvalid, match="custodians of 2 shards approved, 3 are needed"):
        ceremony.unseal(stored, NAMES[:2])


def test_a_keystore_refuses_unless_its_own_custodian_approved(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    with pytest.raises(ApprovalInvalid, match=r"none of the custodians of ks-4 approved \(dave\)"):
        ceremony.unseal(stored, NAMES[:3], (1, 2, 4))


def test_a_dek_encrypted_by_someone_else_is_refused(ceremony: Ceremony) -> None:
    # Everything is right but the signature: it is the orchestrator's own key.
    stored = ceremony.protect()

    def forge(deks: list[DekAnswer]) -> None:
        response, _ = open_signed(DekResponse, deks[1].response)
        deks[1] = deks[1].model_copy(update={"response": ceremony.world.stranger.sign(response)})

    with pytest.raises(ApprovalInvalid, match="not signed by its worker") as refused:
        ceremony.unseal(stored, change=forge)
    assert refused.value.subject == "ks-2"


@pytest.mark.parametrize(
    "field", ["purpose", "protection", "index", "keystore", "key_id", "context", "session", "authority"]
)
def test_a_dek_that_was_made_for_something_else_is_refused(ceremony: Ceremony, field: str) -> None:
    stored = ceremony.protect()
    values: dict[str, Any] = {
        "purpose": "protect",
        "protection": "other",
        "index": 3,
        "keystore": "ks-3",
        "key_id": "other",
        "context": "sha256:" + "0" * 64,
        "session": "sha256:" + "0" * 64,
        "authority": "sha256:" + "0" * 64,
    }

    def change(deks: list[DekAnswer]) -> None:
        response, _ = open_signed(DekResponse, deks[1].response)
        changed = response.model_copy(update={field: values[field]})
        signed = ceremony.world.keystores["ks-2"].sign(changed)
        deks[1] = deks[1].model_copy(update={"response": signed})

    indexes = (1, 2) if field == "index" else (1, 2, 3)
    with pytest.raises(ApprovalInvalid):
        ceremony.unseal(stored, indexes=indexes, change=change)


def test_a_swapped_ciphertext_or_wrapped_dek_is_refused(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    for field in ("ciphertext", "wrapped_dek"):

        def swap(deks: list[DekAnswer], field: str = field) -> None:
            deks[0] = deks[0].model_copy(update={field: getattr(deks[1], field)})

        with pytest.raises(ApprovalInvalid, match="made for something else"):
            ceremony.unseal(stored, change=swap)


def test_an_old_dek_is_refused(ceremony: Ceremony) -> None:
    stored = ceremony.protect()

    def age(deks: list[DekAnswer]) -> None:
        response, _ = open_signed(DekResponse, deks[0].response)
        old = response.model_copy(update={"time": now() - timedelta(minutes=10)})
        deks[0] = deks[0].model_copy(update={"response": ceremony.world.keystores["ks-1"].sign(old)})

    with pytest.raises(ApprovalInvalid, match="longer than"):
        ceremony.unseal(stored, change=age)


def test_the_same_dek_twice_is_not_two_shards(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    with pytest.raises(ApprovalInvalid, match="came twice"):
        ceremony.unseal(stored, change=lambda deks: deks.append(deks[0]))


def test_fewer_shards_than_the_threshold_are_refused(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    with pytest.raises(ApprovalInvalid, match="2 shards for a threshold of 3"):
        ceremony.unseal(stored, indexes=(1, 2))


def test_an_altered_shard_row_names_its_keystore(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    ciphertext = bytearray(decode64(stored.shards[1].ciphertext))
    ciphertext[0] ^= 1
    rows = list(stored.shards)
    rows[1] = rows[1].model_copy(update={"ciphertext": encode64(bytes(ciphertext))})
    with pytest.raises(CiphertextInvalid, match="altered or swapped") as refused:
        ceremony.unseal(stored, rows=stored.model_copy(update={"shards": tuple(rows)}))
    assert refused.value.subject == "ks-2"


def test_a_missing_shard_row_is_refused(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    with pytest.raises(ApprovalInvalid, match="belongs to no shard"):
        ceremony.unseal(stored, rows=stored.model_copy(update={"shards": stored.shards[1:]}))


def resigned(ceremony: Ceremony, stored: StoredProtection, **changes: Any) -> StoredProtection:
    """The protection with a changed manifest, signed by the strongroom itself."""
    manifest = manifest_of(stored).model_copy(update=changes)
    return stored.model_copy(update={"manifest": ceremony.world.strongroom.sign(manifest)})


def test_a_shard_that_is_not_the_committed_one_is_told_apart(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    shards = list(manifest_of(stored).shards)
    shards[0] = shards[0].model_copy(update={"commitment": "00" * 32})
    changed = resigned(ceremony, stored, shards=tuple(shards))
    with pytest.raises(CiphertextInvalid, match="committed to"):
        ceremony.unseal(changed)


def test_a_dek_with_another_check_value_is_told_apart(ceremony: Ceremony, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = ceremony.protect()
    shards = list(manifest_of(stored).shards)
    shards[0] = shards[0].model_copy(update={"check_value": "00" * 16})
    changed = resigned(ceremony, stored, shards=tuple(shards))
    with pytest.raises(CiphertextInvalid, match="another DEK than it wrapped"):
        ceremony.unseal(changed)
    # The session does not rely on the keystore worker's comparison.
    monkeypatch.setattr("activities.keystores.datakey.equal", lambda *_: True)
    with pytest.raises(CiphertextInvalid, match="the DEK of shard 1 is another one"):
        ceremony.unseal(changed)


def test_a_recombination_with_another_check_value_is_refused(ceremony: Ceremony) -> None:
    changed = resigned(ceremony, ceremony.protect(), kcv="00" * 16)
    with pytest.raises(CiphertextInvalid, match="key check value"):
        ceremony.unseal(changed)


def test_a_manifest_that_no_strongroom_signed_is_refused(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    forged = stored.model_copy(update={"manifest": ceremony.world.stranger.sign(manifest_of(stored))})
    with pytest.raises(ManifestInvalid, match="not signed by a strongroom"):
        ceremony.unseal(forged)


def test_the_session_verifies_the_manifest_for_itself(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    forged = stored.model_copy(update={"manifest": ceremony.world.stranger.sign(manifest_of(stored))})
    with pytest.raises(ManifestInvalid, match="not signed by a strongroom"):
        ceremony.unseal(stored, rows=forged)


def test_a_session_does_only_what_it_was_opened_for(ceremony: Ceremony) -> None:
    world = ceremony.world
    plan, other = world.init_plan(world.target()), world.init_plan(world.target(threshold=4))
    work = Protect(session="ab" * 16, authority=world.authority(other, NAMES[:3]), deks=())
    with pytest.raises(ApprovalInvalid, match="opened for another plan"):
        session.protect(ceremony.open(plan, "protect"), work, now())
    work = Protect(session="ab" * 16, authority=world.authority(plan, NAMES[:3]), deks=())
    with pytest.raises(ApprovalInvalid, match="opened for another plan"):
        session.protect(ceremony.open(plan, "release"), work, now())
    with pytest.raises(ApprovalInvalid, match="no DEK came for shard 1") as refused:
        session.protect(ceremony.open(plan, "protect"), work, now())
    assert refused.value.subject == "ks-1"


def test_a_dek_too_many_is_refused(ceremony: Ceremony) -> None:
    with pytest.raises(ApprovalInvalid, match="6 DEKs are more than 5 shards need"):
        ceremony.protect(change=lambda deks: deks.append(deks[4]))


def test_a_session_is_not_opened_for_another_strongroom(ceremony: Ceremony) -> None:
    plan = ceremony.world.init_plan(ceremony.world.target(), strongroom=ceremony.world.stranger.fingerprint)
    with pytest.raises(ApprovalInvalid, match="names another strongroom"):
        ceremony.open(plan, "protect")


def test_protecting_proves_itself_before_it_answers(ceremony: Ceremony, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_split(secret: bytes, threshold: int, xs: Any) -> list[bytes]:
        shares = real_split(secret, threshold, xs)
        return [*shares[:-1], bytes(32) + shares[-1][-1:]]

    real_split = shamir.split
    monkeypatch.setattr(shamir, "split", broken_split)
    with pytest.raises(CiphertextInvalid, match="do not recombine"):
        ceremony.protect()


def test_protecting_opens_what_it_has_encrypted(ceremony: Ceremony, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envelope, "decrypt_shard", lambda *_: b"something else")
    with pytest.raises(CiphertextInvalid, match="does not open to what was put in"):
        ceremony.protect()


class OtherKey(MemoryKeystore):
    """A keystore that wraps with another key than it describes."""

    def wrap(self, dek: bytes, context: Any) -> WrappedKey:
        return WrappedKey(super().wrap(dek, context).wrapped, KeyRef("memory:other", "1"))


def test_a_keystore_that_uses_another_key_than_planned_is_refused(ceremony: Ceremony) -> None:
    world = ceremony.world
    plan = world.init_plan(world.target())
    request = GenerateDataKey(
        keystore="ks-1",
        index=1,
        authority=world.authority(plan, NAMES[:3]),
        session=ceremony.announce(ceremony.open(plan, "protect")),
    )
    with pytest.raises(Exception, match="another key than the plan names"):
        datakey.generate(world.desk("ks-1", keystore=OtherKey("ks-1")), request, now())


def test_a_session_key_that_the_strongroom_did_not_sign_gets_no_dek(ceremony: Ceremony) -> None:
    stored, world, key = ceremony.protect(), ceremony.world, PrivateKey()
    request = world.request(stored, key.public_key)
    plan = world.unseal_plan(stored, request)
    authority = world.authority(plan, NAMES[:3], world.recipient.sign(request))
    opened = ceremony.open(plan, "release")
    for signer in (world.stranger, world.keystores["ks-2"]):
        with pytest.raises(ApprovalInvalid, match="not signed by the strongroom"):
            ceremony.unwrap(stored, 1, authority, signer.sign(opened.announcement))


def test_a_session_opened_for_something_else_gets_no_dek(ceremony: Ceremony) -> None:
    stored, world, key = ceremony.protect(), ceremony.world, PrivateKey()
    request = world.request(stored, key.public_key)
    plan = world.unseal_plan(stored, request)
    authority = world.authority(plan, NAMES[:3], world.recipient.sign(request))
    announcement = ceremony.open(plan, "release").announcement
    for change in (
        {"purpose": "protect"},
        {"master_key": "eu11"},
        {"ceremony": "eu10.unseal.ffffffffffff"},
        {"plan": "sha256:" + "0" * 64},
        {"source": None},
        {"roster": "sha256:" + "0" * 64},
    ):
        with pytest.raises(ApprovalInvalid, match="opened for something else"):
            ceremony.unwrap(stored, 1, authority, world.strongroom.sign(announcement.model_copy(update=change)))
    late = announcement.model_copy(
        update={"issued": now() - timedelta(minutes=9), "expires": now() - timedelta(minutes=5)}
    )
    with pytest.raises(ApprovalInvalid, match="expired"):
        ceremony.unwrap(stored, 1, authority, world.strongroom.sign(late))


def test_check_data_key_proves_and_releases_nothing(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    request = CheckDataKey(
        keystore="ks-1",
        index=1,
        manifest=stored.manifest,
        wrapped_dek=stored.shards[0].wrapped_dek,
        nonce="cd" * 16,
    )
    answer = datakey.check(ceremony.world.desk("ks-1"), request, now())
    assert set(answer.model_dump()) == {"document", "signature"}
    swapped = request.model_copy(update={"wrapped_dek": stored.shards[1].wrapped_dek})
    with pytest.raises(CiphertextInvalid, match="altered or swapped"):
        datakey.check(ceremony.world.desk("ks-1"), swapped, now())
    with pytest.raises(ApprovalInvalid, match="does not lie in ks-2"):
        datakey.check(ceremony.world.desk("ks-2"), request, now())
    with pytest.raises(ManifestInvalid, match="no such shard"):
        datakey.check(ceremony.world.desk("ks-1"), request.model_copy(update={"index": 6}), now())


def test_a_keystore_that_gives_back_another_dek_is_told_apart(ceremony: Ceremony) -> None:
    class Lying(MemoryKeystore):
        def unwrap(self, wrapped: bytes, context: Any, key: KeyRef) -> bytes:
            return b"x" * 32

    stored = ceremony.protect()
    request = CheckDataKey(
        keystore="ks-1",
        index=1,
        manifest=stored.manifest,
        wrapped_dek=stored.shards[0].wrapped_dek,
        nonce="cd" * 16,
    )
    with pytest.raises(CiphertextInvalid, match="another DEK than it wrapped"):
        datakey.check(ceremony.world.desk("ks-1", keystore=Lying("ks-1")), request, now())


def as_epoch(ceremony: Ceremony, stored: StoredProtection, epoch: int, **changes: Any) -> StoredProtection:
    """The protection, as the strongroom would describe it in another epoch."""
    shards = tuple(
        shard.model_copy(update={"binding": shard.binding.model_copy(update={"epoch": epoch})})
        for shard in manifest_of(stored).shards
    )
    return resigned(ceremony, stored, **{"epoch": epoch, "shards": shards, **changes})


def test_a_keystore_remembers_the_epoch_and_the_key_that_were_committed(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    proofs = ceremony.proofs(stored)
    assert ceremony.note("ks-1", stored, proofs).master_keys[0].epochs == {"primary": 1}
    # Another MasterKey under the same name: the approvals of the init, used twice by a hostile orchestrator.
    with pytest.raises(ManifestInvalid, match="was committed here before"):
        ceremony.protect()
    desk = ceremony.world.desk("ks-1")
    desk.state.note_commit(manifest_of(as_epoch(ceremony, stored, 2)))
    with pytest.raises(ManifestInvalid, match="epoch 1; this keystore serves 2 and newer"):
        ceremony.unseal(stored)
    with pytest.raises(ManifestInvalid, match="epoch 1; this keystore serves 2 and newer"):
        ceremony.note("ks-1", stored, proofs)
    with pytest.raises(ManifestInvalid, match="another MasterKey"):
        desk.state.note_commit(manifest_of(as_epoch(ceremony, stored, 2, kcv="00" * 16)))


def test_a_manifest_that_is_none_is_not_taken_for_the_one_in_force(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    manifest = manifest_of(stored)
    fewer = resigned(ceremony, stored, count=2, threshold=2, shards=manifest.shards[:2])
    with pytest.raises(ManifestInvalid):
        ceremony.note("ks-1", fewer, ceremony.proofs(stored))


def test_a_keystore_serves_only_the_modes_it_is_configured_for(ceremony: Ceremony) -> None:
    stored, world, key = ceremony.protect("seal", 1, 2), ceremony.world, PrivateKey()
    request = world.request(stored, key.public_key)
    plan = world.unseal_plan(stored, request)
    authority = world.authority(plan, (), world.recipient.sign(request))
    call = UnwrapDataKey(
        keystore="ks-1",
        index=1,
        authority=authority,
        session=ceremony.announce(ceremony.open(plan, "release")),
        manifest=stored.manifest,
        wrapped_dek=stored.shards[0].wrapped_dek,
    )
    with pytest.raises(ApprovalInvalid, match="does not serve seal"):
        datakey.unwrap(world.desk("ks-1", modes=("sss",)), call, now())


def test_a_delivery_made_up_by_the_orchestrator_is_refused_by_the_recipient(ceremony: Ceremony) -> None:
    from workflows.contracts.trust.session import Delivery, delivery_info

    stored, world, key = ceremony.protect(), ceremony.world, PrivateKey()
    request = world.request(stored, key.public_key)
    kcv = manifest_of(stored).kcv
    ciphertext = encrypt_to(key.public_key, b"o" * 32, delivery_info(request.digest, stored.manifest.digest, kcv))
    made_up = Delivery(
        master_key="eu10",
        ceremony=UNSEAL,
        request=request.digest,
        manifest=stored.manifest.digest,
        kcv=kcv,
        recipient_key=request.hpke_key,
        strongroom=world.strongroom.fingerprint,
        ciphertext_hash=digest(ciphertext),
        time=now(),
    )
    for signer in (world.stranger, world.keystores["ks-1"]):
        delivered = Delivered(delivery=signer.sign(made_up), ciphertext=encode64(ciphertext))
        with pytest.raises(ApprovalInvalid, match="not signed by the strongroom"):
            ceremony.receive(delivered, request, key, stored)
    # Even a strongroom gone bad cannot pass off another key: the KCV is pinned.
    delivered = Delivered(delivery=world.strongroom.sign(made_up), ciphertext=encode64(ciphertext))
    with pytest.raises(CiphertextInvalid, match="check value is pinned"):
        ceremony.receive(delivered, request, key, stored)


def second_strongroom(ceremony: Ceremony) -> RosterChain:
    """The roster with the stranger as another strongroom: as good as the first, but not the one that was asked."""
    chain, stranger = ceremony.world.chain, ceremony.world.stranger
    second = Strongroom(name="second", public_key=stranger.public_key)
    current = chain.current.model_copy(update={"strongrooms": (*chain.current.strongrooms, second)})
    return replace(chain, versions=(*chain.versions[:-1], current))


def test_another_strongroom_of_the_roster_than_the_planned_one_gets_no_data_key(ceremony: Ceremony) -> None:
    stored, world = ceremony.protect(), ceremony.world
    plan = world.unseal_plan(stored, world.request(stored, PrivateKey().public_key))
    announcement = ceremony.open(plan, "release").announcement
    chain = second_strongroom(ceremony)
    assert check_session(chain, world.strongroom.sign(announcement), plan, "release", now()) == announcement
    other = announcement.model_copy(update={"strongroom": world.stranger.fingerprint})
    with pytest.raises(AnswerInvalid, match="strongroom that the plan names"):
        check_session(chain, world.stranger.sign(other), plan, "release", now())


def test_a_recipient_takes_a_delivery_of_the_strongroom_it_asked_and_of_its_own_time_only(ceremony: Ceremony) -> None:
    stored, world, key = ceremony.protect(), ceremony.world, PrivateKey()
    request, kcv = world.request(stored, key.public_key), manifest_of(stored).kcv
    ciphertext = encrypt_to(key.public_key, b"o" * 32, delivery_info(request.digest, stored.manifest.digest, kcv))
    delivery = Delivery(
        master_key="eu10",
        ceremony=UNSEAL,
        request=request.digest,
        manifest=stored.manifest.digest,
        kcv=kcv,
        recipient_key=request.hpke_key,
        strongroom=world.stranger.fingerprint,
        ciphertext_hash=digest(ciphertext),
        time=now(),
    )
    other = Delivered(delivery=world.stranger.sign(delivery), ciphertext=encode64(ciphertext))
    with pytest.raises(AnswerInvalid, match="strongroom that was asked"):
        open_delivery(other, request, second_strongroom(ceremony), key, kcv, now())
    for time in (request.issued - timedelta(hours=1), now() - timedelta(days=31)):
        own = delivery.model_copy(update={"strongroom": world.strongroom.fingerprint, "time": time})
        late = Delivered(delivery=world.strongroom.sign(own), ciphertext=encode64(ciphertext))
        with pytest.raises(AnswerInvalid, match="older than the request"):
            ceremony.receive(late, request, key, stored)


def test_a_recipient_asks_only_for_the_masterkey_whose_check_value_is_pinned(ceremony: Ceremony) -> None:
    stored, chain = ceremony.protect(), ceremony.world.chain
    kcv = manifest_of(stored).kcv
    assert pinned_manifest(stored.manifest, chain, "eu10", kcv) == manifest_of(stored)
    for name, pinned in (("eu11", kcv), ("eu10", "0" * 32)):
        with pytest.raises(ManifestInvalid, match="is pinned"):
            pinned_manifest(stored.manifest, chain, name, pinned)


def test_a_delivery_for_another_request_is_refused(ceremony: Ceremony) -> None:
    stored = ceremony.protect()
    _, delivered = ceremony.unseal(stored)
    key = PrivateKey()
    with pytest.raises(ApprovalInvalid, match="answers another request"):
        ceremony.receive(delivered, ceremony.world.request(stored, key.public_key), key, stored)


def test_impossible_topologies_are_refused_by_the_keystore_itself(ceremony: Ceremony) -> None:
    world = ceremony.world
    target = world.target()
    twice = target.model_copy(
        update={
            "shards": (
                target.shards[0],
                target.shards[1].model_copy(update={"key_id": "memory:ks-1"}),
                *target.shards[2:],
            )
        }
    )
    for bad in (twice, target.model_copy(update={"threshold": 6}), target.model_copy(update={"threshold": 1})):
        plan = world.init_plan(bad)
        request = GenerateDataKey(
            keystore="ks-1",
            index=1,
            authority=world.authority(plan, NAMES[:3]),
            session=ceremony.announce(ceremony.open(plan, "protect")),
        )
        with pytest.raises(PlanInvalid):
            datakey.generate(world.desk("ks-1"), request, now())
