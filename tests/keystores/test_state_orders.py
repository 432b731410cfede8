"""What a keystore worker is told: a stop by any custodian; a lift, a retirement, a commit only with what each needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from activities.crypto.hpke import PrivateKey
from activities.keystores import datakey
from activities.keystores import memory as orders
from activities.keystores.kinds.base import KeyRef
from tests.strongroom.test_reshard import Resharding, released
from tests.strongroom.test_session import as_epoch, manifest_of, resigned
from tests.world import KEYSTORES, NAMES, MemoryKeystore, World, now
from workflows.contracts.messages.keystore import NoteOrder, ReportState, StopServing, UnwrapDataKey
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.trust.canonical import Signed, digest
from workflows.contracts.trust.errors import ApprovalInvalid, ManifestInvalid
from workflows.contracts.trust.keystore import CheckResponse, StateStatement
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.service_errors import Stopped
from workflows.contracts.trust.signatures import open_signed
from workflows.contracts.trust.stop import Stop
from workflows.contracts.trust.validity import MAXIMUM_CEREMONY

OTHER = "sha256:" + "5" * 64


class Keystores(Resharding):
    """Tells keystore workers things, as an orchestrator does."""

    def stop(self, signed: Signed, at: str = "ks-1") -> StateStatement:
        """Tell a worker of a stop."""
        request = StopServing(keystore=at, stop=signed)
        return self._statement(at, orders.stop_serving(self.world.desk(at), request, now()))

    def order(
        self,
        plan: Plan,
        approvers: Sequence[str] = NAMES[:3],
        *,
        stored: StoredProtection | None = None,
        at: str = "ks-1",
        authority: Authority | None = None,
    ) -> StateStatement:
        """Tell a worker of an order."""
        shown = authority or self.world.authority(plan, approvers)
        request = NoteOrder(keystore=at, authority=shown, manifest=stored.manifest if stored else None)
        return self._statement(at, orders.note_order(self.world.desk(at), request, now()))

    def lift(self, *stops: Signed, at: str = "ks-1") -> StateStatement:
        """Let the quorum lift stops."""
        return self.order(self.world.order_plan("lift", [stop.digest for stop in stops]), at=at)

    def retire(self, stored: StoredProtection, at: str = "ks-1") -> StateStatement:
        """Let the quorum retire a protection."""
        return self.order(self.world.order_plan("retire", stored), stored=stored, at=at)

    def in_force(self, at: str = "ks-1") -> tuple[str, ...]:
        """The stops that a worker knows of."""
        return self.world.desk(at).state.read().stops_in_force("eu10")

    def release_from(self, stored: StoredProtection, index: int = 1, **desk: Any) -> Any:
        """Ask for a data key, as an unseal does."""
        request = self.world.request(stored, PrivateKey().public_key)
        plan = self.world.unseal_plan(stored, request)
        authority = self.world.authority(plan, NAMES[:3], self.world.recipient.sign(request))
        row = stored.shards[index - 1]
        call = UnwrapDataKey(
            keystore=row.keystore,
            index=index,
            authority=authority,
            session=self.announce(self.open(plan, "release")),
            manifest=stored.manifest,
            wrapped_dek=row.wrapped_dek,
        )
        return datakey.unwrap(self.world.desk(row.keystore, **desk), call, now())

    def _statement(self, at: str, signed: Signed) -> StateStatement:
        statement, signer = open_signed(StateStatement, signed)
        assert (signer, statement.keystore) == (self.world.keystores[at].fingerprint, at)
        return statement


@pytest.fixture
def keystores(tmp_path: Path) -> Keystores:
    return Keystores(World.make(tmp_path))


# --- stops -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_any_custodian_stops_a_masterkey_and_the_worker_says_what_it_remembers(keystores: Keystores, name: str) -> None:
    signed = keystores.world.stop(name)
    statement = keystores.stop(signed)
    assert statement.about == signed.digest
    (said,) = statement.master_keys
    assert (said.master_key, said.kcv, said.epochs, said.stops) == ("eu10", "", {}, (signed.digest,))


def test_nobody_else_stops_a_masterkey(keystores: Keystores) -> None:
    world = keystores.world
    good = world.stop("alice")
    forged = [
        identity.sign(_stop_of(world, "alice", custodian=identity.fingerprint))
        for identity in (world.stranger, world.recipient, world.strongroom, world.keystores["ks-1"])
    ]
    in_her_name = world.stranger.sign(_stop_of(world, "alice"))
    by_another = world.custodians["bob"].sign(_stop_of(world, "alice"))
    altered = Signed(document=good.document.replace("laptop", "desktop"), signature=good.signature)
    approval = world.approval("alice", world.init_plan(world.target()))
    for signed in (*forged, in_her_name, by_another, altered, approval, Signed(document="{}", signature="")):
        with pytest.raises(ApprovalInvalid):
            keystores.stop(signed)
    assert keystores.in_force() == ()


def _stop_of(world: World, name: str, **changes: Any) -> Stop:
    return Stop.parse(world.stop(name, **changes).document.encode())


def test_a_custodian_whose_key_was_revoked_stops_nothing(keystores: Keystores) -> None:
    world = keystores.world
    world.write_roster(world.next_version(NAMES[1:4], revoked=(world.custodians["alice"].fingerprint,)))
    with pytest.raises(ApprovalInvalid, match="not signed by a custodian"):
        keystores.stop(world.stop("alice"))
    assert len(keystores.stop(world.stop("bob")).master_keys[0].stops) == 1


@pytest.mark.parametrize(
    ("issued", "says"),
    [
        (lambda: now() + timedelta(minutes=5), "dated in the future"),
        (lambda: datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), "dated in the future"),
        (lambda: now() - MAXIMUM_CEREMONY - timedelta(minutes=1), "too old"),
        (lambda: datetime(1000, 1, 1, tzinfo=UTC), "too old"),
    ],
)
def test_a_stop_is_dated_now(keystores: Keystores, issued: Callable[[], datetime], says: str) -> None:
    # At the ends of the calendar too: what is raised there may not be another kind of error, which hangs a workflow.
    with pytest.raises(ApprovalInvalid, match=says):
        keystores.stop(keystores.world.stop("alice", issued=issued()))
    keystores.stop(keystores.world.stop("alice", issued=now() - MAXIMUM_CEREMONY + timedelta(minutes=1)))


def test_while_a_masterkey_is_stopped_no_data_key_is_given_or_made(keystores: Keystores) -> None:
    stored, world = keystores.protect(), keystores.world
    stop = world.stop("erin")
    keystores.stop(stop)
    with pytest.raises(Stopped, match="a custodian ordered to stop"):
        keystores.release_from(stored)
    plan = world.reshard_plan(stored, world.target_over(KEYSTORES[:3]))
    authority, announced = world.authority(plan, NAMES[:3]), keystores.announce(keystores.open(plan, "reshard"))
    with pytest.raises(Stopped):
        keystores.unwrap(stored, 1, authority, announced)
    assert plan.target is not None
    with pytest.raises(Stopped):
        keystores.generate(plan.target, authority, announced)
    with pytest.raises(Stopped):
        keystores.protect()
    # It can still be proven that everything opens; and whoever has not heard of it serves.
    assert len(keystores.proofs(stored)) == 5
    assert keystores.release_from(stored, 2)
    keystores.lift(stop)
    assert keystores.release_from(stored)


def test_other_masterkeys_are_served_while_one_is_stopped(keystores: Keystores) -> None:
    stored = keystores.protect()
    keystores.stop(keystores.world.stop("alice", master_key="eu11", ceremony="eu11.seal.0123456789ab"))
    assert keystores.release_from(stored)
    assert keystores.in_force() == ()


def test_a_stop_that_is_sent_twice_is_one(keystores: Keystores) -> None:
    stop = keystores.world.stop("alice")
    first, second = keystores.stop(stop), keystores.stop(stop)
    assert first.master_keys == second.master_keys
    assert keystores.in_force() == (stop.digest,)


def test_while_stopped_the_keystore_itself_is_not_even_asked(keystores: Keystores) -> None:
    stored = keystores.protect()
    asked: list[KeyRef] = []

    class Counting(MemoryKeystore):
        def unwrap(self, wrapped: bytes, context: Any, key: KeyRef) -> bytes:
            asked.append(key)
            return keystores.world.memory["ks-1"].unwrap(wrapped, context, key)

    assert keystores.release_from(stored, keystore=Counting("ks-1"))
    keystores.stop(keystores.world.stop("alice"))
    with pytest.raises(Stopped):
        keystores.release_from(stored, keystore=Counting("ks-1"))
    assert len(asked) == 1


def test_a_data_key_that_a_slow_keystore_gives_back_after_a_stop_does_not_leave(keystores: Keystores) -> None:
    stored, world = keystores.protect(), keystores.world

    class Slow(MemoryKeystore):
        def unwrap(self, wrapped: bytes, context: Any, key: KeyRef) -> bytes:
            # Meanwhile another process of this worker acknowledges a stop.
            keystores.stop(stop)
            return world.memory["ks-1"].unwrap(wrapped, context, key)

    stop = world.stop("bob")
    with pytest.raises(Stopped):
        keystores.release_from(stored, keystore=Slow("ks-1"))


def test_a_data_key_that_a_slow_keystore_gives_back_after_a_retirement_does_not_leave(keystores: Keystores) -> None:
    stored, world = keystores.protect(), keystores.world

    class Slow(MemoryKeystore):
        def unwrap(self, wrapped: bytes, context: Any, key: KeyRef) -> bytes:
            keystores.retire(stored)
            return world.memory["ks-1"].unwrap(wrapped, context, key)

    with pytest.raises(ManifestInvalid, match="serves 2 and newer"):
        keystores.release_from(stored, keystore=Slow("ks-1"))


# --- lifts -------------------------------------------------------------------------------------------------


def test_a_lift_names_exactly_the_stops_that_it_lifts(keystores: Keystores) -> None:
    first, second = keystores.world.stop("alice"), keystores.world.stop("bob")
    for stop in (first, second):
        keystores.stop(stop)
    said = keystores.lift(first)
    assert said.master_keys[0].stops == (second.digest,)
    assert keystores.in_force() == (second.digest,)
    assert keystores.lift(second).master_keys[0].stops == ()


def test_a_lift_needs_the_governance_quorum(keystores: Keystores) -> None:
    stop = keystores.world.stop("alice")
    keystores.stop(stop)
    plan = keystores.world.order_plan("lift", [stop.digest])
    for approvers in ((), NAMES[:2], ("alice", "alice", "bob")):
        with pytest.raises(ApprovalInvalid, match="3 are needed"):
            keystores.order(plan, approvers)
    other = keystores.world.authority(keystores.world.order_plan("lift", [OTHER]), NAMES)
    with pytest.raises(ApprovalInvalid, match="signed another plan"):
        keystores.order(plan, authority=_shown(plan, other))
    assert keystores.in_force() == (stop.digest,)
    assert keystores.order(plan).about == plan.digest


def _shown(plan: Plan, signed: Authority) -> Authority:
    return signed.model_copy(update={"plan": plan.canonical().decode()})


def test_an_old_stop_that_is_sent_again_after_its_lift_changes_nothing(keystores: Keystores) -> None:
    stop = keystores.world.stop("alice")
    keystores.stop(stop)
    keystores.lift(stop)
    said = keystores.stop(stop)
    assert said.master_keys[0].stops == ()
    assert keystores.release_from(keystores.protect())


def test_an_old_lift_that_is_sent_again_does_not_lift_a_new_stop(keystores: Keystores) -> None:
    old, new = keystores.world.stop("alice"), keystores.world.stop("alice")
    keystores.stop(old)
    plan = keystores.world.order_plan("lift", [old.digest])
    authority = keystores.world.authority(plan, NAMES[:3])
    keystores.order(plan, authority=authority)
    keystores.stop(new)
    assert keystores.order(plan, authority=authority).master_keys[0].stops == (new.digest,)


def test_a_lift_that_comes_before_its_stop_makes_it_void(keystores: Keystores) -> None:
    stop = keystores.world.stop("alice")
    assert keystores.lift(stop).master_keys[0].stops == ()
    assert keystores.stop(stop).master_keys[0].stops == ()


def test_a_lift_for_one_masterkey_lifts_nothing_of_another(keystores: Keystores) -> None:
    stop = keystores.world.stop("alice")
    keystores.stop(stop)
    keystores.order(keystores.world.order_plan("lift", [stop.digest], master_key="eu11"))
    assert keystores.in_force() == (stop.digest,)


# --- orders that are none ----------------------------------------------------------------------------------


def test_an_order_does_only_what_its_action_says(keystores: Keystores) -> None:
    stored, world = keystores.protect(), keystores.world
    stop = world.stop("alice")
    keystores.stop(stop)
    retire = world.order_plan("retire", stored)
    reshard = world.reshard_plan(stored, world.target_over(KEYSTORES[:3]))
    recipient = world.unseal_plan(stored, world.request(stored, PrivateKey().public_key)).recipient
    wrong = {
        "a reshard is no order": reshard,
        "a recovery is no order": reshard.model_copy(update={"action": "recover"}),
        "a release is no order": retire.model_copy(update={"action": "unseal"}),
        "a seal is no order": retire.model_copy(update={"action": "seal"}),
        "with a target": retire.model_copy(update={"target": world.target()}),
        "with a recipient": retire.model_copy(update={"recipient": recipient}),
        "a retirement with stops": retire.model_copy(update={"stops": (stop.digest,)}),
        "a retirement of nothing": retire.model_copy(update={"source": None}),
        "a lift of nothing": retire.model_copy(update={"action": "lift", "source": None}),
        "a lift with a manifest": retire.model_copy(update={"action": "lift", "stops": (stop.digest,)}),
    }
    for what, plan in wrong.items():
        with pytest.raises(ApprovalInvalid):
            keystores.order(plan, NAMES, stored=stored)
        assert keystores.in_force() == (stop.digest,), what
        assert keystores.world.desk("ks-1").state.read().master_keys == {}, what


def test_an_order_is_about_the_manifest_that_is_presented(keystores: Keystores) -> None:
    stored, world = keystores.protect(), keystores.world
    other = keystores.protect(threshold=4)
    for action in ("retire", "destroy"):
        plan = world.order_plan(action, stored)
        with pytest.raises(ApprovalInvalid, match="was not presented"):
            keystores.order(plan)
        with pytest.raises(ApprovalInvalid, match="about another manifest"):
            keystores.order(plan, stored=other)
        forged = stored.model_copy(update={"manifest": world.stranger.sign(manifest_of(stored))})
        with pytest.raises(ManifestInvalid, match="not signed by a strongroom"):
            keystores.order(world.order_plan(action, forged), stored=forged)
        with pytest.raises(ApprovalInvalid, match="3 are needed"):
            keystores.order(plan, NAMES[:2], stored=stored)
    assert world.desk("ks-1").state.read().master_keys == {}


def test_an_approval_of_one_order_is_none_of_another(keystores: Keystores) -> None:
    stored, world = keystores.protect(), keystores.world
    destroy, retire = world.order_plan("destroy", stored), world.order_plan("retire", stored)
    signed = world.authority(destroy, NAMES)
    with pytest.raises(ApprovalInvalid, match="signed another plan"):
        keystores.order(retire, stored=stored, authority=_shown(retire, signed))
    assert keystores.order(destroy, stored=stored, authority=signed).master_keys[0].epochs == {"primary": 2}


def test_an_order_that_asks_for_a_smaller_quorum_than_the_manifest_is_refused(tmp_path: Path) -> None:
    keystores = Keystores(World.make(tmp_path, quorum=2))
    stored = keystores.protect(approvers=NAMES[:4])
    demanding = resigned(keystores, stored, governance_quorum=4)
    plan = keystores.world.order_plan("retire", demanding)
    with pytest.raises(ApprovalInvalid, match="smaller quorum than the manifest demands"):
        keystores.order(plan, NAMES, stored=demanding)
    plan = keystores.world.order_plan("retire", demanding, governance_quorum=4)
    with pytest.raises(ApprovalInvalid, match="4 are needed"):
        keystores.order(plan, NAMES[:3], stored=demanding)
    assert keystores.order(plan, NAMES[:4], stored=demanding).master_keys[0].epochs == {"primary": 2}


def test_an_order_out_of_time_is_refused(keystores: Keystores) -> None:
    stop, hour = keystores.world.stop("alice"), timedelta(hours=1)
    keystores.stop(stop)
    for created, expires in ((now() - 2 * hour, now() - hour), (now() + hour, now() + 2 * hour)):
        plan = keystores.world.order_plan("lift", [stop.digest], created=created, expires=expires)
        with pytest.raises(ApprovalInvalid, match=r"expired|in the future"):
            keystores.order(plan)
    assert keystores.in_force() == (stop.digest,)


# --- retirement --------------------------------------------------------------------------------------------


def test_a_retired_protection_is_served_no_more_and_the_other_purpose_is(keystores: Keystores) -> None:
    stored, world = keystores.protect(), keystores.world
    emergency = keystores.reshard(stored, world.target_over(KEYSTORES[:3], purpose="emergency"))
    for name in KEYSTORES[:3]:
        keystores.note(name, stored)
        keystores.note(name, emergency)
    assert keystores.retire(emergency).master_keys[0].epochs == {"primary": 1, "emergency": 3}
    with pytest.raises(ManifestInvalid, match="epoch 2; this keystore serves 3 and newer"):
        keystores.release_from(emergency)
    with pytest.raises(ManifestInvalid, match="epoch 2; this keystore serves 3 and newer"):
        keystores.proofs(emergency)
    assert keystores.release_from(stored)
    # A newer one of that purpose is served, and a retirement of the old one that is sent again changes nothing.
    newer = keystores.reshard(stored, world.target_over(KEYSTORES[:3], epoch=3, purpose="emergency"))
    keystores.note("ks-1", newer)
    assert keystores.release_from(newer)
    assert keystores.retire(emergency).master_keys[0].epochs == {"primary": 1, "emergency": 3}
    assert keystores.release_from(newer)


# --- commits -----------------------------------------------------------------------------------------------


@pytest.fixture
def resharded(keystores: Keystores) -> tuple[StoredProtection, StoredProtection]:
    """A protection in ks-1 to ks-5 that every keystore knows of, and one in ks-1 to ks-3 that nobody has proven."""
    stored = keystores.protect()
    for name in KEYSTORES:
        keystores.note(name, stored)
    return stored, keystores.reshard(stored, keystores.world.target_over(KEYSTORES[:3]))


def answer_of(signed: Signed, **changes: Any) -> CheckResponse:
    return CheckResponse.parse(signed.document.encode()).model_copy(update=changes)


Proofs = tuple[Signed, ...]
BAD_PROOFS: dict[str, Callable[[World, Proofs, Proofs], Proofs]] = {
    "none": lambda world, good, old: (),
    "all but one": lambda world, good, old: good[:2],
    "one of them thrice": lambda world, good, old: (good[0],) * 3,
    "of another manifest": lambda world, good, old: (*good[:2], old[2]),
    "by another keystore's worker": lambda world, good, old: (
        *good[:2],
        world.keystores["ks-1"].sign(answer_of(good[2])),
    ),
    "by a stranger": lambda world, good, old: (*good[:2], world.stranger.sign(answer_of(good[2]))),
    "by the strongroom": lambda world, good, old: (*good[:2], world.strongroom.sign(answer_of(good[2]))),
    "by a worker in its own name for the shard of another": lambda world, good, old: (
        *good[:2],
        world.keystores["ks-2"].sign(answer_of(good[2], keystore="ks-2")),
    ),
    "of the same shard by its worker, for another index": lambda world, good, old: (
        *good[:2],
        world.keystores["ks-3"].sign(answer_of(good[2], index=2)),
    ),
    "that it does not match": lambda world, good, old: (
        *good[:2],
        world.keystores["ks-3"].sign(answer_of(good[2], matches=False)),
    ),
    "with an altered document": lambda world, good, old: (
        *good[:2],
        Signed(document=good[1].document, signature=good[2].signature),
    ),
    "of a worker that is in no roster": lambda world, good, old: (
        *good[:2],
        world.stranger.sign(answer_of(good[2], keystore="ks-9")),
    ),
}


@pytest.mark.parametrize("change", BAD_PROOFS.values(), ids=BAD_PROOFS)
def test_without_every_proof_the_old_protection_stays_in_force(
    keystores: Keystores,
    resharded: tuple[StoredProtection, StoredProtection],
    change: Callable[[World, Proofs, Proofs], Proofs],
) -> None:
    old, new = resharded
    shown = change(keystores.world, keystores.proofs(new), keystores.proofs(old))
    for name in ("ks-1", "ks-5"):
        with pytest.raises(ManifestInvalid):
            keystores.note(name, new, shown)
    assert len(released(keystores, old)) == 32
    assert keystores.release_from(old)


def test_with_every_proof_the_old_one_is_retired_inside_and_outside_the_new_one(
    keystores: Keystores, resharded: tuple[StoredProtection, StoredProtection]
) -> None:
    old, new = resharded
    proofs = keystores.proofs(new)
    before = released(keystores, old)
    for name in KEYSTORES:
        # In any order, with one of something else among them.
        shown = (keystores.proofs(new)[0], *proofs[::-1])
        assert keystores.note(name, new, shown).master_keys[0].epochs == {"primary": 2}
    with pytest.raises(ManifestInvalid, match="epoch 1; this keystore serves 2 and newer"):
        keystores.release_from(old)
    # Of ks-3 to ks-5, which are asked here, two are outside the new protection.
    with pytest.raises(ManifestInvalid, match="epoch 1; this keystore serves 2 and newer"):
        keystores.unseal(old, NAMES[2:], (5, 4, 3))
    assert released(keystores, new) == before


def test_a_commit_by_a_manifest_that_no_strongroom_signed_counts_for_nothing(
    keystores: Keystores, resharded: tuple[StoredProtection, StoredProtection]
) -> None:
    old, new = resharded
    world = keystores.world
    forged = new.model_copy(update={"manifest": world.stranger.sign(manifest_of(new))})
    with pytest.raises(ManifestInvalid, match="not signed by a strongroom"):
        keystores.note("ks-1", forged, keystores.proofs(new))
    # The proofs are of the very bytes of a manifest: another that the strongroom signed is proven by none of them.
    raised = as_epoch(keystores, new, 900)
    with pytest.raises(ManifestInvalid, match="was not proven by ks-1, ks-2, ks-3"):
        keystores.note("ks-1", raised, keystores.proofs(new))
    assert keystores.release_from(old)


def test_a_release_from_an_unproven_protection_retires_nothing(
    keystores: Keystores, resharded: tuple[StoredProtection, StoredProtection]
) -> None:
    # The proofs are withheld, and what was staged is presented for an unseal: one keystore gives its data key, which
    # says nothing of the others.
    old, new = resharded
    assert keystores.release_from(new)
    assert keystores.world.desk("ks-1").state.read().master_keys["eu10"].epochs == {"primary": 1}
    assert keystores.release_from(old)
    assert len(released(keystores, old)) == 32


def test_a_reshard_from_an_unproven_protection_retires_nothing(
    keystores: Keystores, resharded: tuple[StoredProtection, StoredProtection]
) -> None:
    old, new = resharded
    keystores.reshard(new, keystores.world.target_over(KEYSTORES[2:], epoch=3), indexes=(1, 2))
    assert keystores.release_from(old)


def test_a_release_spends_the_approvals_of_the_init(keystores: Keystores) -> None:
    # Nobody was told of a commit: what was released is the MasterKey of this name all the same.
    stored = keystores.protect()
    keystores.release_from(stored)
    with pytest.raises(ManifestInvalid, match="was committed here before"):
        keystores.protect()


# --- reports -----------------------------------------------------------------------------------------------


def test_a_report_tells_of_every_masterkey_over_the_callers_nonce(keystores: Keystores) -> None:
    stored, world = keystores.protect(), keystores.world
    keystores.note("ks-1", stored)
    stop = world.stop("alice", master_key="eu11", ceremony="eu11.seal.0123456789ab")
    # What it answers to a stop is about that MasterKey alone.
    assert [one.master_key for one in keystores.stop(stop).master_keys] == ["eu11"]
    signed = orders.report_state(world.desk("ks-1"), ReportState(keystore="ks-1", nonce="ab" * 16), now())
    statement, signer = open_signed(StateStatement, signed)
    assert signer == world.keystores["ks-1"].fingerprint
    assert statement.about == digest(bytes.fromhex("ab" * 16))
    first, second = statement.master_keys
    assert (first.master_key, first.kcv, first.epochs) == ("eu10", manifest_of(stored).kcv, {"primary": 1})
    assert (second.master_key, second.kcv, second.stops) == ("eu11", "", (stop.digest,))


def test_a_worker_remembers_the_newest_roster_in_what_it_reports(keystores: Keystores) -> None:
    keystores.world.desk("ks-1").state.note_roster(7)
    assert keystores.stop(keystores.world.stop("alice")).roster_number == 7
