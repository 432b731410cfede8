"""What the custodian of an offline keystore does in a ceremony: be present, prove, and give a data key.

The ceremony is asked what it wants, again and again; each answer is made in a one-shot process, by the code that
every keystore worker runs, which verifies manifest, approvals and session for itself. This process holds no secret.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from temporalio.client import (
    Client,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.service import RPCError, RPCStatusCode

from workers.client.ceremonies import BUSY, RPC_TIMEOUT, ceremony, status_of
from workflows.calls.failures import from_failure
from workflows.contracts.messages.keystore import CheckDataKey, UnwrapDataKey
from workflows.contracts.messages.ledger import ENDS
from workflows.contracts.messages.protection import DekAnswer
from workflows.contracts.messages.requests import Contribution, Wanted
from workflows.contracts.messages.status import CeremonyStatus
from workflows.contracts.trust.canonical import Signed, digest
from workflows.contracts.trust.errors import ApprovalInvalid, MasterKeyError
from workflows.contracts.trust.plan import Plan, parse_plan
from workflows.contracts.trust.service_errors import CeremonyEnded, KeystoreUnavailable, NotKnown

T = TypeVar("T")

POLL_SECONDS = 0.5
GRACE_SECONDS = 3.0
"""How long nothing must be asked before it counts as nothing more: ceremonies go from one step to the next."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0
"""How long after its last word a custodian says again that they are present: each costs the ceremony history."""
_MOST_FAILURES = 3
_RETRY_SECONDS = 2.0


class Counterpart(Protocol):
    """A ceremony, as its contributor sees it."""

    async def look(self) -> tuple[CeremonyStatus, Wanted]:
        """What it does now, and what it wants."""

    async def contribute(self, given: Contribution) -> None:
        """Send an answer.

        Raises:
            MasterKeyError: it is refused.
        """


class Remote:
    """A ceremony that Temporal runs.

    Args:
        client: of Temporal.
        ceremony: its id.
        tell: says what is going on.
    """

    def __init__(self, client: Client, ceremony: str, tell: Callable[[str], None]) -> None:
        self._client = client
        self._ceremony = ceremony
        self._tell = tell
        self._handle: WorkflowHandle[Any, Any] | None = None

    async def look(self) -> tuple[CeremonyStatus, Wanted]:
        """What it does now, and what it wants; waits as long as no orchestrator answers.

        Raises:
            NotKnown: there is no such ceremony.
            CeremonyEnded: it is of a kind to which nobody contributes.
        """
        return await self._patiently(self._look)

    async def contribute(self, given: Contribution) -> None:
        """Send an answer; it counts once, however often it is sent.

        Raises:
            MasterKeyError: it is refused, or the ceremony is over.
        """
        update = f"contribute-{secrets.token_hex(12)}"
        await self._patiently(lambda: self._contribute(given, update))

    async def _look(self) -> tuple[CeremonyStatus, Wanted]:
        handle = self._handle or await ceremony(self._client, self._ceremony)
        status = await status_of(handle)
        if status.ceremony != self._ceremony:
            # The next ceremony that changes this MasterKey has taken over the workflow's id.
            handle = await ceremony(self._client, self._ceremony)
            status = await status_of(handle)
        self._handle = handle
        if status.phase in ENDS:
            return status, Wanted()
        return status, await handle.query("wanted", result_type=Wanted, rpc_timeout=RPC_TIMEOUT)

    async def _contribute(self, given: Contribution, update: str) -> None:
        handle = self._handle or await ceremony(self._client, self._ceremony)
        await handle.execute_update("contribute", given, id=update, result_type=Wanted, rpc_timeout=RPC_TIMEOUT)

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        said = False
        while True:
            try:
                return await ask()
            except WorkflowUpdateFailedError as error:
                raise from_failure(error.cause) from None
            except WorkflowQueryFailedError:
                raise CeremonyEnded(
                    f"nobody contributes to ceremony {self._ceremony}", next_step="see `masterkey ceremony show`"
                ) from None
            except WorkflowUpdateRPCTimeoutOrCancelledError:
                pass
            except RPCError as error:
                if error.status == RPCStatusCode.NOT_FOUND:
                    raise NotKnown(f"there is no ceremony {self._ceremony}, or it is over") from None
                if error.status not in BUSY:
                    raise KeystoreUnavailable(f"Temporal answered {error.status.name}") from None
            if not said:
                said = True
                self._tell("no orchestrator answers at this moment; waiting")
            await asyncio.sleep(_RETRY_SECONDS)


class Keys(Protocol):
    """What a contributor needs of an `OfflineKeystore`."""

    name: str

    async def prove_keys(self) -> None:
        """Prove that they are here."""

    async def check(self, request: CheckDataKey) -> Signed:
        """A proof."""

    async def unwrap(self, request: UnwrapDataKey) -> DekAnswer:
        """A data key."""


@dataclass
class Contributor:
    """A custodian in one ceremony.

    Attributes:
        ceremony: its id.
        counterpart: the ceremony itself.
        keys: of the offline keystore.
        agree: shows a plan in words, and raises unless the custodian agrees; given None for a proof alone.
        tell: says what is going on.
        check_only: give proofs, and no data key.
        contributed: what was given so far: `check` or `data-key`, and the shard.
    """

    ceremony: str
    counterpart: Counterpart
    keys: Keys
    agree: Callable[[Plan | None], None]
    tell: Callable[[str], None]
    check_only: bool = False
    contributed: list[str] = field(default_factory=list)
    _agreed: set[str] = field(default_factory=set)
    _answered: set[str] = field(default_factory=set)
    _proven: bool = False
    _said: str = ""
    _quiet_since: float = 0.0
    _next_presence: float = 0.0
    _pause: float = FIRST_PAUSE
    _failures: int = 0

    async def run(self) -> None:
        """Contribute until the ceremony has ended, or asks nothing more.

        Raises:
            CeremonyEnded: it was refused, failed or expired.
            MasterKeyError: this keystore refuses what it is asked for, or the ceremony what it was given.
        """
        self._quiet_since = time.monotonic()
        while True:
            status, wanted = await self.counterpart.look()
            if status.phase in ENDS:
                self._ended(status)
                return
            self._narrate(status)
            if await self._step(status, wanted):
                self.tell("contributed; nothing more is asked of you")
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _step(self, status: CeremonyStatus, wanted: Wanted) -> bool:
        """Do one thing that is wanted; whether all is done."""
        name, now = self.keys.name, time.monotonic()
        plan = parse_plan(status.plan) if status.plan is not None else None
        checks = [one for one in wanted.checks if one.keystore == name and _key(one) not in self._answered]
        unwraps = [one for one in wanted.unwraps if one.keystore == name and _key(one) not in self._answered]
        useful = name in wanted.keystores or bool(unwraps)
        if not checks and (self.check_only or not useful):
            return bool(self.contributed) and now - self._quiet_since > GRACE_SECONDS and not self._owes_proof(plan)
        self._quiet_since = now
        if checks:
            await self._begin(plan)
            await self._answer(checks[0])
        elif unwraps:
            await self._begin(parse_plan(unwraps[0].authority.plan))
            await self._answer(unwraps[0])
        elif plan is not None and now >= self._next_presence:
            await self._begin(plan)
            await self._send(self._made(None), lambda now_wanted: name in now_wanted.keystores)
            self._next_presence, self._pause = time.monotonic() + self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return False

    def _owes_proof(self, plan: Plan | None) -> bool:
        """Whether a proof of a new shard in this keystore must come still."""
        targets = plan.target.shards if plan is not None and plan.target is not None else ()
        proven = any(given.startswith("check") for given in self.contributed)
        return any(shard.keystore == self.keys.name for shard in targets) and not proven and not self.check_only

    async def _begin(self, plan: Plan | None) -> None:
        """Before anything is given: the custodian has agreed to this very plan, and the keys work."""
        if plan is not None and plan.ceremony != self.ceremony:
            raise ApprovalInvalid("the plan that came is of another ceremony")
        known = plan.digest if plan is not None else ""
        if known not in self._agreed:
            self.agree(plan)
            self._agreed.add(known)
        if not self._proven:
            await self.keys.prove_keys()
            self._proven = True

    async def _answer(self, request: CheckDataKey | UnwrapDataKey) -> None:
        def asked(wanted: Wanted) -> bool:
            return _key(request) in [*map(_key, wanted.checks), *map(_key, wanted.unwraps)]

        if not await self._send(self._made(request), asked):
            return
        self._answered.add(_key(request))
        what = f"{'check' if isinstance(request, CheckDataKey) else 'data-key'} of shard {request.index}"
        self.contributed.append(what)
        self.tell(f"gave the {what.replace('-', ' ')}")
        self._quiet_since, self._pause = time.monotonic(), FIRST_PAUSE
        self._next_presence = self._quiet_since + FIRST_PAUSE

    async def _send(self, made: Awaitable[Contribution], asked: Callable[[Wanted], bool]) -> bool:
        """Make and send a contribution; whether it arrived.

        Sessions die and plans change meanwhile: an error counts only if the same is asked for still.
        """
        try:
            await self.counterpart.contribute(await made)
        except MasterKeyError as error:
            status, wanted = await self.counterpart.look()
            if status.phase not in ENDS and asked(wanted):
                self._failures += 1
                if not error.retryable or self._failures >= _MOST_FAILURES:
                    raise
            self.tell(f"did not contribute: {error.diagnostics}")
            return False
        self._failures = 0
        return True

    async def _made(self, request: CheckDataKey | UnwrapDataKey | None) -> Contribution:
        """What answers a request; where there is none, that the custodian is present."""
        if request is None:
            return Contribution(keystore=self.keys.name, present=True)
        if isinstance(request, CheckDataKey):
            return Contribution(keystore=self.keys.name, check=await self.keys.check(request))
        return Contribution(keystore=self.keys.name, dek=await self.keys.unwrap(request))

    def _narrate(self, status: CeremonyStatus) -> None:
        now = f"{status.phase}; still needed: {status.needed}" if status.needed else status.phase
        if now != self._said:
            self._said = now
            self.tell(f"{status.action} {status.master_key}: {now}")

    def _ended(self, status: CeremonyStatus) -> None:
        if status.phase != "done":
            raise CeremonyEnded(f"ceremony {self.ceremony} is over ({status.phase}): {status.detail}")
        given = ", ".join(self.contributed) or "nothing of yours was needed"
        self.tell(f"the ceremony is done: {status.detail} ({given})")


def _key(request: CheckDataKey | UnwrapDataKey) -> str:
    """What tells two requests apart."""
    return digest(request.model_dump_json().encode())
