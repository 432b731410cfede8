"""Record the histories of whole ceremonies on a real installation: `python -m tests.workflows.record_histories`.

They are what `test_replay` replays: run this again whenever a workflow was changed on purpose. Nothing in
them is secret; names of hosts, processes and files are replaced.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowFailureError, WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter

from deploy.emulators.fault_proxy import Answer, Rule
from tests.workflows.gated import GatedHouse, wait_for_gates
from tests.workflows.people import Handle, ended
from workers import ceremony_client
from workers.embedded.stack import CUSTODIANS
from workflows.contracts import names
from workflows.contracts.messages import DrillRequest, InitResult, ReportRequest

FOLDER = Path(__file__).parent.parent / "histories"
QUORUM = CUSTODIANS[:3]
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

    async def others(self, made: InitResult) -> None:
        """A report and a drill."""
        house = self.house
        handle = await house.client.start_workflow(
            "ReportWorkflow",
            ReportRequest(kind="status", master_key=made.master_key),
            id="masterkey-report/recorded",
            task_queue=names.ORCHESTRATOR_QUEUE,
        )
        await self.write("report", handle)
        ceremony = names.new_ceremony_id(made.master_key, "drill")
        request = DrillRequest(master_key=made.master_key, ceremony=ceremony)
        await self.write("drill", await ceremony_client.start(house.client, "DrillWorkflow", request))

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
        house = GatedHouse.start(Path(temporary))
        try:
            assert house.stack.temporal is not None
            house.client = await Client.connect(house.stack.temporal.endpoint, data_converter=pydantic_data_converter)
            recorder = Recorder(house, folder)
            sss, seal = await recorder.inits()
            await recorder.unseals(sss, seal)
            await recorder.others(sss)
        finally:
            house.stop()


def main() -> None:
    """Record into the folder that is named, or the usual one."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(record(folder))


if __name__ == "__main__":
    main()
