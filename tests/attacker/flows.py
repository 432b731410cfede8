"""Honest ceremonies, run with the Python API: what the attacks start from, and what they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from temporalio.client import Client, WorkflowFailureError

from activities.crypto.hpke import PrivateKey
from activities.ledger.log.records import EventRecord
from activities.ledger.store.ledger import Ledger
from activities.recipient import open_delivery
from tests.attacker.people import People, manifest_of
from tests.driving.house import House
from tests.driving.reading import Handle, ended
from tests.world import now
from workers.client import ceremonies as ceremony_client
from workflows.contracts.messages.protection import StoredProtection, StoredShard
from workflows.contracts.messages.requests import ShardRequest, UnsealRequest
from workflows.contracts.messages.results import InitResult, UnsealResult
from workflows.contracts.messages.strongroom import Delivered
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import MasterKeyError
from workflows.contracts.trust.plan import Plan, RecipientRequest

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
    """Ceremonies of one house, by what the attacker sees of them: their documents."""

    house: House
    people: People

    @property
    def client(self) -> Client:
        """A Temporal client, as whoever controls the orchestrator has one."""
        return self.house.client

    @property
    def ledger(self) -> Ledger:
        """The ledger, as the orchestrator has it."""
        return self.house.ledger

    def stored(self, master_key: str) -> StoredProtection:
        """The active protection of a MasterKey, from the ledger."""
        record = self.house.active(master_key)
        return StoredProtection(
            manifest=Signed(document=record.manifest, signature=record.signature),
            shards=tuple(StoredShard.model_validate(row.model_dump()) for row in record.shards),
        )

    # --- init -------------------------------------------------------------------------------------------

    async def start_init(
        self, name: str, mode: str, threshold: int, shards: Sequence[str | tuple[str, tuple[str, ...]]], **fields: Any
    ) -> tuple[str, Handle]:
        """Start an init; shards are keystores, or keystores with custodians."""
        wanted = [(shard, ()) if isinstance(shard, str) else shard for shard in shards]
        rows = tuple(ShardRequest(keystore=keystore, custodians=custodians) for keystore, custodians in wanted)
        ceremony = new_ceremony_id(name, "init")
        request = self.house.init_request(name, mode, **{"ceremony": ceremony, "shards": rows, **fields})
        # Also a threshold that no house would ask for.
        request = request.model_copy(update={"threshold": threshold})
        return ceremony, await ceremony_client.start(self.client, "InitWorkflow", request)

    async def init(self, name: str, mode: str, threshold: int, shards: Sequence[str]) -> StoredProtection:
        """An honest init, with three approvals."""
        ceremony, handle = await self.start_init(name, mode, threshold, shards)
        await self.approve(ceremony, handle, QUORUM)
        result = InitResult.model_validate(await ended(handle))
        stored = self.stored(name)
        assert stored.manifest.digest == result.manifest.digest
        return stored

    # --- unseal -----------------------------------------------------------------------------------------

    async def start_unseal(
        self, request: RecipientRequest, *, signed: Signed | None = None, master_key: str = ""
    ) -> Handle:
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
        result = UnsealResult.model_validate(await ended(handle))
        return self.receive(result.delivered, request, key, stored), result

    def receive(
        self, delivered: Delivered, request: RecipientRequest, key: PrivateKey, stored: StoredProtection
    ) -> bytes:
        """Open a delivery as the recipient does."""
        return open_delivery(delivered, request, self.people.chain, key, manifest_of(stored).kcv, now())

    # --- both -------------------------------------------------------------------------------------------

    async def approve(self, ceremony: str, handle: Handle, names: Sequence[str]) -> Plan:
        """Let custodians approve the plan."""
        plan = await self.house.plan(handle)
        for name in names:
            await ceremony_client.submit(self.client, ceremony, self.people.approval(name, plan))
        return plan

    async def refuse(self, ceremony: str, plan: Plan) -> None:
        """Let so many custodians reject the plan that its ceremony ends."""
        for name in ("carol", "dave", "erin"):
            decision = self.people.approval(name, plan, decision="reject")
            await ceremony_client.submit(self.client, ceremony, decision)

    async def ended(self, ceremony: str, handle: Handle) -> Ended:
        """Wait until a ceremony has failed; fails if it has released or created anything."""
        try:
            result = await ended(handle, 40)
        except WorkflowFailureError as error:
            events = self.ledger.events(ceremony=ceremony)
            found = Ended(ceremony_client.workflow_error(error), events)
            assert not {"masterkey-delivered", "protection-committed"} & set(found.types)
            return found
        raise AssertionError(f"{ceremony} was not refused: {result}")
