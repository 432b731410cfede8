"""What people do, without the command line: start ceremonies, sign, receive.

A `House` is a running installation seen through Temporal, with everybody's keys at hand.
"""

from __future__ import annotations

import itertools
import secrets
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.client import Client

from activities.crypto.hpke import PrivateKey
from activities.identity import Identity
from activities.ledger.log.records import ProtectionRecord
from activities.ledger.store.ledger import Ledger
from activities.recipient import open_delivery
from activities.roster import RosterSource
from tests.driving.reading import Handle, ended, eventually
from workers.client import ceremonies as ceremony_client
from workers.client.ssh import sign_with_key
from workers.local.stack import CUSTODIANS, Stack
from workflows.contracts import names
from workflows.contracts.messages.ledger import ENDS
from workflows.contracts.messages.requests import (
    DrillRequest,
    InitRequest,
    OrderRequest,
    RecoverRequest,
    ReshardRequest,
    SealRequest,
    ShardRequest,
    UnsealRequest,
)
from workflows.contracts.messages.results import DrillResult, InitResult, OrderResult, ReshardResult, UnsealResult
from workflows.contracts.messages.status import CeremonyStatus
from workflows.contracts.trust.canonical import Document, Signed, seconds
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.fields import SUITE, Purpose
from workflows.contracts.trust.plan import Approval, Plan, RecipientRequest
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.stop import Stop

Made = InitResult | ReshardResult
"""What tells of a protection that was made."""


@dataclass
class Asked:
    """An unseal that was started: its handle, and what its recipient holds."""

    handle: Handle
    request: RecipientRequest
    key: PrivateKey


@dataclass
class House:
    """A running installation, seen through Temporal."""

    stack: Stack
    client: Client
    fresh_name: Callable[[], str]
    _identities: dict[str, Identity] = field(default_factory=dict)
    _ledgers: dict[str, Ledger] = field(default_factory=dict)

    @classmethod
    def of(cls, stack: Stack, client: Client, fresh_name: Callable[[], str] | None = None) -> House:
        """The house of a stack; its roster enrols the recipient for `mk-0`, `mk-1` and so on."""
        numbers = itertools.count()
        return cls(stack, client, fresh_name or (lambda: f"mk-{next(numbers)}"))

    # --- what is on this machine -----------------------------------------------------------------------------

    @property
    def chain(self) -> RosterChain:
        """The verified roster."""
        return RosterSource(self.stack.folder / "roster.json", self.stack.genesis).load()

    @property
    def ledger(self) -> Ledger:
        """The orchestrator's ledger, opened by this process."""
        configured = tomllib.loads((self.stack.folder / "orchestrator.toml").read_text(encoding="utf-8"))
        url = configured["ledger"]["url"].replace("sqlite:///", f"sqlite:///{self.stack.folder}/")
        return self._ledgers.setdefault(url, Ledger(url))

    def active(self, name: str, purpose: Purpose = "primary") -> ProtectionRecord:
        """The protection in force, as the ledger has it."""
        return self.ledger.protection(name, purpose=purpose)

    @property
    def keystores(self) -> list[str]:
        """Names of all keystores."""
        return list(self.stack.keystores)

    # --- signing ---------------------------------------------------------------------------------------------

    def identity(self, name: str) -> Identity:
        """The Ed25519 identity of somebody."""
        if name not in self._identities:
            self._identities[name] = Identity.load(self.stack.folder / "keys" / name)
        return self._identities[name]

    def sign(self, name: str, document: Document) -> Signed:
        """A document signed by somebody; bob's key is RSA, and ssh-keygen signs for him."""
        if name != "bob":
            return self.identity(name).sign(document)
        data = document.canonical()
        signature = sign_with_key(data, self.stack.folder / "keys" / name, document.TYPE)
        return Signed(document=data.decode(), signature=signature)

    def fingerprint(self, name: str) -> str:
        """The fingerprint of a custodian's key."""
        return next(c.fingerprint for c in self.chain.current.custodians if c.name == name)

    def decision(self, name: str, plan: Plan, decision: str = "approve", **changes: Any) -> Signed:
        """A custodian's signed decision on a plan."""
        fields: dict[str, Any] = {
            "decision": decision,
            "plan": plan,
            "plan_digest": plan.digest,
            "custodian": self.fingerprint(name),
            "issued": seconds(datetime.now(UTC)),
            "expires": plan.expires,
        }
        return self.sign(name, Approval(**{**fields, **changes}))

    # --- ceremonies ------------------------------------------------------------------------------------------

    def init_request(
        self, name: str, mode: str = "sss", threshold: int = 2, count: int = 3, **more: Any
    ) -> InitRequest:
        """A request to create a MasterKey over the first keystores."""
        fields: dict[str, Any] = {
            "ceremony": names.new_ceremony_id(name, "init"),
            "master_key": name,
            "mode": mode,
            "threshold": threshold if mode == "sss" else 1,
            "shards": tuple(ShardRequest(keystore=keystore) for keystore in self.keystores[:count]),
        }
        return InitRequest(**{**fields, **more})

    async def start_init(self, name: str, mode: str = "sss", threshold: int = 2, count: int = 3, **more: Any) -> Handle:
        """Start an init; it waits for its quorum."""
        return await ceremony_client.start(
            self.client, "InitWorkflow", self.init_request(name, mode, threshold, count, **more)
        )

    async def init(self, name: str, mode: str = "sss", threshold: int = 2, count: int = 3, **more: Any) -> InitResult:
        """Create a MasterKey with three approvals."""
        handle = await self.start_init(name, mode, threshold, count, **more)
        await self.approve(handle, CUSTODIANS[:3])
        return InitResult.model_validate(await ended(handle))

    async def ask(
        self, name: str, made: Made, lifetime: timedelta | None = None, ceremony: str = "", **more: Any
    ) -> Asked:
        """Become the recipient: start an unseal of what an init has made."""
        manifest = Manifest.parse(made.manifest.document.encode())
        key, now = PrivateKey(), seconds(datetime.now(UTC))
        longest = timedelta(minutes=4) if manifest.mode == "seal" else timedelta(hours=1)
        ceremony = ceremony or names.new_ceremony_id(name, "unseal")
        fields: dict[str, Any] = {
            "master_key": name,
            "ceremony": ceremony,
            "manifest": made.manifest.digest,
            "epoch": manifest.epoch,
            "recipient": self.identity("recipient").fingerprint,
            "suite": SUITE,
            "hpke_public_key": key.public_key,
            "strongroom": self.identity("strongroom").fingerprint,
            "nonce": secrets.token_hex(16),
            "issued": now,
            "expires": now + (lifetime or longest),
        }
        request = RecipientRequest(**{**fields, **more})
        start = UnsealRequest(ceremony=ceremony, master_key=name, request=self.sign("recipient", request))
        return Asked(await ceremony_client.start(self.client, "UnsealWorkflow", start), request, key)

    def receive(self, asked: Asked, result: UnsealResult, made: Made) -> bytes:
        """Open a delivery, as the recipient's process does."""
        return open_delivery(result.delivered, asked.request, self.chain, asked.key, made.kcv, datetime.now(UTC))

    async def unseal(self, name: str, made: Made, approvers: Sequence[str] = CUSTODIANS[:3]) -> bytes:
        """Receive a MasterKey; its KCV is checked."""
        asked = await self.ask(name, made)
        if Manifest.parse(made.manifest.document.encode()).mode == "sss":
            await self.approve(asked.handle, approvers)
        return self.receive(asked, UnsealResult.model_validate(await ended(asked.handle)), made)

    # --- the rest of its life ----------------------------------------------------------------------------------

    async def start_reshard(
        self, name: str, keystores: Sequence[str], mode: str = "sss", threshold: int = 2, **more: Any
    ) -> Handle:
        """Start a reshard into these keystores; it waits for its quorum."""
        fields: dict[str, Any] = {
            "ceremony": names.new_ceremony_id(name, "reshard"),
            "master_key": name,
            "mode": mode,
            "threshold": threshold if mode == "sss" else 1,
            "shards": tuple(ShardRequest(keystore=keystore) for keystore in keystores),
        }
        return await ceremony_client.start(self.client, "ReshardWorkflow", ReshardRequest(**{**fields, **more}))

    async def reshard(
        self, name: str, keystores: Sequence[str], mode: str = "sss", threshold: int = 2, **more: Any
    ) -> ReshardResult:
        """Reshard with three approvals."""
        handle = await self.start_reshard(name, keystores, mode, threshold, **more)
        await self.approve(handle, CUSTODIANS[:3])
        return ReshardResult.model_validate(await ended(handle))

    async def start_recover(self, name: str, **more: Any) -> Handle:
        """Start a recovery; it assesses, proposes, and waits for its quorum."""
        ceremony = names.new_ceremony_id(name, "recover")
        request = RecoverRequest(**{"ceremony": ceremony, "master_key": name, **more})
        return await ceremony_client.start(self.client, "DisasterRecoveryWorkflow", request)

    def stop_by(self, who: str, name: str, **changes: Any) -> Signed:
        """A custodian's signed order to stop a MasterKey."""
        fields: dict[str, Any] = {
            "master_key": name,
            "ceremony": names.new_ceremony_id(name, "seal"),
            "reason": "a laptop was stolen",
            "custodian": self.fingerprint(who) if who in CUSTODIANS else self.identity(who).fingerprint,
            "issued": seconds(datetime.now(UTC)),
        }
        return self.sign(who, Stop(**{**fields, **changes}))

    async def start_seal(self, name: str, stop: Signed, **more: Any) -> Handle:
        """Send a stop to everybody."""
        ceremony = Stop.parse(stop.document.encode()).ceremony
        request = SealRequest(ceremony=ceremony, master_key=name, stop=stop, **more)
        return await ceremony_client.start(self.client, "SealWorkflow", request)

    async def start_order(self, name: str, action: str, manifest: str | None = None) -> Handle:
        """Ask the quorum to lift all stops, or to retire or destroy a protection."""
        fields: dict[str, Any] = {"action": action, "manifest": manifest, "master_key": name}
        fields["ceremony"] = names.new_ceremony_id(name, fields["action"])
        return await ceremony_client.start(self.client, "OrderWorkflow", OrderRequest(**fields))

    async def order(self, name: str, action: str, manifest: str | None = None) -> OrderResult:
        """Order it with three approvals."""
        handle = await self.start_order(name, action, manifest)
        await self.approve(handle, CUSTODIANS[:3])
        return OrderResult.model_validate(await ended(handle))

    async def drill(self, name: str) -> DrillResult:
        """Let every keystore prove that it can give back its data keys."""
        request = DrillRequest(master_key=name, ceremony=names.new_ceremony_id(name, "drill"))
        handle = await ceremony_client.start(self.client, "DrillWorkflow", request)
        return DrillResult.model_validate(await ended(handle))

    # --- what it does --------------------------------------------------------------------------------------------

    async def status(self, handle: Handle) -> CeremonyStatus:
        """What a ceremony is doing."""
        found: CeremonyStatus = await handle.query("status", result_type=CeremonyStatus)
        return found

    async def reach(self, handle: Handle, *phases: str, limit: float = 30.0) -> CeremonyStatus:
        """Wait until a ceremony is in one of these phases; fails if it ends in another."""

        async def there() -> CeremonyStatus | None:
            # The server knows the phase; to be asked costs a workflow that is not in memory a whole replay.
            known = (await handle.describe()).typed_search_attributes.get(names.PHASE)
            if known not in (*phases, *ENDS):
                return None
            found = await self.status(handle)
            if found.phase in phases:
                return found
            assert found.phase not in ENDS, found
            return None

        return await eventually(there, limit)

    async def plan(self, handle: Handle) -> Plan:
        """The plan, once custodians are asked about it."""
        found = await self.reach(handle, "quorum")
        assert found.plan is not None
        return Plan.parse(found.plan.encode())

    async def idle(self, handle: Handle) -> None:
        """Wait until a ceremony has nothing under way: it waits for people."""

        async def nothing() -> bool:
            pending = (await handle.describe()).raw_description
            return not pending.pending_activities and not pending.HasField("pending_workflow_task")

        await eventually(nothing)

    async def approve(self, handle: Handle, who: Iterable[str]) -> None:
        """Let custodians approve, by signal."""
        plan = await self.plan(handle)
        for name in who:
            await handle.signal("approve", self.decision(name, plan))
