"""What a one-shot keystore process works with: its worker's terms, keystore, identity, memory and roster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from activities.identity import Identity
from activities.keystores.kinds.base import Keystore
from activities.keystores.kinds.registry import open_keystore, parse_settings
from activities.keystores.state import StateDirectory
from activities.roster import HostTerms
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.fields import Mode


class KeystoreTerms(HostTerms):
    """What a one-shot keystore process is told of its worker; secrets only by reference."""

    name: str
    settings: dict[str, Any]
    state: str
    modes: tuple[Mode, ...]


@dataclass(frozen=True)
class CallContext:
    """What one call to a keystore works with.

    Attributes:
        terms: of its worker.
        keystore: its one keystore.
        identity: signs its answers.
        state: what the worker remembers.
        chain: the verified roster.
    """

    terms: KeystoreTerms
    keystore: Keystore
    identity: Identity
    state: StateDirectory
    chain: RosterChain

    @classmethod
    def open(cls, terms: KeystoreTerms) -> CallContext:
        """Read identity, state and roster; the roster may not be older than one seen before.

        Raises:
            RosterInvalid, ConfigurationInvalid: one of them is not as it should be.
        """
        state = StateDirectory(Path(terms.state))
        chain, identity = terms.open(seen=state.read().roster_number)
        state.note_roster(chain.current.number)
        keystore = open_keystore(terms.name, parse_settings(terms.name, terms.settings))
        return cls(terms, keystore, identity, state, chain)
