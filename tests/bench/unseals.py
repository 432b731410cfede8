"""How long an unseal takes, and a bare workflow of the same shape on the same server.

- `seal`, 1 of 2: from the start of the workflow to its result, as a client sees it.
- `sss`, 3 of 5: from the sending of the third approval to the result; the other two were counted before.

Server, keystores, ledger and sessions are real, and each role is a process of its own; so are the roles of the
bare workflow.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowHandle

from activities.crypto.hpke import PrivateKey
from activities.identity import Identity
from tests.bench import bare
from tests.bench.measure import Row, milliseconds_since, take_turns_async
from tests.conftest import Installation
from workers.client import ceremonies as ceremony_client
from workers.local.process import Service, launch_service, wait_until_ready
from workflows.contracts.messages.requests import InitRequest, ShardRequest, UnsealRequest
from workflows.contracts.messages.results import InitResult, UnsealResult
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.canonical import Signed, seconds
from workflows.contracts.trust.fields import SUITE, Mode
from workflows.contracts.trust.plan import Approval, RecipientRequest, parse_plan
from workflows.contracts.trust.protection import Manifest

APPROVERS = ("carol", "dave", "erin")
SHAPES: dict[Mode, tuple[int, int]] = {"seal": (1, 2), "sss": (3, 5)}
"""Threshold and number of shards of the two MasterKeys that are measured."""
AIM = "<= 2"
_PAUSE = 0.8
"""Seconds before each measurement: spares are ready again, and what the last one left behind is done."""


def start_bare_workers(installation: Installation) -> dict[str, Service]:
    """One process for each role, as the product has them."""
    stack = installation.stack
    started: dict[str, Service] = {}
    for role in bare.ROLES:
        log = installation.folder / "logs" / f"bare-{role}.log"
        command = [sys.executable, "-m", bare.__name__, role]
        started[role] = launch_service(
            f"bare {role}", command, log=log, env=stack.environment(), cwd=Path(__file__).parents[2]
        )
        stack.services[f"bare {role}"] = started[role]
    for service in started.values():
        wait_until_ready(service, lambda log=service.log: bare.READY.encode() in log.read_bytes())  # type: ignore[misc]
    return started


@dataclass
class Unseals:
    """Ceremonies of one installation, driven as a client and custodians drive them."""

    installation: Installation
    client: Client

    def identity(self, name: str) -> Identity:
        """The key of a custodian, the recipient or the strongroom."""
        return Identity.load(self.installation.folder / "keys" / name)

    async def init(self, mode: Mode) -> str:
        """Create a MasterKey, and give its name."""
        name, (threshold, count) = self.installation.fresh_name(), SHAPES[mode]
        request = InitRequest(
            ceremony=new_ceremony_id(name, "init"),
            master_key=name,
            mode=mode,
            threshold=threshold,
            shards=tuple(ShardRequest(keystore=f"bao-{index}") for index in range(1, count + 1)),
        )
        handle = await ceremony_client.start(self.client, "InitWorkflow", request)
        for approval in await self.approvals(handle):
            await handle.execute_update("submit", approval)
        await ceremony_client.watch(handle, InitResult, lambda status: None)
        return name

    async def approvals(self, handle: WorkflowHandle[Any, Any]) -> list[Signed]:
        """Approvals of three custodians, as soon as there is a plan to sign."""
        while (status := await ceremony_client.status_of(handle)).phase != "quorum":  # noqa: ASYNC110 - it is in another process
            await asyncio.sleep(0.01)
        # Until the plan is in the ledger too: nothing of that is to be in what is measured.
        await asyncio.sleep(_PAUSE)
        assert status.plan is not None
        plan, now = parse_plan(status.plan), seconds(datetime.now(UTC))
        return [
            identity.sign(
                Approval(
                    decision="approve",
                    plan=plan,
                    plan_digest=plan.digest,
                    custodian=identity.fingerprint,
                    issued=now,
                    expires=plan.expires,
                )
            )
            for identity in map(self.identity, APPROVERS)
        ]

    def request(self, name: str) -> UnsealRequest:
        """A recipient's signed request for the protection that is in force."""
        signed = Signed.model_validate(self._manifests(name))
        manifest, now, identity = (
            Manifest.parse(signed.document.encode()),
            datetime.now(UTC),
            self.identity("recipient"),
        )
        request = RecipientRequest(
            master_key=name,
            ceremony=new_ceremony_id(name, "unseal"),
            manifest=signed.digest,
            epoch=manifest.epoch,
            recipient=identity.fingerprint,
            suite=SUITE,
            hpke_public_key=PrivateKey().public_key,
            strongroom=manifest.strongroom,
            nonce=secrets.token_hex(16),
            issued=seconds(now),
            expires=seconds(now) + timedelta(minutes=4),
        )
        return UnsealRequest(ceremony=request.ceremony, master_key=name, request=identity.sign(request))

    def _manifests(self, name: str) -> dict[str, str]:
        record = self.installation.ledger.protection(name)
        return {"document": record.manifest, "signature": record.signature}

    async def seal(self, name: str) -> float:
        """Milliseconds from start to result."""
        request = self.request(name)
        await asyncio.sleep(_PAUSE)
        start = time.perf_counter()
        handle = await ceremony_client.start(self.client, "UnsealWorkflow", request)
        UnsealResult.model_validate(await handle.result())
        return milliseconds_since(start)

    async def sss(self, name: str) -> float:
        """Milliseconds from the sending of the last approval to the result."""
        handle = await ceremony_client.start(self.client, "UnsealWorkflow", self.request(name))
        *first, last = await self.approvals(handle)
        for approval in first:
            await handle.execute_update("submit", approval)
        await asyncio.sleep(_PAUSE)
        start = time.perf_counter()
        await handle.execute_update("submit", last)
        UnsealResult.model_validate(await handle.result())
        return milliseconds_since(start)

    async def bare(self, mode: Mode) -> float:
        """As `seal` and `sss`, with the workflow that does nothing."""
        await asyncio.sleep(_PAUSE)
        start = time.perf_counter()
        handle = await self.client.start_workflow(
            "BareUnseal", SHAPES[mode][0], id=f"bare/{secrets.token_hex(8)}", task_queue=bare.LEDGER
        )
        if mode == "sss":
            while not await handle.query("waits"):  # noqa: ASYNC110 - it is in another process
                await asyncio.sleep(0.01)
            await asyncio.sleep(_PAUSE)
            start = time.perf_counter()
            await handle.execute_update("approve")
        await handle.result()
        return milliseconds_since(start)

    async def check_shapes(self) -> None:
        """Fail unless product and bare workflow have run the same activities."""
        pairs: dict[tuple[str, str], Counter[str]] = {}
        async for found in self.client.list_workflows('WorkflowType in ("UnsealWorkflow", "BareUnseal")'):
            history = await self.client.get_workflow_handle(found.id, run_id=found.run_id).fetch_history()
            names = [
                event.activity_task_scheduled_event_attributes.activity_type.name
                for event in history.events
                if event.HasField("activity_task_scheduled_event_attributes")
            ]
            mode, counted = "sss" if "record_plan" in names else "seal", Counter(names)
            # Before the last approval, which is off the clock, events may be recorded more than once.
            counted["record_events"] = min(counted["record_events"], 1)
            for other in ("UnsealWorkflow", "BareUnseal"):
                if pairs.setdefault((mode, other), counted) != counted:
                    raise AssertionError(f"{found.workflow_type} did other activities than {other}: {counted}")
            pairs[mode, found.workflow_type] = counted


async def measure(unseals: Unseals, rounds: int) -> list[Row]:
    """The two modes, each with its baseline."""
    names = {mode: await unseals.init(mode) for mode in SHAPES}
    found = await take_turns_async(
        {
            "bare seal": lambda: unseals.bare("seal"),
            "seal": lambda: unseals.seal(names["seal"]),
            "bare sss": lambda: unseals.bare("sss"),
            "sss": lambda: unseals.sss(names["sss"]),
        },
        rounds,
    )
    await unseals.check_shapes()
    return [
        Row("unseal", what, "ms", found[mode], found[f"bare {mode}"], "bare workflow, same activities", AIM)
        for mode, what in (("seal", "seal, 1 of 2: start to result"), ("sss", "sss, 3 of 5: last approval to result"))
    ]
