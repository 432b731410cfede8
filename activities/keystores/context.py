"""What a one-shot keystore process works with: its worker's terms, keystore, identity, memory and roster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from activities.identity import Identity
from activities.keystores.kinds.base import Keystore
from activities.keystores.kinds.registry import open_keystore, parse_settings
from activities.keystores.state import StateDirectory
from activities.roster import RosterSource
from workflows.contracts.trust.canonical import Message
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.fields import Mode


class KeystoreTerms(Message):
    """What a one-shot keystore process is told of its worker; secrets only by reference."""

    name: str
    settings: dict[str, Any]
    identity: str
    state: str
    roster_file: str
    roster_genesis: str
    roster_minimum: int
    modes: tuple[Mode, ...]


@dataclass(frozen=True)
class Desk:
    """What a keystore process works with.

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
    def open(cls, terms: KeystoreTerms) -> Desk:
        """Read identity, state and roster; the roster may not be older than one seen before.

        Raises:
            RosterInvalid, ConfigurationInvalid: one of them is not as it should be.
        """
        state = StateDirectory(Path(terms.state))
        minimum = max(terms.roster_minimum, state.read().roster_number)
        chain = RosterSource(Path(terms.roster_file), terms.roster_genesis, minimum).load()
        state.note_roster(chain.current.number)
        keystore = open_keystore(terms.name, parse_settings(terms.name, terms.settings))
        return cls(terms, keystore, Identity.load(Path(terms.identity)), state, chain)
