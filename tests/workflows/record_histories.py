"""Record the histories of whole ceremonies on a real installation: `python -m tests.workflows.record_histories`.

They are what `test_replay` replays. Once for each version: what is kept is never written over, because whoever
upgrades has ceremonies in flight with such histories (`workflows/README.md`). Nothing in them is secret; names of
hosts, processes and files are replaced.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from temporalio.client import WorkflowFailureError, WorkflowHistory

from deploy.emulators.fault_proxy import Answer, Rule
from tests.driving.gates import wait_for_gates
from tests.driving.reading import Handle, ended, eventually
from tests.driving.site import SharedTemporal
from tests.workflows.gated import GatedHouse
from workers.audit.histories import workflow_of
from workers.builds import build_id, product_version
from workers.client import ceremonies as ceremony_client
from workers.local.stack import CUSTODIANS, to_toml
from workflows.catalogue import GATED
from workflows.contracts import names
from workflows.contracts.messages.report import ReportRequest
from workflows.contracts.messages.requests import (
    ChangedPlan,
    CollectRequest,
    DrillRequest,
    HoldRequest,
    ShardRequest,
    SurveyRequest,
)
from workflows.contracts.messages.results import HoldResult, InitResult, ReshardResult
from workflows.contracts.messages.status import CeremonyStatus
from workflows.contracts.trust.canonical import seconds
from workflows.contracts.trust.stop import Ended

RELEASES = Path(__file__).parent.parent / "histories"
"""A folder for each version: its histories, their checksums, and the build that made them."""
FOLDER = RELEASES / product_version()
SUMS, BUILD = "SHA256SUMS", "BUILD"
QUORUM = CUSTODIANS[:3]
LIGHT = ("alice", "carol", "dave")
"""A quorum without RSA: shorter histories."""
PAPER = "paper-5"
_WHO = re.compile(r"\d+@[A-Za-z0-9_.-]+")


class Recorder:
    """Runs ceremonies and writes their histories."""

    def __init__(self, house: GatedHouse, folder: Path) -> None:
        self.house = house
        self.folder = folder

    async def write(self, name: str, handle: Handle) -> None:
        """Wait for a ceremony's end, and write its history as `name`.json."""
        try:
            await ended(handle)
        except WorkflowFailureError as error:
            print(f"{name}: {error.cause}")
        history = await handle.fetch_history()
        text = tidy(handle.id, history.to_json(), str(self.house.stack.folder))
        (self.folder / f"{name}.json").write_text(text, encoding="utf-8")
        print(f"{name}: {len(history.events)} events, {len(text) // 1024} KiB")

    async def inits(self) -> tuple[InitResult, InitResult]:
        """Inits that succeed, at once and at the second attempt, are refused, expire, and are cancelled."""
        house, made = self.house, []
        for mode in ("sss", "seal"):
            handle = await house.start_init(house.fresh_name(), mode)
            await house.approve(handle, QUORUM)
            await self.write(f"init-{mode}", handle)
            made.append(InitResult.model_validate(await ended(handle)))
        handle = await house.start_init(house.fresh_name())
        plan = await house.plan(handle)
        await handle.signal("approve", "garbage")
        await ceremony_client.submit(house.client, plan.ceremony, house.decision("alice", plan))
        await ceremony_client.submit(house.client, plan.ceremony, house.decision("alice", plan))
        for who in ("alice", "dave", "erin"):
            await handle.signal("approve", house.decision(who, plan, "reject"))
        await self.write("init-refused", handle)
        await self.write("init-expired", await house.start_init(house.fresh_name(), quorum_timeout_seconds=1))
        handle = await house.start_init(house.fresh_name())
        await house.plan(handle)
        await house.idle(handle)
        await handle.cancel()
        await self.write("init-cancelled", handle)
        name = house.fresh_name()
        handle = await house.start_init(name)
        await house.plan(handle)
        gate = house.gate(name, names.PROTECT)
        await house.approve(handle, QUORUM)
        await self.without_strongroom([gate])
        await self.write("init-second-attempt", handle)
        await self.write("init-name-taken", await house.start_init(made[0].master_key))
        return made[0], made[1]

    async def unseals(self, sss: InitResult, seal: InitResult) -> None:
        """Unseals that succeed: usual, hedged, after a lost session; and one that no keystore will serve."""
        house = self.house
        for name, made in (("sss", sss), ("seal", seal)):
            asked = await house.ask(made.master_key, made)
            if made is sss:
                await house.approve(asked.handle, QUORUM)
            await self.write(f"unseal-{name}", asked.handle)
        house.proxies[0].rule = Answer(503, body=b"{}")
        asked = await house.ask(sss.master_key, sss)
        await house.approve(asked.handle, CUSTODIANS[:4])
        await self.write("unseal-hedged", asked.handle)
        house.proxies[0].rule = Rule()
        ceremony = names.new_ceremony_id(sss.master_key, "unseal")
        asked = await house.ask(sss.master_key, sss, ceremony=ceremony)
        await house.plan(asked.handle)
        gate = house.gate(ceremony, names.UNWRAP_DATA_KEY)
        await house.approve(asked.handle, QUORUM)
        await self.without_strongroom([gate])
        await self.write("unseal-session-lost", asked.handle)
        for proxy in house.proxies:
            proxy.rule = Answer(403, body=b'{"errors": ["permission denied"]}')
        asked = await house.ask(seal.master_key, seal)
        await self.write("unseal-denied", asked.handle)
        for proxy in house.proxies:
            proxy.rule = Rule()

    async def reshards(self, made: InitResult) -> None:
        """Reshards: to other keystores, to the other mode, refused, and at the second attempt."""
        house, name = self.house, made.master_key
        handle = await house.start_reshard(name, house.keystores[1:])
        await house.approve(handle, QUORUM)
        await self.write("reshard-sss", handle)
        handle = await house.start_reshard(name, house.keystores[:2], retention_hours=1)
        plan = await house.plan(handle)
        for who in ("alice", "dave", "erin"):
            await handle.signal("approve", house.decision(who, plan, "reject"))
        await self.write("reshard-refused", handle)
        handle = await house.start_reshard(name, house.keystores[:2], "seal", retention_hours=0)
        await house.approve(handle, ("bob", "carol", "dave"))
        await self.write("reshard-seal", handle)
        handle = await house.start_reshard(name, house.keystores[:1], "seal")
        await house.plan(handle)
        gate = house.gate(name, names.RESHARD)
        await house.approve(handle, LIGHT)
        await self.without_strongroom([gate])
        await self.write("reshard-second-attempt", handle)

    async def recoveries(self) -> str:
        """A key is deleted and replaced; another plan is made while it waits; nothing is lost; all is lost."""
        house = self.house
        sss, seal = house.fresh_name(), house.fresh_name()
        await house.init(sss)
        await house.init(seal, "seal", count=2)
        await self.write("recover-nothing-lost", await house.start_recover(seal))
        house.lose("bao-1")
        handle = await house.start_recover(sss)
        await house.approve(handle, QUORUM)
        await self.write("recover-lost-key", handle)
        house.proxies[1].rule = Answer(503, body=b"{}")
        handle = await house.start_recover(seal)
        await house.approve(handle, LIGHT)
        await house.reach(handle, "waiting")
        wish = ChangedPlan(shards=(ShardRequest(keystore="bao-3"),))
        await ceremony_client.update(handle, "replan", wish, str)
        await house.approve(handle, LIGHT)
        await house.reach(handle, "reconstructing", "waiting")
        house.proxies[1].rule = Rule()
        await self.write("recover-replanned", handle)
        house.lose("bao-3")
        await self.write("recover-hopeless", await house.start_recover(seal))
        house.make_anew("bao-1")
        house.make_anew("bao-3")
        return sss

    async def stops(self) -> None:
        """A stop, with a recipient that lets go and an unseal that ends; the lift; a holder that ends by itself."""
        house, name = self.house, self.house.fresh_name()
        made = await house.init(name, "seal", count=1)
        holders = []
        for _ in range(2):
            asked = await house.ask(name, made)
            await ended(asked.handle)
            request = HoldRequest(ceremony=asked.request.ceremony, master_key=name)
            holders.append((asked, await ceremony_client.hold(house.client, request)))
            await house.idle(holders[-1][1])
        await holders[1][1].signal("released")
        await self.write("hold-released", holders[1][1])
        house.proxies[0].rule = Answer(503, body=b"{}")
        running = await house.ask(name, made)
        await house.reach(running.handle, "waiting")
        stop = house.stop_by("erin", name)
        handle = await house.start_seal(name, stop)
        held, holder = holders[0]
        assert HoldResult.model_validate(await ended(holder)).stop == stop
        said = Ended(
            master_key=name,
            ceremony=held.request.ceremony,
            stop=stop.digest,
            recipient=house.identity("recipient").fingerprint,
            time=seconds(datetime.now(UTC)),
        )
        signed = house.sign("recipient", said).model_dump()
        await handle.signal("acknowledge", {"workflow": holder.id, "ended": signed})
        await self.write("seal", handle)
        await self.write("hold-stopped", holder)
        await self.write("unseal-stopped", running.handle)
        house.proxies[0].rule = Rule()
        handle = await house.start_order(name, "lift")
        await house.approve(handle, LIGHT)
        await self.write("order-lift", handle)

    async def orders(self, name: str) -> None:
        """An emergency protection is added, retired and destroyed."""
        house = self.house
        await house.init(name)
        handle = await house.start_reshard(name, ["bao-2"], "seal", purpose="emergency")
        await house.approve(handle, ("bob", "carol", "dave"))
        await self.write("reshard-emergency", handle)
        manifest = ReshardResult.model_validate(await ended(handle)).manifest.digest
        for action in ("retire", "destroy"):
            handle = await house.start_order(name, action, manifest)
            await house.approve(handle, LIGHT)
            await self.write(f"order-{action}", handle)

    async def others(self, name: str) -> None:
        """A report, a drill, a collection, a survey."""
        house = self.house
        for kind, request in (
            ("Report", ReportRequest(kind="status", master_key=name)),
            ("Collect", CollectRequest(grace_seconds=0)),
            ("Survey", SurveyRequest(keystores=(*house.keystores[:1], "unheard-of"), nonce="0" * 32)),
        ):
            handle = await house.client.start_workflow(
                f"{kind}Workflow",
                request,
                id=f"masterkey-{kind.lower()}/recorded",
                task_queue=names.ORCHESTRATOR_QUEUE,
            )
            await self.write(kind.lower(), handle)
        ceremony = names.new_ceremony_id(name, "drill")
        drill = DrillRequest(master_key=name, ceremony=ceremony)
        await self.write("drill", await ceremony_client.start(house.client, "DrillWorkflow", drill))

    async def offline(self) -> None:
        """A keystore that erin keeps offline gets a shard, opens it, and proves it."""
        house, stack = self.house, self.house.stack
        made = stack.masterkey("offline", "keygen", PAPER, "--out", str(stack.folder / "erins"), "--custodian", "erin")
        description = stack.folder / "roster.toml"
        description.write_text(description.read_text() + "\n" + made["roster"])
        stack.masterkey("roster", "propose", str(description))
        for who in QUORUM:
            stack.masterkey("roster", "sign", "--key", str(stack.folder / "keys" / who), "--yes")
        roster = {"file": "roster.json", "genesis": stack.genesis, "minimum_version": 2}
        (stack.folder / "erin.toml").write_text(to_toml({"roster": roster}) + "\n\n" + made["configuration"])
        name = house.fresh_name()
        handle = await house.start_init(name, shards=tuple(ShardRequest(keystore=one) for one in ("bao-1", PAPER)))
        await house.approve(handle, LIGHT)
        await self.contribute(handle)
        await self.write("init-offline", handle)
        asked = await house.ask(name, InitResult.model_validate(await ended(handle)))
        await house.approve(asked.handle, ("alice", "dave", "erin"))
        await self.contribute(asked.handle)
        await self.write("unseal-offline", asked.handle)
        request = DrillRequest(master_key=name, ceremony=names.new_ceremony_id(name, "drill"), offline_seconds=60)
        handle = await ceremony_client.start(house.client, "DrillWorkflow", request)
        await self.contribute(handle)
        await self.write("drill-offline", handle)

    async def contribute(self, handle: Handle) -> None:
        """Let erin contribute at her own machine, once she is asked."""
        status = await eventually(lambda: self._wanted(handle))
        words = ("contribute", status.ceremony, "--keystore", PAPER, "--yes")
        child = self.house.stack.background(*words, config="erin")
        _, err = await asyncio.to_thread(child.communicate, None, 60)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, words, stderr=err)

    async def _wanted(self, handle: Handle) -> CeremonyStatus | None:
        status = await self.house.status(handle)
        return status if status.wanted and not status.needed else None

    async def without_strongroom(self, gates: list[Any]) -> None:
        """Kill the strongroom when somebody stands at the gates, and start it again."""
        await wait_for_gates(gates)
        self.house.kill("strongroom")
        self.house.start_again("strongroom")
        for gate in gates:
            gate.open()


def load(path: Path) -> WorkflowHistory:
    """A history that was recorded."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    return WorkflowHistory.from_json(recorded["workflow_id"], recorded["history"])


def tidy(workflow_id: str, text: str, folder: str) -> str:
    """A history without names of hosts and processes, and without stack traces."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: "" if key == "stackTrace" else walk(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        return _WHO.sub("1@worker", value) if isinstance(value, str) else value

    recorded = {"workflow_id": workflow_id, "history": walk(json.loads(text))}
    found = json.dumps(recorded, separators=(",", ":")) + "\n"
    for forbidden in (folder, str(Path(__file__).parent.parent.parent), socket.gethostname() + '"'):
        if forbidden in found:
            raise ValueError(f"the history names {forbidden}")
    return found


async def record(folder: Path) -> None:
    """Record everything into a folder."""
    with tempfile.TemporaryDirectory() as temporary:
        server = SharedTemporal(Path(temporary) / "temporal")
        house = GatedHouse.start(Path(temporary) / "site", server, vault=True)
        try:
            house.client = await house.stack.connect()
            recorder = Recorder(house, folder)
            sss, seal = await recorder.inits()
            await recorder.unseals(sss, seal)
            await recorder.reshards(sss)
            await recorder.others(await recorder.recoveries())
            await recorder.stops()
            await recorder.orders(house.fresh_name())
            await recorder.offline()
        finally:
            house.stop()
            server.stop()


def main() -> None:
    """Record into the folder that is named, or the usual one."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    if (folder / SUMS).exists():
        sys.exit(f"{folder.name} is recorded already: raise the version, its histories get a folder of their own")
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(record(folder))
    (folder / BUILD).write_text(f"{build_id()}\n", encoding="ascii")
    (folder / SUMS).write_text(checksums(folder), encoding="ascii")


def checksums(folder: Path) -> str:
    """A line for each history, as `sha256sum` prints it."""
    found = sorted(folder.glob("*.json"))
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in found)


def to_replay() -> list[Path]:
    """The histories that this version must replay: all of its own, and of earlier ones those of gated workflows."""
    gated = {workflow.__name__ for workflow in GATED}
    return [
        path for path in sorted(RELEASES.glob("*/*.json")) if path.parent == FOLDER or workflow_of(load(path)) in gated
    ]


if __name__ == "__main__":
    main()
