"""Crashes: whatever is killed, whenever, a ceremony completes or stands refused, and its record is written once.

Every boundary is taken from the ceremonies' own histories: each kind of activity, before its work and after
its work but before its answer. For each boundary one ceremony is led there and held; then something is
killed under all of them at once, started again, and they are let go.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence

import pytest

from tests.workflows.gated import Gate, GatedHouse, wait_for_gates
from tests.workflows.people import Asked, Handle, clean, ended, failure, scheduled
from workflows.contracts import names
from workflows.contracts.messages import InitResult, UnsealResult

LEDGER = (
    names.BEGIN_CEREMONY,
    names.RECORD_PLAN,
    names.RECORD_EVENTS,
    names.STAGE_PROTECTION,
    names.COMMIT_PROTECTION,
    names.CLOSE_CEREMONY,
)
STRONGROOM = (names.OPEN_SESSION, names.HOLD_SESSION, names.PROTECT, names.RELEASE)
BEFORE_THE_QUORUM = (names.BEGIN_CEREMONY, names.DESCRIBE_KEY, names.RECORD_PLAN)
QUORUM = ("alice", "bob", "carol")


async def boundaries(gated: GatedHouse, handle: Handle) -> list[str]:
    """Every kind of activity in a ceremony's history, in order."""
    return list(scheduled(await clean(handle, killed=True)))


def role_of(activity: str) -> str:
    """Which worker does this."""
    if activity in LEDGER:
        return "orchestrator"
    return "strongroom" if activity in STRONGROOM else "keystores"


class Held:
    """Ceremonies that stand at gates."""

    def __init__(self, gated: GatedHouse) -> None:
        self.gated = gated
        self.inits: dict[str, Handle] = {}
        self.unseals: dict[str, Asked] = {}
        self.made: InitResult | None = None
        self.gates: list[Gate] = []

    async def lead_inits(self, stops: Sequence[tuple[str, str]]) -> None:
        """Lead one init to each (activity, when)."""
        late: list[tuple[str, str, str]] = []
        for activity, when in stops:
            name = self.gated.fresh_name()
            if activity in BEFORE_THE_QUORUM:
                self.gates.append(self.gated.gate(name, activity, when))
            else:
                late.append((name, activity, when))
            self.inits[name] = await self.gated.start_init(name)
        for name, activity, when in late:
            await self.gated.reach(self.inits[name], "quorum")
            # Also `record_events`, which is called at the beginning of the quorum, is meant at its end.
            self.gates.append(self.gated.gate(name, activity, when))
            await self.gated.approve(self.inits[name], QUORUM)
        await wait_for_gates(self.gates)

    async def lead_unseals(self, stops: Sequence[tuple[str, str]]) -> None:
        """Lead one sss unseal to each (activity, when)."""
        name = self.gated.fresh_name()
        self.made = await self.gated.init(name)
        late: list[tuple[str, str, str]] = []
        for activity, when in stops:
            ceremony = names.new_ceremony_id(name, "unseal")
            if activity in BEFORE_THE_QUORUM:
                self.gates.append(self.gated.gate(ceremony, activity, when))
            else:
                late.append((ceremony, activity, when))
            self.unseals[ceremony] = await self.gated.ask(name, self.made, ceremony=ceremony)
        for ceremony, activity, when in late:
            await self.gated.reach(self.unseals[ceremony].handle, "quorum")
            self.gates.append(self.gated.gate(ceremony, activity, when))
            await self.gated.approve(self.unseals[ceremony].handle, QUORUM)
        await wait_for_gates(self.gates)

    def open(self) -> None:
        """Let everybody go on."""
        for gate in self.gates:
            gate.open()

    async def finish(self) -> None:
        """Every ceremony completes, and its record is there once."""
        for handle in self.inits.values():
            if (
                await self.gated.reach(handle, "quorum", "protecting", "proving", "committing", "done")
            ).phase == "quorum":
                await self.gated.approve(handle, QUORUM)
        for asked in self.unseals.values():
            if (await self.gated.reach(asked.handle, "quorum", "releasing", "waiting", "done")).phase == "quorum":
                await self.gated.approve(asked.handle, QUORUM)
        for name, handle in self.inits.items():
            made = InitResult.model_validate(await ended(handle, 90))
            await clean(handle, killed=True)
            self.recorded_once(name, made.ceremony, made.kcv)
        if self.inits:
            await self.gated.unseal(name, made)
        for ceremony, asked in self.unseals.items():
            assert self.made is not None
            result = UnsealResult.model_validate(await ended(asked.handle, 90))
            assert len(self.gated.receive(asked, result, self.made)) == 32
            await clean(asked.handle, killed=True)
            self.recorded_once(self.made.master_key, ceremony, self.made.kcv)
        self.gated.ledger.verify_chain()

    def recorded_once(self, name: str, ceremony: str, kcv: str) -> None:
        """One active protection, nothing staged, the ceremony closed, and every event once."""
        ledger = self.gated.ledger
        protections = ledger.protections(name)
        assert [(p.status, p.kcv) for p in protections] == [("active", kcv)]
        assert ledger.ceremony(ceremony).outcome == "done"
        events = ledger.events(ceremony=ceremony)
        assert max(Counter(event.key for event in events).values()) == 1
        kinds = Counter(event.type for event in events)
        for kind in ("ceremony-opened", "ceremony-closed", "protection-committed", "released"):
            assert kinds[kind] <= 1
        assert (kinds["ceremony-opened"], kinds["ceremony-closed"]) == (1, 1)
        if ".init." in ceremony:
            assert kinds["protection-committed"] == 1
            proven = [json.loads(event.body)["keystore"] for event in events if event.type == "data-key-proven"]
            assert sorted(set(proven)) == sorted(self.gated.keystores)


@pytest.fixture(scope="module", name="kinds")
async def _kinds(gated: GatedHouse) -> dict[str, list[str]]:
    """The activities of a whole init and a whole unseal, from their histories."""
    name = gated.fresh_name()
    handle = await gated.start_init(name)
    await gated.approve(handle, QUORUM)
    made = InitResult.model_validate(await ended(handle))
    asked = await gated.ask(name, made)
    await gated.approve(asked.handle, QUORUM)
    await ended(asked.handle)
    found = {"init": await boundaries(gated, handle), "unseal": await boundaries(gated, asked.handle)}
    assert len(found["init"]) >= 13
    assert len(found["unseal"]) >= 8
    return found


def stops(kinds: Sequence[str], *roles: str) -> list[tuple[str, str]]:
    """Both sides of every activity of these roles."""
    return [(kind, when) for kind in kinds if role_of(kind) in roles for when in ("before", "after")]


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("roles", [("orchestrator",), ("strongroom", "keystores")], ids="+".join)
async def test_killing_the_server_during_any_activity_of_an_init_loses_nothing(
    gated: GatedHouse, kinds: dict[str, list[str]], roles: tuple[str, ...]
) -> None:
    held = Held(gated)
    await held.lead_inits(stops(kinds["init"], *roles))
    gated.kill_temporal()
    gated.start_temporal_again()
    held.open()
    await held.finish()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_killing_the_server_during_any_activity_of_an_unseal_loses_nothing(
    gated: GatedHouse, kinds: dict[str, list[str]]
) -> None:
    held = Held(gated)
    await held.lead_unseals(stops(kinds["unseal"], "orchestrator", "strongroom", "keystores"))
    gated.kill_temporal()
    gated.start_temporal_again()
    held.open()
    await held.finish()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("role", ["orchestrator", "strongroom", "keystores"])
async def test_killing_a_worker_during_any_of_its_own_activities_loses_nothing(
    gated: GatedHouse, kinds: dict[str, list[str]], role: str
) -> None:
    held = Held(gated)
    await held.lead_inits(stops(kinds["init"], role))
    await held.lead_unseals(stops(kinds["unseal"], role))
    processes = [role] if role != "keystores" else [f"keystore-{name}" for name in gated.keystores]
    gated.kill(*processes)
    held.open()
    gated.start_again(*processes)
    await held.finish()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["orchestrator", "strongroom", "keystore-bao-1"])
async def test_killing_a_worker_while_others_are_at_work_loses_nothing(
    gated: GatedHouse, kinds: dict[str, list[str]], victim: str
) -> None:
    mine = "keystores" if victim.startswith("keystore") else victim
    others = [(kind, "before") for kind in kinds["init"] if role_of(kind) != mine]
    held = Held(gated)
    await held.lead_inits(others)
    gated.kill(victim)
    held.open()
    gated.start_again(victim)
    await held.finish()


async def test_cancelling_at_any_activity_leaves_only_a_record(gated: GatedHouse, kinds: dict[str, list[str]]) -> None:
    held = Held(gated)
    before_commit = kinds["init"][: kinds["init"].index(names.COMMIT_PROTECTION)]
    await held.lead_inits([(kind, "before") for kind in before_commit if kind != names.HOLD_SESSION])
    wrong = []
    for (name, handle), gate in zip(held.inits.items(), held.gates, strict=True):
        ceremony = (await gated.status(handle)).ceremony
        await handle.cancel()
        error = await failure(handle)
        gate.open()
        record = gated.ledger.ceremony(ceremony) if names.BEGIN_CEREMONY not in gate.file.name else None
        said = (type(error).__name__, record.outcome if record else "", record.detail if record else "")
        if said not in (
            ("CeremonyEnded", "refused", "cancelled by an operator"),
            ("CeremonyEnded", "", ""),
        ):
            wrong.append((gate.file.name, said, error.message))
        assert [p.status for p in gated.ledger.protections(name)] == []
        await clean(handle)
    assert wrong == []


@pytest.mark.parametrize(
    "activity",
    [
        names.COMMIT_PROTECTION,
        pytest.param(names.NOTE_COMMIT, marks=pytest.mark.slow),
        pytest.param(names.CLOSE_CEREMONY, marks=pytest.mark.slow),
    ],
)
async def test_a_cancellation_after_the_commit_comes_too_late(gated: GatedHouse, activity: str) -> None:
    held = Held(gated)
    await held.lead_inits([(activity, "after")])
    for handle in held.inits.values():
        await handle.cancel()
        await asyncio.sleep(0.2)
    held.open()
    await held.finish()


@pytest.mark.slow
async def test_a_cancellation_after_the_release_comes_too_late(gated: GatedHouse) -> None:
    held = Held(gated)
    await held.lead_unseals([(names.CLOSE_CEREMONY, "before")])
    for asked in held.unseals.values():
        await asked.handle.cancel()
        await asyncio.sleep(0.2)
    held.open()
    await held.finish()
