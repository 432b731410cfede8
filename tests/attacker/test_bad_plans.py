"""Plans that can never be good: refused by the workflow, and by keystores and session even when a quorum signed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.attacker.flows import EVERYBODY, QUORUM, Ceremonies
from tests.attacker.orchestrator import Hostile, altered_ledger
from tests.attacker.people import People, manifest_of
from tests.conftest import Installation
from tests.world import NAMES, now
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.canonical import Signed, canonical_json, digest
from workflows.contracts.trust.errors import ApprovalInvalid, ManifestInvalid, MasterKeyError, PlanInvalid
from workflows.contracts.trust.plan import Approval, Plan, Target, TargetShard
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.service_errors import KeyNotFound, NameTaken

BAO = [f"bao-{n}" for n in range(1, 6)]


@dataclass(frozen=True)
class Bad:
    """A topology that is refused: as it is asked for, and as a hostile orchestrator writes it into a plan."""

    mode: str
    threshold: int
    shards: list[Any]
    says: str
    strongroom: str = ""


BAD_REQUESTS = {
    "threshold above the number of shards": Bad("sss", 4, BAO[:3], "more than the 3 shards"),
    "threshold of one in sss": Bad("sss", 1, BAO[:3], "threshold of 2 or more"),
    "threshold of nothing": Bad("sss", 0, BAO[:3], "must be 1 to 255"),
    "threshold of two in seal": Bad("seal", 2, BAO[:3], "the threshold is 1"),
    "more than 255 shards": Bad("sss", 3, [BAO[n % 5] for n in range(256)], "must be 1 to 255"),
    "no shards": Bad("sss", 2, [], "must be 1 to 255"),
    "the same keystore twice": Bad("sss", 2, ["bao-1", "bao-1", "bao-2"], "keystore bao-1 stands behind"),
    "overlapping custody": Bad(
        "sss", 2, [("bao-1", ("alice", "bob")), ("bao-2", ("bob",)), "bao-3"], "custodian bob stands behind"
    ),
    "a custodian twice on one shard": Bad("sss", 2, [("bao-1", ("alice", "alice")), "bao-2"], "custodian alice"),
    "an unknown keystore": Bad("sss", 2, ["bao-1", "bao-9"], "keystore bao-9 is not in the roster"),
    "an unknown custodian": Bad("sss", 2, ["bao-1", ("bao-2", ("mallory",))], "custodian mallory is not in the roster"),
    "an unknown strongroom": Bad("sss", 2, BAO[:3], "no strongroom 'attic'", strongroom="attic"),
}


@pytest.mark.parametrize("bad", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
async def test_an_impossible_init_ends_before_anybody_is_asked(
    ceremonies: Ceremonies, installation: Installation, bad: Bad
) -> None:
    ceremony, handle = await ceremonies.start_init(
        installation.fresh_name(), bad.mode, bad.threshold, bad.shards, strongroom=bad.strongroom
    )
    ended = await ceremonies.ended(ceremony, handle)
    assert type(ended.error) is PlanInvalid
    assert bad.says in ended.error.message
    assert [event.type for event in ended.events] == ["ceremony-opened", "ceremony-failed", "ceremony-closed"]
    assert '"error":"PlanInvalid"' in ended.bodies("ceremony-failed")[0]


async def test_a_name_that_is_taken_is_refused(ceremonies: Ceremonies, sss: StoredProtection) -> None:
    ceremony, handle = await ceremonies.start_init(manifest_of(sss).master_key, "sss", 2, BAO[:3])
    ended = await ceremonies.ended(ceremony, handle)
    assert type(ended.error) is NameTaken
    assert '"error":"NameTaken"' in ended.bodies("ceremony-failed")[0]


async def test_a_taken_name_that_was_erased_from_the_ledger_is_refused_by_the_keystores(
    ceremonies: Ceremonies, people: People, installation: Installation
) -> None:
    name = installation.fresh_name()
    stored = await ceremonies.init(name, "seal", 1, ["bao-1", "bao-2"])
    protection = manifest_of(stored).protection
    with altered_ledger(
        installation.folder / "masterkey.db",
        ("DELETE FROM master_keys WHERE name = ?", (name,)),
        ("DELETE FROM shards WHERE protection = ?", (protection,)),
        ("DELETE FROM protections WHERE protection = ?", (protection,)),
    ):
        # A whole quorum is deceived into making another MasterKey of this name.
        ceremony, handle = await ceremonies.start_init(name, "seal", 1, ["bao-1", "bao-2"])
        await ceremonies.approve(ceremony, handle, QUORUM)
        ended = await ceremonies.ended(ceremony, handle)
    assert type(ended.error) is ManifestInvalid
    assert "was committed here before" in ended.error.message
    assert '"error":"ManifestInvalid"' in ended.bodies("ceremony-failed")[0]
    assert len((await ceremonies.unseal(stored))[0]) == 32


# --- the same past the workflow, with a quorum that signed what it should not have ------------------------


def good_target(sss: StoredProtection, mode: str = "sss", threshold: int = 3) -> Target:
    """A topology over the five keystores and their real keys."""
    shards = tuple(
        TargetShard(
            index=shard.binding.index,
            keystore=shard.binding.keystore,
            key_id=shard.binding.key_id,
            custodians=shard.custodians if mode == "sss" else (),
        )
        for shard in manifest_of(sss).shards
    )
    return Target(
        purpose="primary", mode="sss" if mode == "sss" else "seal", epoch=1, threshold=threshold, count=5, shards=shards
    )


def changed_shard(index: int, **changes: Any) -> Callable[[Target], Target]:
    """A target with one shard changed."""

    def change(target: Target) -> Target:
        shards = list(target.shards)
        shards[index - 1] = shards[index - 1].model_copy(update=changes)
        return target.model_copy(update={"shards": tuple(shards)})

    return change


def first_key_of(target: Target) -> str:
    """The id of the first shard's key."""
    return target.shards[0].key_id


BAD_TARGETS: dict[str, Callable[[Target], Target]] = {
    "threshold above the number of shards": lambda t: t.model_copy(update={"threshold": 6}),
    "threshold of one in sss": lambda t: t.model_copy(update={"threshold": 1}),
    "fewer shards than N": lambda t: t.model_copy(update={"shards": t.shards[:4]}),
    "shards out of order": lambda t: t.model_copy(update={"shards": t.shards[::-1]}),
    "the same keystore twice": changed_shard(2, keystore="bao-1"),
    "the same KMS key twice": lambda t: changed_shard(2, key_id=first_key_of(t))(t),
    "overlapping custody": changed_shard(2, custodians=("bob", "alice")),
    "no custody": changed_shard(2, custodians=()),
    "an unknown custodian": changed_shard(2, custodians=("mallory",)),
    "an unknown keystore": changed_shard(2, keystore="bao-9"),
    "custody in seal": lambda t: t.model_copy(update={"mode": "seal", "threshold": 1}),
}


def approved(people: People, installation: Installation, target: Target, **changes: Any) -> tuple[Plan, Authority]:
    """An init plan that everybody approved."""
    name = installation.fresh_name()
    plan = people.init_plan(target, **{"master_key": name, "ceremony": new_ceremony_id(name, "init"), **changes})
    return plan, people.authority(plan, QUORUM)


async def both_refuse(
    attacker: Hostile, plan: Plan, authority: Authority, error: type[MasterKeyError], says: str
) -> None:
    """Keystore worker and session, asked directly, refuse a plan with this very error."""
    for answer in await attacker.refusals(plan, authority):
        assert answer.failure_type == error.__name__, answer
        assert re.search(says, str(answer))


@pytest.mark.parametrize("change", BAD_TARGETS.values(), ids=BAD_TARGETS)
async def test_a_bad_plan_that_a_quorum_signed_is_refused_by_keystore_and_session(
    attacker: Hostile,
    people: People,
    sss: StoredProtection,
    installation: Installation,
    change: Callable[[Target], Target],
) -> None:
    plan, authority = approved(people, installation, change(good_target(sss)))
    await both_refuse(attacker, plan, authority, PlanInvalid, ".")


async def test_a_key_that_is_not_the_keystores_own_is_refused_by_that_keystore(
    attacker: Hostile, people: People, sss: StoredProtection, installation: Installation
) -> None:
    # The orchestrator hides that two keystores use one key by giving one of them another id.
    target = changed_shard(1, key_id="http://127.0.0.1:1/transit/keys/pretended")(good_target(sss))
    plan, authority = approved(people, installation, target)
    opened = await attacker.open(plan, "protect")
    with pytest.raises(KeyNotFound, match="another key than the plan names"):
        await attacker.generate("bao-1", 1, authority, opened.announcement)


async def test_a_plan_for_more_than_255_shards_is_no_plan_at_all(
    attacker: Hostile, people: People, sss: StoredProtection, installation: Installation
) -> None:
    plan, _ = approved(people, installation, good_target(sss))
    opened = await attacker.open(plan, "protect")
    fields = json.loads(plan.canonical())
    fields["target"]["count"] = 256
    fields["target"]["shards"] = [fields["target"]["shards"][0] | {"index": n} for n in range(1, 257)]
    text = canonical_json(fields)
    signed = []
    for name in ("alice", "carol", "dave"):
        said = json.loads(people.approval(name, plan).document) | {"plan": fields, "plan_digest": digest(text)}
        data = canonical_json(said)
        signature = people.custodians[name].sign_bytes(data, Approval.TYPE)
        signed.append(Signed(document=data.decode(), signature=signature))
    authority = Authority(plan=text.decode(), approvals=tuple(signed))
    with pytest.raises(ApprovalInvalid, match="count: Input should be less than or equal to 255"):
        await attacker.generate("bao-1", 1, authority, opened.announcement)
    with pytest.raises(ApprovalInvalid, match="less than or equal to 255"):
        await attacker.protect(opened, authority, ())
    with pytest.raises(ApprovalInvalid, match="less than or equal to 255"):
        await attacker.ask(
            "open_session", "masterkey-strongroom-vault", {"purpose": "protect", "plan": text.decode(), "attempt": 1}
        )


async def test_a_plan_cannot_lower_the_governance_quorum(
    attacker: Hostile, people: People, sss: StoredProtection, installation: Installation
) -> None:
    plan, authority = approved(people, installation, good_target(sss), governance_quorum=1)
    await both_refuse(attacker, plan, authority, ApprovalInvalid, "smaller quorum than the roster's 3")
    await both_refuse(attacker, plan, people.authority(plan, ["alice"]), ApprovalInvalid, "smaller quorum")


async def test_an_init_needs_the_whole_quorum(
    attacker: Hostile, people: People, sss: StoredProtection, installation: Installation
) -> None:
    plan, _ = approved(people, installation, good_target(sss))
    for approvers in ([], ["alice"], ["alice", "bob"], ["alice", "alice", "bob"]):
        authority = people.authority(plan, approvers)
        await both_refuse(attacker, plan, authority, ApprovalInvalid, "3 are needed")


async def test_approvals_of_a_seal_init_do_not_authorise_an_sss_one(
    attacker: Hostile, people: People, sss: StoredProtection, installation: Installation
) -> None:
    sealed = good_target(sss).model_copy(
        update={
            "mode": "seal",
            "threshold": 1,
            "shards": tuple(s.model_copy(update={"custodians": ()}) for s in good_target(sss).shards),
        }
    )
    plan, authority = approved(people, installation, sealed)
    other = plan.model_copy(update={"target": good_target(sss)})
    swapped = authority.model_copy(update={"plan": other.canonical().decode()})
    await both_refuse(attacker, other, swapped, ApprovalInvalid, "signed another plan")


async def test_a_plan_under_another_roster_or_out_of_time_is_refused(
    attacker: Hostile, people: People, sss: StoredProtection, installation: Installation
) -> None:
    from datetime import timedelta

    target = good_target(sss)
    for changes, says in (
        ({"roster": "sha256:" + "0" * 64}, "another roster"),
        ({"created": now() - timedelta(hours=2), "expires": now() - timedelta(hours=1)}, "expired"),
        ({"created": now() + timedelta(hours=1)}, "future"),
        ({"expires": now() + timedelta(days=31)}, "longer than"),
    ):
        plan, authority = approved(people, installation, target, **changes)
        await both_refuse(attacker, plan, authority, ApprovalInvalid, says)


async def test_a_strongroom_opens_no_session_for_another_strongrooms_plan(
    attacker: Hostile, people: People, sss: StoredProtection, installation: Installation
) -> None:
    plan, _ = approved(people, installation, good_target(sss), strongroom=people.recipient.fingerprint)
    with pytest.raises(ApprovalInvalid, match="names another strongroom"):
        await attacker.open(plan, "protect")


def test_the_custodians_of_the_installation_are_those_of_the_tests() -> None:
    assert NAMES == EVERYBODY
