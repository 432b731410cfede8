"""What a keystore worker remembers by itself: rolled-back manifests, and a second key by the same name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from activities.crypto.hpke import PrivateKey
from tests.attacker.flows import QUORUM, Ceremonies
from tests.attacker.orchestrator import Hostile
from tests.attacker.people import People, manifest_of
from tests.attacker.test_bad_plans import good_target
from tests.attacker.test_release import scene_of
from tests.conftest import Installation
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.errors import ManifestInvalid


@contextmanager
def newer_epoch(installation: Installation, stored: StoredProtection) -> Iterator[None]:
    """The keystores of a protection have seen a newer one, as after a reshard; put back afterwards."""
    name = manifest_of(stored).master_key
    files = [installation.folder / "state" / row.keystore / "state.json" for row in stored.shards]
    before = {file: file.read_text() for file in files}
    for file, text in before.items():
        state = json.loads(text)
        assert state["master_keys"][name]["epochs"] == {"primary": 1}
        state["master_keys"][name]["epochs"]["primary"] = 2
        file.write_text(json.dumps(state))
    try:
        yield
    finally:
        for file, text in before.items():
            file.write_text(text)


def remembered(installation: Installation, keystore: str, name: str) -> dict[str, Any]:
    """What a keystore worker remembers of a MasterKey."""
    text = (installation.folder / "state" / keystore / "state.json").read_text()
    found: dict[str, Any] = json.loads(text)["master_keys"][name]
    return found


async def test_a_manifest_of_an_older_epoch_releases_nothing(
    attacker: Hostile, people: People, ceremonies: Ceremonies, seal: StoredProtection, installation: Installation
) -> None:
    scene = scene_of(people, seal)
    opened, proofs = await attacker.open(scene.plan, "release"), await attacker.proofs(seal)
    with newer_epoch(installation, seal):
        with pytest.raises(ManifestInvalid, match="epoch 1; this keystore serves 2 and newer"):
            await attacker.unwrap(seal, 1, scene.authority(), opened.announcement)
        with pytest.raises(ManifestInvalid, match="epoch 1; this keystore serves 2 and newer"):
            await attacker.check(seal, 1)
        with pytest.raises(ManifestInvalid, match="epoch 1; this keystore serves 2 and newer"):
            await attacker.note("bao-1", seal.manifest, proofs)
        request = people.wish(seal, PrivateKey().public_key)
        ended = await ceremonies.ended(request.ceremony, await ceremonies.start_unseal(request))
    assert type(ended.error) is ManifestInvalid
    assert ended.types.count("keystore-failed") == 2
    assert '"error":"ManifestInvalid"' in ended.bodies("ceremony-failed")[0]
    assert len((await ceremonies.unseal(seal))[0]) == 32


async def test_two_keys_made_from_one_init_cannot_both_be_served(
    attacker: Hostile, people: People, sss: StoredProtection, installation: Installation
) -> None:
    # The attacker runs an approved init twice, before any keystore has been told of either.
    name = installation.fresh_name()
    plan = people.init_plan(good_target(sss), master_key=name, ceremony=new_ceremony_id(name, "init"))
    authority = people.authority(plan, QUORUM)
    first = await attacker.create(plan, authority)
    second = await attacker.create(plan, authority, attempt=2)
    assert manifest_of(first).kcv != manifest_of(second).kcv
    of_first, of_second = await attacker.proofs(first), await attacker.proofs(second)
    await attacker.note("bao-1", first.manifest, of_first)
    with pytest.raises(ManifestInvalid, match="another MasterKey than the"):
        await attacker.note("bao-1", second.manifest, of_second)
    with pytest.raises(ManifestInvalid, match="another MasterKey than the"):
        await attacker.check(second, 1)
    scene = scene_of(people, second)
    opened = await attacker.open(scene.plan, "release")
    with pytest.raises(ManifestInvalid, match="another MasterKey than the"):
        await attacker.unwrap(second, 1, scene.authority(), opened.announcement)
    # And no third: the approvals of the init are spent here.
    opened = await attacker.open(plan, "protect", 3)
    with pytest.raises(ManifestInvalid, match="was committed here before"):
        await attacker.generate("bao-1", 1, authority, opened.announcement)
    # What the first one made is still good.
    assert '"matches":true' in (await attacker.check(first, 1)).document


async def test_a_release_tells_the_keystore_which_masterkey_it_is(
    attacker: Hostile, people: People, sss: StoredProtection, installation: Installation
) -> None:
    # `note_commit` withheld: the keystore learns it when it first unwraps.
    name = installation.fresh_name()
    plan = people.init_plan(good_target(sss), master_key=name, ceremony=new_ceremony_id(name, "init"))
    authority = people.authority(plan, QUORUM)
    made = await attacker.create(plan, authority)
    scene = scene_of(people, made)
    opened = await attacker.open(scene.plan, "release")
    await attacker.unwrap(made, 1, scene.authority(), opened.announcement)
    again = await attacker.open(plan, "protect", 2)
    with pytest.raises(ManifestInvalid, match="was committed here before"):
        await attacker.generate("bao-1", 1, authority, again.announcement)
    assert remembered(installation, "bao-1", name)["kcv"] == manifest_of(made).kcv


async def test_a_keystore_takes_no_word_for_a_commit_without_every_proof(
    attacker: Hostile, people: People, sss: StoredProtection, installation: Installation
) -> None:
    name = installation.fresh_name()
    plan = people.init_plan(good_target(sss), master_key=name, ceremony=new_ceremony_id(name, "init"))
    made = await attacker.create(plan, people.authority(plan, QUORUM))
    proofs, others = await attacker.proofs(made), await attacker.proofs(sss)
    for shown in ((), proofs[1:], proofs[:4] + proofs[:1], proofs[:4] + others[4:], others):
        with pytest.raises(ManifestInvalid, match="was not proven by"):
            await attacker.note("bao-1", made.manifest, shown)
    assert name not in (installation.folder / "state" / "bao-1" / "state.json").read_text()
    # Also a worker that holds no shard of it remembers what is in force: it may have held one before.
    assert (await attacker.note("bao-1", made.manifest, proofs)).epochs == {"primary": 1}
