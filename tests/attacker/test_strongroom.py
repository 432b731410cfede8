"""The strongroom asked past the workflow: forged, replayed and swapped DEKs, and sessions used otherwise."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from activities.crypto.hpke import PrivateKey, encrypt_to
from activities.identity import Identity, generate_identity
from tests.attacker.flows import EVERYBODY, QUORUM, Ceremonies
from tests.attacker.orchestrator import Hostile, Unforeseen
from tests.attacker.people import People, manifest_of
from tests.attacker.test_bad_plans import good_target
from tests.attacker.test_release import Scene, scene_of
from tests.conftest import Installation
from tests.world import now
from workflows.contracts.messages.protection import DekAnswer, StoredProtection
from workflows.contracts.messages.strongroom import Delivered, SessionOpened
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.canonical import Signed, decode64, digest, encode64
from workflows.contracts.trust.errors import AnswerInvalid, ApprovalInvalid, CiphertextInvalid, SessionLost
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.session import DekResponse, Delivery, SessionAnnouncement, dek_info, delivery_info


@pytest.fixture(scope="module")
def mallory(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """The attacker's own key."""
    return generate_identity(Path(tmp_path_factory.mktemp("mallory")) / "key")


async def deks_for(
    attacker: Hostile, scene: Scene, opened: SessionOpened, indexes: tuple[int, ...] = (1, 3, 4)
) -> list[DekAnswer]:
    """Real DEKs, encrypted to a real session."""
    authority = scene.authority()
    return list(
        await asyncio.gather(
            *(attacker.unwrap(scene.stored, index, authority, opened.announcement) for index in indexes)
        )
    )


def own_dek(answer: DekAnswer, opened: SessionOpened, signer: Identity) -> DekAnswer:
    """A DEK of the attacker's choice, encrypted to the session as the keystore worker would."""
    session = SessionAnnouncement.parse(opened.announcement.document.encode())
    response = DekResponse.parse(answer.response.document.encode())
    info = dek_info(session.digest, response.context, session.purpose)
    ciphertext = encrypt_to(session.hpke_public_key, b"d" * 32, info)
    said = response.model_copy(update={"ciphertext_hash": digest(ciphertext)})
    return answer.model_copy(update={"response": signer.sign(said), "ciphertext": encode64(ciphertext)})


async def test_a_dek_from_someone_who_is_not_the_keystore_is_refused(
    attacker: Hostile, people: People, sss: StoredProtection, mallory: Identity
) -> None:
    scene = scene_of(people, sss)

    async def present(change: Callable[[list[DekAnswer], SessionOpened], None]) -> ApprovalInvalid:
        opened = await attacker.open(scene.plan, "release")
        deks = await deks_for(attacker, scene, opened)
        change(deks, opened)
        with pytest.raises(ApprovalInvalid) as refused:
            await attacker.release(opened, scene.authority(), sss, deks)
        return refused.value

    def by(signer: Identity) -> Callable[[list[DekAnswer], SessionOpened], None]:
        return lambda deks, opened: deks.__setitem__(1, own_dek(deks[1], opened, signer))

    def under_the_real_signature(deks: list[DekAnswer], opened: SessionOpened) -> None:
        deks[1] = own_dek(deks[1], opened, mallory).model_copy(update={"response": deks[1].response})

    for forge in (by(mallory), by(people.recipient), by(people.custodians["alice"]), under_the_real_signature):
        error = await present(forge)
        assert (type(error), error.subject) == (AnswerInvalid, "bao-3")


async def test_deks_that_were_made_for_something_else_are_refused(
    attacker: Hostile, people: People, sss: StoredProtection
) -> None:
    scene = scene_of(people, sss)
    first, second = await attacker.open(scene.plan, "release"), await attacker.open(scene.plan, "release", 2)
    of_first = await deks_for(attacker, scene, first)
    # Of another session, though for the same plan; each is asked once, so a fresh one for each attempt.
    with pytest.raises(ApprovalInvalid, match="made for something else"):
        await attacker.release(second, scene.authority(), sss, of_first)
    # Under other approvals, as good as these.
    more = people.authority(scene.plan, EVERYBODY, scene.signed.request)
    with pytest.raises(ApprovalInvalid, match="made for something else"):
        await attacker.release(first, more, sss, of_first)
    third = await attacker.open(scene.plan, "release", 3)
    deks = await deks_for(attacker, scene, third)
    swapped = [
        deks[0].model_copy(update={"ciphertext": deks[1].ciphertext}),
        deks[1].model_copy(update={"ciphertext": deks[0].ciphertext}),
        deks[2],
    ]
    with pytest.raises(ApprovalInvalid, match="made for something else"):
        await attacker.release(third, scene.authority(), sss, swapped)


@pytest.mark.parametrize("how", ["twice the same", "too few", "none", "of another shard"])
async def test_fewer_real_shards_than_the_threshold_release_nothing(
    attacker: Hostile, people: People, sss: StoredProtection, how: str
) -> None:
    scene = scene_of(people, sss)
    opened = await attacker.open(scene.plan, "release")
    one, two, three = await deks_for(attacker, scene, opened)
    shown = {"twice the same": [one, two, two], "too few": [one, two], "none": [], "of another shard": [one, two]}[how]
    stored = sss
    if how == "of another shard":
        # The third row is missing, and the DEK of the second is shown for it.
        stored = sss.model_copy(update={"shards": sss.shards[:2]})
        shown = [one, three]
    with pytest.raises(ApprovalInvalid, match=r"came twice|for a threshold of 3|belongs to no shard"):
        await attacker.release(opened, scene.authority(), stored, shown)


@pytest.mark.parametrize("field", ["ciphertext", "nonce"])
@pytest.mark.parametrize("how", ["altered", "swapped", "of another MasterKey", "empty"])
async def test_a_stored_shard_that_is_not_the_manifests_names_its_keystore(
    attacker: Hostile, people: People, sss: StoredProtection, seal: StoredProtection, field: str, how: str
) -> None:
    scene = scene_of(people, sss)
    opened = await attacker.open(scene.plan, "release")
    deks = await deks_for(attacker, scene, opened)
    rows, old = list(sss.shards), decode64(getattr(sss.shards[2], field))
    rows[2] = rows[2].model_copy(
        update={
            field: {
                "altered": encode64(bytes([old[0] ^ 1]) + old[1:]),
                "swapped": getattr(rows[0], field),
                "of another MasterKey": getattr(seal.shards[0], field),
                "empty": "",
            }[how]
        }
    )
    with pytest.raises(CiphertextInvalid, match="altered or swapped") as refused:
        await attacker.release(opened, scene.authority(), sss.model_copy(update={"shards": tuple(rows)}), deks)
    assert refused.value.subject == "bao-3"


async def test_a_session_answers_once(
    attacker: Hostile, people: People, ceremonies: Ceremonies, sss: StoredProtection
) -> None:
    key = PrivateKey()
    request = people.wish(sss, key.public_key)
    plan = people.release_plan(sss, request)
    scene = Scene(people, sss, request, plan, QUORUM)
    authority = scene.authority()
    opened = await attacker.open(plan, "release")
    deks = await deks_for(attacker, scene, opened)
    delivered = await attacker.release(opened, authority, sss, deks)
    assert len(ceremonies.receive(delivered, request, key, sss)) == 32
    with pytest.raises(SessionLost, match="used before"):
        await attacker.release(opened, authority, sss, deks)
    with pytest.raises(SessionLost, match="used before"):
        await attacker.release(opened.model_copy(update={"session": "00" * 16}), authority, sss, deks)
    # A refusal uses it up too: nobody tries again and again with what a session was once sent.
    opened = await attacker.open(plan, "release")
    with pytest.raises(ApprovalInvalid):
        await attacker.release(opened, authority, sss, ())
    with pytest.raises(SessionLost, match="used before"):
        await attacker.release(opened, authority, sss, await deks_for(attacker, scene, opened))


async def test_a_session_does_only_what_it_was_opened_for(
    attacker: Hostile, people: People, sss: StoredProtection, seal: StoredProtection
) -> None:
    scene, other = scene_of(people, sss), scene_of(people, seal)
    opened = await attacker.open(other.plan, "release")
    with pytest.raises(ApprovalInvalid, match="opened for another plan"):
        await attacker.release(opened, scene.authority(), sss, ())
    opened = await attacker.open(scene.plan, "protect")
    with pytest.raises(ApprovalInvalid, match="opened for another plan"):
        await attacker.release(opened, scene.authority(), sss, ())
    opened = await attacker.open(scene.plan, "release")
    with pytest.raises(ApprovalInvalid, match="protects nothing"):
        await attacker.protect(opened, scene.authority(), ())


async def test_a_masterkey_is_not_protected_with_deks_of_the_attacker(
    attacker: Hostile, people: People, sss: StoredProtection, installation: Installation, mallory: Identity
) -> None:
    name = installation.fresh_name()
    plan = people.init_plan(good_target(sss), master_key=name, ceremony=new_ceremony_id(name, "init"))
    authority = people.authority(plan, QUORUM)

    async def generated(opened: SessionOpened) -> list[DekAnswer]:
        calls = [attacker.generate(f"bao-{n}", n, authority, opened.announcement) for n in range(1, 6)]
        return list(await asyncio.gather(*calls))

    opened = await attacker.open(plan, "protect")
    deks = await generated(opened)
    with pytest.raises(ApprovalInvalid, match="bao-5 is not signed by its worker"):
        await attacker.protect(opened, authority, [*deks[:4], own_dek(deks[4], opened, mallory)])
    opened = await attacker.open(plan, "protect", 2)
    with pytest.raises(ApprovalInvalid, match="made for something else"):
        await attacker.protect(opened, authority, deks)
    opened = await attacker.open(plan, "protect", 3)
    with pytest.raises(ApprovalInvalid, match="no DEK came for shard 5"):
        await attacker.protect(opened, authority, (await generated(opened))[:4])
    opened = await attacker.open(plan, "protect", 4)
    deks = await generated(opened)
    with pytest.raises(ApprovalInvalid):
        await attacker.protect(opened, authority, [deks[1], deks[0], *deks[2:]])


async def test_a_delivery_made_up_by_the_orchestrator_is_refused_by_the_recipient(
    people: People, ceremonies: Ceremonies, sss: StoredProtection, mallory: Identity
) -> None:
    key = PrivateKey()
    request, kcv = people.wish(sss, key.public_key), manifest_of(sss).kcv
    ciphertext = encrypt_to(key.public_key, b"o" * 32, delivery_info(request.digest, sss.manifest.digest, kcv))
    made_up = Delivery(
        master_key=request.master_key,
        ceremony=request.ceremony,
        request=request.digest,
        manifest=sss.manifest.digest,
        kcv=kcv,
        recipient_key=request.hpke_key,
        strongroom=people.strongroom.fingerprint,
        ciphertext_hash=digest(ciphertext),
        time=now(),
    )
    # A real delivery, of this MasterKey, to an earlier request.
    _, earlier = await ceremonies.unseal(sss, QUORUM)
    signatures = [
        mallory.sign(made_up),
        mallory.sign(made_up.model_copy(update={"strongroom": mallory.fingerprint})),
        people.recipient.sign(made_up),
        Signed(document=made_up.canonical().decode(), signature=earlier.delivered.delivery.signature),
        earlier.delivered.delivery,
    ]
    for signed in signatures:
        with pytest.raises(ApprovalInvalid):
            ceremonies.receive(Delivered(delivery=signed, ciphertext=encode64(ciphertext)), request, key, sss)
    with pytest.raises(ApprovalInvalid, match="answers another request"):
        ceremonies.receive(earlier.delivered, request, key, sss)


async def test_a_malformed_key_of_the_recipient_gets_no_delivery(
    attacker: Hostile, people: People, seal: StoredProtection
) -> None:
    for public_key in ("", "AAAA", encode64(os.urandom(1216)[:1215]), encode64(bytes(1216))):
        request = people.wish(seal, public_key)
        scene = Scene(people, seal, request, people.release_plan(seal, request), ())
        opened = await attacker.open(scene.plan, "release")
        deks = await deks_for(attacker, scene, opened, (1,))
        with pytest.raises(ApprovalInvalid, match="HPKE public key is malformed"):
            await attacker.release(opened, scene.authority(), seal, deks)


async def test_garbage_is_refused_and_the_strongroom_goes_on(
    attacker: Hostile, people: People, ceremonies: Ceremonies, sss: StoredProtection, seal: StoredProtection
) -> None:
    scene = scene_of(people, sss)
    garbage: list[Any] = [None, "x", [], {}, {"plan": 7}, {"purpose": "steal", "plan": "{}", "attempt": 1}]
    for request in garbage:
        with pytest.raises((Unforeseen, ApprovalInvalid)):
            await attacker.ask("open_session", "masterkey-strongroom-vault", request)
    for text in ("", "{}", "[" * 50_000, "\x00", "é" * 1000, '{"type":"masterkey-plan"}'):
        with pytest.raises(ApprovalInvalid, match="not a valid masterkey-plan document"):
            await attacker.ask(
                "open_session", "masterkey-strongroom-vault", {"purpose": "release", "plan": text, "attempt": 1}
            )
    opened = await attacker.open(scene.plan, "release")
    for plan in ("", "{}", "[" * 50_000, '{"a":1e999}'):
        authority = Authority(plan=plan, approvals=scene.authority().approvals)
        with pytest.raises(ApprovalInvalid):
            await attacker.unwrap(sss, 1, authority, opened.announcement)
    with pytest.raises(ApprovalInvalid):
        await attacker.release(opened, Authority(plan="x" * 1_500_000), sss, ())
    assert len((await ceremonies.unseal(seal))[0]) == 32
