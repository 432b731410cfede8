"""How the keystores of a MasterKey are: asked one by one, told apart by the type of their error, with since when."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from workflows.calls.concurrency import gather
from workflows.contracts.messages.ledger import LastProof
from workflows.contracts.messages.status import HealthState, KeystoreHealth
from workflows.contracts.trust.errors import ApprovalInvalid, CiphertextInvalid, MasterKeyError
from workflows.contracts.trust.fields import Mode
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.service_errors import (
    KeyDisabled,
    KeyNotFound,
    KeyPendingDeletion,
    KeystoreAccessDenied,
    KeystoreThrottled,
)
from workflows.steps.protections import StoredManifest
from workflows.steps.prove import describe_key, prove_data_key, worker

State = HealthState

GONE: tuple[State, ...] = ("gone", "corrupt")
"""What does not come back by itself or by an administrator's hand."""
LOST: tuple[State, ...] = (*GONE, "disabled", "pending-deletion", "denied", "refused")
"""What a recovery replaces without being told: it opens nothing now, and not by waiting."""
USABLE: tuple[State, ...] = ("healthy", "throttled", "offline")
"""What may be counted on: throttling passes within minutes, and a custodian can be called."""

_STATES: tuple[tuple[type[MasterKeyError], State], ...] = (
    (KeystoreThrottled, "throttled"),
    (KeystoreAccessDenied, "denied"),
    (KeyDisabled, "disabled"),
    (KeyPendingDeletion, "pending-deletion"),
    (KeyNotFound, "gone"),
    (CiphertextInvalid, "corrupt"),
    (ApprovalInvalid, "refused"),
)
_TIMEOUT = timedelta(seconds=15)
_ATTEMPTS = 2


def state_of(error: MasterKeyError) -> State:
    """What an error says of its keystore; whatever is not told apart is `unreachable`."""
    return next((state for kind, state in _STATES if isinstance(error, kind)), "unreachable")


class Assessment:
    """What is known of each shard's keystore, and of keystores that could take one.

    Args:
        proofs: when each shard was last proven, as the ledger knows.
    """

    def __init__(self, proofs: Sequence[LastProof] = ()) -> None:
        self._proven: dict[tuple[str, int], datetime] = {(one.manifest, one.index): one.at for one in proofs}
        self._since: dict[tuple[str, State], datetime] = {}
        self.shards: dict[tuple[str, int], KeystoreHealth] = {}
        self.keys: dict[str, str] = {}
        """The key that each keystore uses now, by keystore."""
        self.modes: dict[str, tuple[Mode, ...]] = {}
        """Which modes it serves, by keystore."""
        self.described: dict[str, KeystoreHealth] = {}

    async def assess(self, active: Sequence[StoredManifest], roster: Roster, now: datetime) -> None:
        """Ask every keystore of these protections to prove its data key; offline ones are taken at their last word."""

        async def one(protection: StoredManifest, index: int) -> None:
            row = protection.stored.shards[index - 1]
            place = (protection.digest, index)
            entry = roster.keystore(row.keystore)
            try:
                protection.check_ciphertext(index)
                if entry is not None and entry.offline is not None:
                    self.shards[place] = self._health(row.keystore, "offline", "", now, self._proven.get(place))
                    return
                await prove_data_key(protection.stored, index, roster, worker(_TIMEOUT, _ATTEMPTS))
            except MasterKeyError as error:
                state = state_of(error)
                self.shards[place] = self._health(row.keystore, state, error.diagnostics, now, self._proven.get(place))
                return
            self._proven[place] = now
            self.shards[place] = self._health(row.keystore, "healthy", "", now, now)

        await gather([one(each, row.index) for each in active for row in each.stored.shards])

    async def describe(self, keystores: Sequence[str], roster: Roster, now: datetime) -> None:
        """Ask keystores which key they use now: those that could take a shard."""

        async def one(name: str) -> None:
            try:
                key = await describe_key(name, roster, within=_TIMEOUT, attempts=_ATTEMPTS)
            except MasterKeyError as error:
                self.described[name] = self._health(name, state_of(error), error.diagnostics, now, None)
                self.keys.pop(name, None)
                self.modes.pop(name, None)
                return
            self.keys[name], self.modes[name] = key.key_id, key.modes
            self.described[name] = self._health(name, "healthy", "", now, None)

        await gather([one(name) for name in dict.fromkeys(keystores)])

    def of(self, protection: StoredManifest) -> dict[str, KeystoreHealth]:
        """Of each keystore of a protection."""
        return {row.keystore: self.shards[protection.digest, row.index] for row in protection.stored.shards}

    def usable(self, protection: StoredManifest) -> int:
        """How many shards can be counted on."""
        return sum(health.state in USABLE for health in self.of(protection).values())

    def possible(self, protection: StoredManifest) -> int:
        """How many shards could be opened if everything came back that can."""
        return sum(health.state not in GONE for health in self.of(protection).values())

    def all(self) -> tuple[KeystoreHealth, ...]:
        """Of every keystore once: the worst that was found of it."""
        found: dict[str, KeystoreHealth] = dict(self.described)
        for health in self.shards.values():
            known = found.get(health.keystore)
            if known is None or known.state in USABLE:
                found[health.keystore] = health
        return tuple(found[name] for name in sorted(found))

    def _health(
        self, keystore: str, state: State, detail: str, now: datetime, proven: datetime | None
    ) -> KeystoreHealth:
        since = self._since.setdefault((keystore, state), now)
        return KeystoreHealth(keystore=keystore, state=state, detail=detail, since=since, proven=proven)
