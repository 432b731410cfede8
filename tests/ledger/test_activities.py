"""The orchestrator's activities: what a plan is made from, what is refused early, and that again changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities.ledger.store.ledger import Ledger
from tests.bundle.life import NAME, QUORUM, Life, world_keystores
from tests.ledger.conftest import Shared
from tests.ledger.samples import sql
from tests.world import World, now
from workflows.contracts.messages.ledger import ExecuteOrder, PlanMade
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.messages.report import Report, ReportRequest
from workflows.contracts.trust.canonical import digest, format_time
from workflows.contracts.trust.keystore import CheckResponse
from workflows.contracts.trust.stop import Stop


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """People and a roster; what they sign is nobody's but the test's own."""
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture
def life(world: World, shared: Shared, url: str, tmp_path: Path) -> Life:
    """A life that has not begun, with keystores that remember nothing."""
    world.write_roster()
    shared.clock.now = now()
    if (state := world.folder / "state").exists():
        state.rename(tmp_path / "state")
    return Life(world, shared.ledger)


def emergency(life: Life, source: StoredProtection, epoch: int = 2) -> StoredProtection:
    target = life.world.target_over(world_keystores(2), "seal", 1, epoch=epoch, purpose="emergency")
    return life.reshard(source, target)


@contextmanager
def refused(type_: str, match: str | None = None) -> Iterator[None]:
    """The block fails with the failure that one of our errors became."""
    with pytest.raises(ApplicationError, match=match) as caught:
        yield
    assert caught.value.type == type_


def status(ledger: Ledger, stored: StoredProtection) -> str:
    return ledger.protection(NAME, digest=stored.manifest.digest).status


def report(life: Life, **fields: Any) -> Report:
    return life.activities.read_report(ReportRequest(kind="status", **fields))


# --- beginning ---


@pytest.mark.parametrize("action", ["unseal", "reshard", "recover"])
def test_nothing_that_opens_a_protection_begins_while_a_stop_is_in_force(life: Life, action: str) -> None:
    life.init()
    stop = Stop.parse(life.stop("dave").document.encode())
    with refused("Stopped", f"dave ordered it on {stop.issued:%Y-%m-%d} at .*: {stop.reason}"):
        life.begin(life.id_of(action), all_active=True)
    life.begin(life.id_of("drill"), all_active=True)
    life.order("lift", [stop.digest])
    life.begin(life.id_of(action), all_active=True)


def test_a_stop_that_no_custodian_signed_or_of_something_else_is_not_recorded(life: Life) -> None:
    life.init()
    ceremony = life.id_of("seal")
    genuine = life.world.stop("erin", ceremony=ceremony)
    forged = genuine.model_copy(update={"signature": life.world.stranger.sign_bytes(b"", Stop.TYPE)})
    for signed in (
        forged,
        life.world.stop("erin"),
        life.world.stop("erin", ceremony=ceremony, master_key="us20"),
        life.world.stop("erin", ceremony=ceremony, issued=now() - timedelta(days=31)),
    ):
        with refused("ApprovalInvalid"):
            life.begin(ceremony, stop=signed)
    assert life.ledger.stops_in_force() == []
    assert len(life.begin(ceremony, stop=genuine).active) == 1


def test_a_stop_of_a_master_key_that_nobody_knows_is_refused_so_that_nobody_believes_in_it(life: Life) -> None:
    ceremony = life.id_of("seal")
    with refused("NotKnown"):
        life.begin(ceremony, stop=life.world.stop("erin", ceremony=ceremony))


def test_a_stop_goes_to_whoever_serves_or_has_served_and_to_whoever_holds(life: Life) -> None:
    first = life.init()
    second = life.reshard(first, life.world.target_over(world_keystores(3)))
    open_unseal, held = life.id_of("unseal"), life.id_of("unseal")
    for ceremony in (open_unseal, held):
        life.begin(ceremony, manifest=second.manifest.digest)
    life.close(held)
    assert life.hold(held, "began") == ()
    ceremony = life.id_of("seal")
    signed = life.world.stop("erin", ceremony=ceremony)
    for _ in range(2):
        begun = life.begin(ceremony, stop=signed)
    assert [stored.manifest.digest for stored in begun.active] == [first.manifest.digest, second.manifest.digest]
    assert begun.releases == (f"masterkey/{open_unseal}", f"masterkey/{held}/hold")
    assert life.hold(held, "ended") == (signed,)
    retired = first.manifest.digest
    life.order("lift", [signed.digest])
    life.order("destroy", first)
    again = life.id_of("seal")
    begun = life.begin(again, stop=life.world.stop("erin", ceremony=again))
    assert retired not in [stored.manifest.digest for stored in begun.active]
    assert begun.releases == (f"masterkey/{open_unseal}",)


def test_a_lift_is_told_which_stops_are_in_force(life: Life) -> None:
    life.init()
    # None is no reason to refuse: a keystore may remember one that this ledger does not.
    assert life.begin(life.id_of("lift")).stops == ()
    first, second = life.stop("erin"), life.stop("dave")
    begun = life.begin(life.id_of("lift"))
    assert set(begun.stops) == {first, second}
    assert len(begun.active) == 1
    life.order("lift", [first.digest])
    assert life.begin(life.id_of("lift")).stops == (second,)


def test_an_order_begins_only_with_a_protection_in_the_state_for_it(life: Life) -> None:
    first = life.init()
    with refused("PlanInvalid", "last protection"):
        life.begin(life.id_of("retire"), manifest=first.manifest.digest)
    beside = emergency(life, first)
    begun = life.begin(life.id_of("retire"), manifest=beside.manifest.digest)
    assert begun.protection == beside
    with refused("PlanInvalid", "only a protection that is retired can be destroyed"):
        life.begin(life.id_of("destroy"), manifest=beside.manifest.digest)
    life.order("retire", beside)
    assert life.begin(life.id_of("destroy"), manifest=beside.manifest.digest).protection == beside
    with refused("PlanInvalid", "only a protection that is active can be retired"):
        life.begin(life.id_of("retire"), manifest=beside.manifest.digest)
    with refused("NotKnown"):
        life.begin(life.id_of("retire"), manifest=digest(b"another"))


def test_a_retired_protection_may_still_be_unsealed_by_its_keystores_and_a_destroyed_one_may_not(life: Life) -> None:
    first = life.init()
    life.reshard(first, life.world.target_over(world_keystores(3)))
    assert life.begin(life.id_of("unseal"), manifest=first.manifest.digest).protection == first
    life.order("destroy", first)
    with refused("NotKnown"):
        life.begin(life.id_of("unseal"), manifest=first.manifest.digest)


@pytest.mark.parametrize("action", ["drill", "reshard", "recover"])
def test_a_ceremony_is_told_when_each_shard_of_what_is_active_was_last_proven(life: Life, action: str) -> None:
    first = life.init()
    old = life.begin(life.id_of(action), all_active=True).proofs
    assert [(proof.manifest, proof.index) for proof in old] == [(first.manifest.digest, n) for n in range(1, 4)]
    assert all(abs((proof.at - now()).total_seconds()) < 60 for proof in old)
    later = now() + timedelta(hours=1)
    drill = life.id_of("drill")
    life.begin(drill, all_active=True)
    answer = CheckResponse.parse(life.people.proofs(first)[2].document.encode())
    keystore = life.world.keystores["ks-3"]
    for number, (matches, at) in enumerate([(True, later), (False, later + timedelta(hours=1))]):
        signed = keystore.sign(answer.model_copy(update={"matches": matches, "time": at}))
        body = {"document": signed.document, "signature": signed.signature}
        life.ledger.append(drill, f"proven.{number}", "data-key-proven", body, NAME)
    life.ledger.append(drill, "junk", "data-key-proven", {"document": "{}"}, NAME)
    life.close(drill)
    proofs = life.begin(life.id_of(action), all_active=True).proofs
    assert [proof.at for proof in proofs] == [*(p.at for p in old[:2]), later]


def test_only_those_who_need_it_are_told_more(life: Life) -> None:
    first = life.init()
    begun = life.begin(life.id_of("unseal"), manifest=first.manifest.digest)
    assert (begun.active, begun.stops, begun.releases, begun.proofs) == ((), (), (), ())


# --- orders ---


def test_orders_are_carried_out_once(life: Life) -> None:
    first = life.init()
    beside = emergency(life, first)
    for action, before, after in (("retire", "active", "retired"), ("destroy", "retired", "destroyed")):
        assert status(life.ledger, beside) == before
        ceremony = life.order(action, beside)  # type: ignore[arg-type]
        again = ExecuteOrder(
            ceremony=ceremony,
            master_key=NAME,
            action=action,
            manifest=beside.manifest.digest,
        )
        life.activities.execute_order(again)
        assert status(life.ledger, beside) == after
    assert status(life.ledger, first) == "active"


def test_an_order_without_what_it_is_about_is_refused(life: Life) -> None:
    life.init()
    stop = life.stop()
    ceremony = life.id_of("lift")
    life.begin(ceremony)
    fields = {"ceremony": ceremony, "master_key": NAME}
    with refused("PlanInvalid"):
        life.activities.execute_order(ExecuteOrder(action="lift", **fields))
    with refused("PlanInvalid"):
        life.activities.execute_order(ExecuteOrder(action="retire", **fields))
    with refused("LedgerConflict"):
        other = {**fields, "master_key": "us20"}
        life.activities.execute_order(ExecuteOrder(action="lift", stops=(stop.digest,), **other))
    assert len(life.ledger.stops_in_force(NAME)) == 1


def test_the_collector_discards_leftovers_and_destroys_what_is_due(life: Life, shared: Shared) -> None:
    first = life.init()
    second = life.reshard(first, life.world.target_over(world_keystores(3), retention_hours=1))
    life.refused_reshard(second, life.world.target_over(world_keystores(4), epoch=3))
    assert life.collect().model_dump() == {"discarded": (), "destroyed": ()}
    due = report(life).protections[0].destroy_after
    assert due == format_time(shared.clock.now + timedelta(hours=1))
    shared.clock.advance(hours=1)
    assert life.collect().destroyed == (first.manifest.digest,)
    assert life.collect().destroyed == ()
    assert [p.status for p in report(life).protections] == ["destroyed", "active"]


def test_the_collector_discards_what_a_killed_activity_left_staged(life: Life, url: str, shared: Shared) -> None:
    first = life.init()
    life.refused_reshard(first, life.world.target_over(world_keystores(4)))
    [(closed,)] = sql(url, "SELECT ceremony FROM ceremonies WHERE outcome = 'refused'")
    # A staging that came too late by a hair: the ceremony is over, and the row is there.
    columns = "'p', master_key, purpose, mode, threshold, count, 9, kcv, predecessor"
    rest = f"9, manifest, signature, 'sha256:{'9' * 64}', 'staged', NULL"
    sql(url, f"INSERT INTO protections SELECT {columns}, '{closed}', {rest} FROM protections")  # noqa: S608
    shared.clock.advance(seconds=5)
    assert life.collect().discarded == (closed,)
    assert life.collect().discarded == ()


# --- plans and reports ---


def test_a_plan_of_another_ceremony_is_not_recorded(life: Life) -> None:
    life.begin(ceremony := life.id_of("init"))
    plan = life.world.init_plan(life.world.target(), ceremony=life.id_of("init"))
    made = PlanMade(ceremony=ceremony, master_key=NAME, phase="quorum", plan=plan.canonical().decode())
    with refused("LedgerConflict"):
        life.activities.record_plan(made)
    assert life.ledger.ceremony(ceremony).plan is None


def test_a_recovery_takes_a_changed_plan_and_nothing_else_does(life: Life) -> None:
    first = life.init()
    four, three = world_keystores(4), world_keystores(3, 2)
    made = life.replanned_recovery(first, life.world.target_over(four), life.world.target_over(three))
    assert len(made.shards) == 3
    ceremony = life.id_of("reshard")
    life.begin(ceremony, all_active=True)
    plans = [
        life.world.reshard_plan(made, life.world.target_over(k, epoch=3), ceremony=ceremony) for k in (four, three)
    ]
    life.plan(plans[0])
    with refused("LedgerConflict"):
        life.plan(plans[1])


def test_a_report_tells_of_stops_in_force(life: Life) -> None:
    life.init()
    signed = life.stop()
    assert report(life).stops == (signed,)
    assert report(life, master_key="us20").stops == ()
    life.order("lift", [signed.digest], QUORUM)
    assert report(life).stops == ()


def test_what_is_over_does_not_begin_again_within_the_same_second(life: Life) -> None:
    drill = life.id_of("drill")
    life.init()
    for _ in range(2):
        life.begin(drill, all_active=True)
    life.close(drill)
    with pytest.raises(ApplicationError, match="is over already: done"):
        life.begin(drill, all_active=True)
