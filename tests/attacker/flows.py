"""Honest ceremonies, run with the Python API: what the attacks start from, and what they are compared with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from temporalio.client import Client, WorkflowFailureError, WorkflowHandle

from activities.crypto.hpke import PrivateKey
from activities.ledger.log.records import EventRecord
from activities.ledger.store.ledger import Ledger
from activities.recipient import open_delivery
from tests.attacker.orchestrator import result_of
from tests.attacker.people import People, manifest_of
from tests.world import now
from workers.client import ceremonies as ceremony_client
from workflows.contracts.messages.protection import StoredProtection, StoredShard
from workflows.contracts.messages.requests import InitRequest, ShardRequest, UnsealRequest
from workflows.contracts.messages.results import InitResult, UnsealResult
from workflows.contracts.messages.status import CeremonyStatus
from workflows.contracts.messages.strongroom import Delivered
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import MasterKeyError
from workflows.contracts.trust.plan import Plan, RecipientRequest, parse_plan

QUORUM = ("alice", "carol", "dave")
EVERYBODY = ("alice", "bob", "carol", "dave", "erin")


@dataclass(frozen=True)
class Ended:
    """A ceremony of ours that has failed, and what the ledger says of it."""

    error: MasterKeyError
    events: list[EventRecord]

    @property
    def types(self) -> list[str]:
        """The types of its events."""
        return [event.type for event in self.events]

    def bodies(self, type_: str) -> list[str]:
        """The bodies of its events of a type."""
        return [event.body for event in self.events if event.type == type_]


@dataclass
class Ceremonies:
    """Starts and finishes ceremonies of one installation."""

    client: Client
    people: People

    @property
    def ledger(self) -> Ledger:
        """The ledger, as the orchestrator has it."""
        return Ledger(f"sqlite:///{self.people.folder / 'masterkey.db'}")

    def stored(self, master_key: str) -> StoredProtection:
        """The active protection of a MasterKey, from the ledger."""
        record = self.ledger.protection(master_key)
        return StoredProtection(
            manifest=Signed(document=record.manifest, signature=record.signature),
            shards=tuple(StoredShard.model_validate(row.model_dump()) for row in record.shards),
        )

    # --- init -------------------------------------------------------------------------------------------

    async def start_init(
        self, name: str, mode: str, threshold: int, shards: Sequence[str | tuple[str, tuple[str, ...]]], **fields: Any
    ) -> tuple[str, WorkflowHandle[Any, Any]]:
        """Start an init; shards are keystores, or keystores with custodians."""
        wanted = [(shard, ()) if isinstance(shard, str) else shard for shard in shards]
        request = InitRequest(
            ceremony=new_ceremony_id(name, "init"),
            master_key=name,
            mode="sss" if mode == "sss" else "seal",
            threshold=threshold,
            shards=tuple(ShardRequest(keystore=keystore, custodians=custodians) for keystore, custodians in wanted),
            **fields,
        )
        return request.ceremony, await ceremony_client.start(self.client, "InitWorkflow", request)

    async def init(self, name: str, mode: str, threshold: int, shards: Sequence[str]) -> StoredProtection:
        """An honest init, with three approvals."""
        ceremony, handle = await self.start_init(name, mode, threshold, shards)
        await self.approve(ceremony, handle, QUORUM)
        result = InitResult.model_validate(await result_of(handle))
        stored = self.stored(name)
        assert stored.manifest.digest == result.manifest.digest
        return stored

    # --- unseal -----------------------------------------------------------------------------------------

    async def start_unseal(
        self, request: RecipientRequest, *, signed: Signed | None = None, master_key: str = ""
    ) -> WorkflowHandle[Any, Any]:
        """Start an unseal with a recipient's request."""
        return await ceremony_client.start(
            self.client,
            "UnsealWorkflow",
            UnsealRequest(
                ceremony=request.ceremony,
                master_key=master_key or request.master_key,
                request=signed or self.people.recipient.sign(request),
            ),
        )

    async def unseal(self, stored: StoredProtection, approvers: Sequence[str] = ()) -> tuple[bytes, UnsealResult]:
        """An honest unseal; the recipient accepts only the key whose check value it has pinned."""
        key = PrivateKey()
        request = self.people.wish(stored, key.public_key)
        handle = await self.start_unseal(request)
        if approvers:
            await self.approve(request.ceremony, handle, approvers)
        result = UnsealResult.model_validate(await result_of(handle))
        return self.receive(result.delivered, request, key, stored), result

    def receive(
        self, delivered: Delivered, request: RecipientRequest, key: PrivateKey, stored: StoredProtection
    ) -> bytes:
        """Open a delivery as the recipient does."""
        return open_delivery(delivered, request, self.people.chain, key, manifest_of(stored).kcv, now())

    # --- both -------------------------------------------------------------------------------------------

    async def plan(self, handle: WorkflowHandle[Any, Any]) -> Plan:
        """The plan of a ceremony, once it waits for its quorum."""
        for _ in range(400):
            status: CeremonyStatus = await handle.query("status", result_type=CeremonyStatus)
            if status.phase == "quorum" and status.plan is not None:
                return parse_plan(status.plan)
            assert status.phase == "planning", status
            await asyncio.sleep(0.025)
        raise AssertionError("the ceremony did not come to its quorum")

    async def approve(self, ceremony: str, handle: WorkflowHandle[Any, Any], names: Sequence[str]) -> Plan:
        """Let custodians approve the plan."""
        plan = await self.plan(handle)
        for name in names:
            await ceremony_client.submit(self.client, ceremony, self.people.approval(name, plan))
        return plan

    async def refuse(self, ceremony: str, plan: Plan) -> None:
        """Let so many custodians reject the plan that its ceremony ends."""
        for name in ("carol", "dave", "erin"):
            decision = self.people.approval(name, plan, decision="reject")
            await ceremony_client.submit(self.client, ceremony, decision)

    async def ended(self, ceremony: str, handle: WorkflowHandle[Any, Any]) -> Ended:
        """Wait until a ceremony has failed; fails if it has released or created anything."""
        try:
            result = await asyncio.wait_for(result_of(handle), 40)
        except WorkflowFailureError as error:
            events = self.ledger.events(ceremony=ceremony)
            found = Ended(ceremony_client.workflow_error(error), events)
            assert not {"masterkey-delivered", "protection-committed"} & set(found.types)
            return found
        raise AssertionError(f"{ceremony} was not refused: {result}")
