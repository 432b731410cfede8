"""Telling keystore workers of a stop or an order, and what to do by hand where one cannot be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from workflows.calls.concurrency import gather
from workflows.calls.keystores import call_keystore
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.messages.results import KeystoreTold
from workflows.contracts.trust.canonical import Message, Signed
from workflows.contracts.trust.errors import ApprovalInvalid, MasterKeyError
from workflows.contracts.trust.keystore import KeystoreState
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.roster import Roster
from workflows.steps.protect import read_statement


async def tell_keystores(
    activity: str,
    request: Callable[[str], Message],
    roster: Roster,
    *,
    about: str,
    patience: timedelta,
    keys: dict[str, tuple[str, ...]],
    heard: Callable[[KeystoreState | None], bool],
    master_key: str,
) -> tuple[KeystoreTold, ...]:
    """Tell every keystore worker of the roster, and check from its signed answer that it has taken it in.

    Args:
        activity: how it is told.
        request: what is sent to a keystore.
        roster: who is told.
        about: digest of what they are told.
        patience: how long each may take.
        keys: for each keystore, the keys to disable by hand if it cannot be told.
        heard: whether what it says that it remembers of this MasterKey is as it should be.
        master_key: which.
    """

    async def tell(name: str) -> KeystoreTold:
        try:
            signed = await call_keystore(activity, name, request(name), Signed, patience=patience, attempts=0)
            said = read_statement(signed, name, roster, about)
            if not heard(next((one for one in said.master_keys if one.master_key == master_key), None)):
                raise ApprovalInvalid(f"{name} answered, but remembers something else", subject=name)
        except MasterKeyError as error:
            return KeystoreTold(
                keystore=name,
                acknowledged=False,
                error=type(error).__name__,
                detail=error.diagnostics,
                keys=keys.get(name, ()),
            )
        return KeystoreTold(keystore=name, acknowledged=True)

    return tuple(await gather([tell(one.name) for one in roster.keystores if one.offline is None]))


def keys_of(protections: Sequence[StoredProtection]) -> dict[str, tuple[str, ...]]:
    """The keys behind the shards of these protections, by keystore."""
    found: dict[str, tuple[str, ...]] = {}
    for stored in protections:
        for shard in Manifest.parse(stored.manifest.document.encode()).shards:
            name, key = shard.binding.keystore, shard.binding.key_id
            found[name] = tuple(sorted({*found.get(name, ()), key}))
    return found
