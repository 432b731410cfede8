"""An upgrade of the orchestrator while ceremonies wait: two builds that differ in every workflow's code.

Follows the runbook `deploy/runbooks/upgrade.md`, going back included.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.service import RPCError

from tests.conftest import Installation, start_installation
from workers.builds import build_id
from workers.client import ceremonies as ceremony_client
from workers.client import running, upkeep
from workers.client.ssh import public_key_of, sign_with_key
from workers.connection import DATA_CONVERTER
from workers.local.process import Service, ServiceFailed, launch_service, wait_until_ready
from workers.local.stack import COMMAND, CUSTODIANS
from workers.roles import READY
from workflows.contracts import names
from workflows.contracts.trust.canonical import Signed, seconds
from workflows.contracts.trust.plan import Approval, parse_plan
from workflows.contracts.trust.service_errors import CeremonyEnded, Unserved
from workflows.contracts.trust.signatures import fingerprint

ROOT = Path(__file__).parent.parent.parent
QUORUM = CUSTODIANS[:3]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

_PINNED = """        await workflow.sleep(timedelta(milliseconds=20))  # of another build
"""
_GATED = """        if workflow.patched("of-another-build"):
            await workflow.sleep(timedelta(milliseconds=20))
"""
_IMPORT = "from datetime import timedelta"
_RUN = re.compile(r'(    async def run\(self, [^\n]*\n(?:        """.*?"""\n))', re.DOTALL)


def copy_of_the_product(folder: Path) -> Path:
    """A copy of the installed packages, which a PYTHONPATH puts before those."""
    for package in ("workflows", "activities", "workers", "deploy"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def another_build(folder: Path) -> Path:
    """A copy of the product in which every workflow does something more, first of all; behind a gate where it must."""
    copy_of_the_product(folder)
    pinned = {"init.py", "unseal.py", "reshard.py", "recover.py"}
    changed = 0
    for name in (*pinned, "seal.py", "order.py", "drill.py", "upkeep.py"):
        path = folder / "workflows" / name
        more = _PINNED if name in pinned else _GATED
        text, count = _RUN.subn(rf"\g<1>{more}", path.read_text(encoding="utf-8"))
        text = text.replace("from temporalio import workflow", f"{_IMPORT}\nfrom temporalio import workflow", 1)
        path.write_text(text, encoding="utf-8")
        changed += count
    assert changed >= 11, "every workflow is changed"
    return folder


@dataclass
class Upgrading:
    """An installation whose orchestrator is replaced while ceremonies wait."""

    installation: Installation
    client: Client
    tree: Path
    old: Service
    receiving: subprocess.Popen[str] | None = None
    """The recipient's program, whose unseal waits."""
    lifting: str = ""
    """The ceremony that lifts a stop, and waits for its quorum."""

    def orchestrator(self, name: str, *flags: str, tree: Path | None = None) -> Service:
        """Start one more orchestrator, of this build or of the other one."""
        stack = self.installation.stack
        log = self.installation.folder / "logs" / f"{name}.log"
        tables = {"ledger": {"url": "sqlite:///masterkey.db"}, "bundle": {"directory": "bundles"}}
        config = stack.write_configuration(name, tables)
        command = [*COMMAND, "worker", "orchestrator", *flags, "--config", str(config)]
        own = {"PYTHONPATH": str(tree)} if tree else {}
        service = stack.services[name] = launch_service(name, command, log=log, env={**stack.environment(), **own})
        wait_until_ready(service, lambda: READY.encode() in log.read_bytes() and b" build " in log.read_bytes())
        return service

    def say(self, *words: str, config: str = "client") -> dict[str, Any]:
        return self.installation.stack.masterkey(*words, config=config)

    def begin(self, *words: str) -> str:
        """Start a ceremony that then waits for its quorum."""
        return str(self.say(*words, "--no-wait")["ceremony"])

    async def approve(self, ceremony: str) -> None:
        """Three custodians approve, each by a client that knows nothing of builds."""
        for name in QUORUM:
            key, now = self.installation.folder / "keys" / name, seconds(datetime.now(UTC))
            plan = parse_plan(str((await self.reach(ceremony, "quorum", "waiting")).plan))
            document = Approval(
                decision="approve",
                plan=plan,
                plan_digest=plan.digest,
                custodian=fingerprint(public_key_of(key)),
                issued=now,
                expires=min(plan.expires, now + timedelta(hours=1)),
            ).canonical()
            signed = Signed(document=document.decode(), signature=sign_with_key(document, key, Approval.TYPE))
            await ceremony_client.submit(self.client, ceremony, signed)

    async def reach(self, ceremony: str, *phases: str) -> Any:
        """Wait until a ceremony is in one of these phases; gives its status."""

        async def look() -> Any:
            found = await ceremony_client.status(self.client, ceremony)
            assert found.phase in (*phases, "planning", "assessing") or found.phase not in ("failed", "expired"), found
            return found if found.phase in phases else None

        return await until(look)

    async def finish(self, ceremony: str) -> Any:
        await self.approve(ceremony)
        return await self.reach(ceremony, "done")

    async def waiting(self, action: str) -> str | None:
        """The open ceremony of an action."""
        found = self.say("ceremony", "list")["ceremonies"]
        return next((str(one["ceremony"]) for one in found if one["action"] == action), None)

    def refused(self, *words: str) -> str:
        """What a command says that is refused."""
        with pytest.raises(ServiceFailed) as refusal:
            self.say(*words)
        return str(refusal.value)

    async def build_of(self, ceremony: str) -> str:
        return str((await ceremony_client.status(self.client, ceremony)).build)

    def opened_by(self, ceremony: str) -> str:
        """The build that the event log names."""
        events = self.installation.ledger.events(ceremony=ceremony)
        return str(json.loads(next(event.body for event in events if event.type == "ceremony-opened"))["build"])


async def until(look: Callable[[], Awaitable[Any]], limit: float = 60) -> Any:
    end = asyncio.get_running_loop().time() + limit
    while True:
        found = await look()
        if found:
            return found
        assert asyncio.get_running_loop().time() < end, f"it did not come about in {limit:g} s"
        await asyncio.sleep(0.1)


async def until_unserved(upgrading: Upgrading, ceremony: str) -> None:
    """Look at a ceremony until that is refused."""

    async def look() -> bool:
        with suppress(RPCError):
            await ceremony_client.status(upgrading.client, ceremony)
        return False

    await until(look, 120)


@pytest_asyncio.fixture
async def upgrading(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Upgrading]:
    """One MasterKey for each ceremony, the old orchestrator running."""
    flags = list(getattr(request, "param", ()))
    installation = start_installation(tmp_path / "installation", count=4)
    try:
        assert installation.stack.temporal is not None
        client = await Client.connect(installation.stack.temporal.endpoint, data_converter=DATA_CONVERTER)
        found = Upgrading(
            installation, client, another_build(tmp_path / "tree"), installation.stack.services["orchestrator"]
        )
        if flags:
            found.say("worker", "promote", "--unversioned", config="orchestrator")
            found.old.stop()
            found.old = found.orchestrator("old", *flags)
        for name in ("mk-1", "mk-2", "mk-3", "mk-4"):
            shards = [word for index in (1, 2, 3) for word in ("--keystore", f"bao-{index}")]
            await found.finish(found.begin("init", name, "--mode", "sss", "--threshold", "2", *shards))
        installation.stack.pin({"mk-1": found.say("status", "mk-1")["protections"][0]["kcv"]})
        yield found
    finally:
        installation.stack.stop()


KEY_OF_ALICE = "keys/alice"


async def wait_for_people(upgrading: Upgrading) -> dict[str, str]:
    """An init, an unseal, a reshard and a recovery that wait for their quorums; a stop in force; drills on schedule."""
    two = ["--keystore", "bao-1", "--keystore", "bao-2"]
    other = [*two, "--keystore", "bao-4"]
    started = {
        "init": upgrading.begin("init", "mk-0", "--mode", "sss", "--threshold", "2", *two),
        "reshard": upgrading.begin("reshard", "mk-2", *other),
        "recover": upgrading.begin("recover", "mk-3", *other),
    }
    upgrading.receiving = upgrading.installation.stack.background("unseal", "mk-1", "--exec", "--", "wc", "-c")
    started["unseal"] = await until(lambda: upgrading.waiting("unseal"))
    upgrading.say("drill", "mk-1", "--every", "24")
    alice = str(upgrading.installation.folder / KEY_OF_ALICE)
    upgrading.say("seal", "mk-4", "--key", alice, "--reason", "a test", "--yes")
    upgrading.lifting = upgrading.begin("seal", "mk-4", "--lift")
    for ceremony in (*started.values(), upgrading.lifting):
        await upgrading.reach(ceremony, "quorum")
    return started


async def lift(upgrading: Upgrading) -> str:
    """Approve the lift, which has waited across the upgrade; gives the build that did its last step."""
    await upgrading.finish(upgrading.lifting)
    assert upgrading.say("status", "mk-4")["stops"] == []
    history = await upgrading.client.get_workflow_handle(names.workflow_id(upgrading.lifting)).fetch_history()
    done = EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
    tasks = [one.workflow_task_completed_event_attributes for one in history.events if one.event_type == done]
    return str(tasks[-1].worker_version.build_id)


async def drilled_since(upgrading: Upgrading, build: str) -> None:
    """Let the schedule's time come, and wait for the drill that this build then begins."""
    await upgrading.client.get_schedule_handle("masterkey-drill/mk-1").trigger()

    async def look() -> bool:
        events = upgrading.installation.ledger.events("mk-1")
        return any(
            event.type == "ceremony-opened" and ".drill." in event.ceremony and json.loads(event.body)["build"] == build
            for event in events
        )

    await until(look)


async def test_ceremonies_stay_on_the_build_that_began_them_and_new_ones_begin_on_the_new_one(
    upgrading: Upgrading,
) -> None:
    ours = build_id()
    started = await wait_for_people(upgrading)
    for ceremony in started.values():
        assert await upgrading.build_of(ceremony) == ours
    # The upgrade: the new build runs beside the old one, and becomes current because it is new.
    upgrading.orchestrator("new", tree=upgrading.tree)
    told = upgrading.say("worker", "builds")
    new = next(one["build"] for one in told["builds"] if one["state"] == "current")
    assert new != ours
    draining = next(one for one in told["builds"] if one["build"] == ours)
    assert (draining["state"], draining["served"]) == ("draining", True)
    assert {one["name"] for one in draining["ceremonies"]} >= set(started.values())
    # The stop was ordered before; it is lifted by the new code. Drills go on, on the new code.
    assert await lift(upgrading) == new
    assert upgrading.opened_by(upgrading.lifting) == ours
    await drilled_since(upgrading, new)
    # An orchestrator of the old build that restarts takes nothing over.
    upgrading.old.stop()
    upgrading.old = upgrading.orchestrator("old")
    assert upgrading.say("worker", "builds")["builds"][0]["state"] == "current"
    for ceremony in started.values():
        await upgrading.finish(ceremony)
        assert upgrading.opened_by(ceremony) == ours
    assert upgrading.receiving is not None
    said, error = upgrading.receiving.communicate(timeout=120)
    assert upgrading.receiving.returncode == 0, error
    assert json.loads(said)["ok"]
    drill = upgrading.say("drill", "mk-2")
    assert (drill["healthy"], upgrading.opened_by(drill["ceremony"])) == (True, new)
    # Nothing is left on the old build: it may go.
    left = next(one for one in upgrading.say("worker", "builds")["builds"] if one["build"] == ours)
    assert left["ceremonies"] == []
    for ceremony in started.values():
        auditing = upgrading.installation.stack.background("audit", "replay", ceremony, config="orchestrator")
        found, _ = auditing.communicate(timeout=120)
        assert json.loads(found)["agrees"], found
    # And back: the older build is made current again.
    upgrading.say("worker", "promote", ours)
    again = upgrading.begin("reshard", "mk-2", "--keystore", "bao-1", "--keystore", "bao-2", "--keystore", "bao-3")
    await upgrading.finish(again)
    assert upgrading.opened_by(again) == ours


async def test_a_ceremony_whose_build_is_gone_for_good_is_told_of_and_ended_with_nothing_lost(
    upgrading: Upgrading, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = await wait_for_people(upgrading)
    upgrading.orchestrator("new", tree=upgrading.tree)
    upgrading.old.stop()
    # A worker counts as gone 75 s after it last asked for work. Here nothing looks whether the new one is there.
    monkeypatch.setattr(running, "_ALIVE", timedelta(seconds=3))
    with pytest.raises(Unserved, match="nothing is lost") as waiting:
        await until_unserved(upgrading, started["reshard"])
    assert f"masterkey ceremony end {started['reshard']}" in waiting.value.next_step
    # The stop and its lift need no build but the current one, and a new stop is heard at once.
    await lift(upgrading)
    alice = str(upgrading.installation.folder / KEY_OF_ALICE)
    stopped = upgrading.say("seal", "mk-4", "--key", alice, "--reason", "another", "--yes")
    assert all(one["acknowledged"] for one in stopped["keystores"])
    shown = next(one for one in upgrading.say("worker", "builds")["builds"] if one["state"] == "draining")
    assert not shown["served"]
    waits = {one["ceremony"]: one["served"] for one in upgrading.say("status", "mk-2")["running"]}
    assert waits == {started["reshard"]: False}
    refused = upgrading.refused("reshard", "mk-2", "--keystore", "bao-1", "--keystore", "bao-2", "--no-wait")
    assert f"masterkey ceremony end {started['reshard']}" in refused
    for ceremony in started.values():
        assert "terminated" in upgrading.say("ceremony", "end", ceremony)["what"]
    upgrading.say("ledger", "collect")
    closed = upgrading.say("ceremony", "list", "--all")["ceremonies"]
    assert {one["outcome"] for one in closed if one["ceremony"] in started.values()} == {"failed"}
    # Nothing is lost: what was in force is, and the same can be begun anew.
    for name in ("mk-1", "mk-2", "mk-3"):
        assert [one["status"] for one in upgrading.say("status", name)["protections"]] == ["active"]
    await upgrading.finish(upgrading.begin("reshard", "mk-2", "--keystore", "bao-1", "--keystore", "bao-2"))


async def test_a_ceremony_is_moved_only_to_a_build_that_does_the_very_same(
    upgrading: Upgrading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = copy_of_the_product(tmp_path / "alike")
    with (alike / "workflows" / "init.py").open("a", encoding="utf-8") as file:
        file.write("# Another build, which does nothing else.\n")
    two = ["--keystore", "bao-1", "--keystore", "bao-2"]
    same = upgrading.orchestrator("same", tree=alike)
    moved = upgrading.begin("init", "mk-0", "--mode", "sss", "--threshold", "2", *two)
    await upgrading.reach(moved, "quorum")
    begun_on = await upgrading.build_of(moved)
    other = upgrading.orchestrator("other", tree=upgrading.tree)
    stays = upgrading.begin("reshard", "mk-2", *two)
    await upgrading.reach(stays, "quorum")
    same.stop()
    other.stop()
    # What only looks goes to the current build, and no worker of it is left: so the command says where to look.
    monkeypatch.setattr(upkeep, "_REPORT_LIMIT", timedelta(seconds=2))
    assert "masterkey worker builds" in upgrading.refused("status", "mk-2")
    monkeypatch.undo()
    # This installation's build is the first one, of which a worker runs still: it is made current again.
    upgrading.say("worker", "promote")
    assert upgrading.say("ceremony", "move", moved) | {"ok": True} == {
        "ok": True,
        "ceremony": moved,
        "from": begun_on,
        "to": build_id(),
    }
    await upgrading.finish(moved)
    assert upgrading.opened_by(moved) == begun_on != build_id()
    assert "in another way" in upgrading.refused("ceremony", "move", stays)
    assert [one["ceremony"] for one in upgrading.say("status", "mk-2")["running"]] == [stays]


@pytest.mark.parametrize("upgrading", [["--unversioned"]], indirect=True)
async def test_without_versioning_a_waiting_ceremony_ends_with_one_line_and_loses_nothing(
    upgrading: Upgrading,
) -> None:
    started = await wait_for_people(upgrading)
    upgrading.old.stop()
    upgrading.orchestrator("new", "--unversioned", tree=upgrading.tree)
    for what, ceremony in started.items():
        if what == "unseal":
            continue
        with pytest.raises(CeremonyEnded, match="another build"):
            await upgrading.approve(ceremony)
    assert upgrading.receiving is not None
    _, error = upgrading.receiving.communicate(timeout=90)
    assert upgrading.receiving.returncode == 1
    assert [line for line in error.splitlines() if "another build" in line], error
    assert "Traceback" not in error
    await lift(upgrading)
    alice = str(upgrading.installation.folder / KEY_OF_ALICE)
    stopped = upgrading.say("seal", "mk-4", "--key", alice, "--reason", "another", "--yes")
    assert all(one["acknowledged"] for one in stopped["keystores"])
    upgrading.say("ledger", "collect")
    assert upgrading.say("ceremony", "list")["ceremonies"] == []
    for name in ("mk-1", "mk-2", "mk-3"):
        assert [one["status"] for one in upgrading.say("status", name)["protections"]] == ["active"]
    await upgrading.finish(upgrading.begin("reshard", "mk-2", "--keystore", "bao-1", "--keystore", "bao-2"))
