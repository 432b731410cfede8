"""The roster as a file on this host, verified from the digest that this host's configuration pins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from activities.identity import Identity
from workflows.contracts.trust.canonical import Message
from workflows.contracts.trust.chain import RosterChain, parse_roster_file, verify_chain
from workflows.contracts.trust.errors import RosterInvalid


@dataclass(frozen=True)
class RosterSource:
    """Where the roster is, and what is pinned of it.

    Attributes:
        file: the roster file; read anew for each use, so that a new version counts at once.
        genesis: pinned digest of version 1.
        minimum: the newest version must be at least this one.
    """

    file: Path
    genesis: str
    minimum: int = 1

    def load(self) -> RosterChain:
        """Read and verify the whole chain.

        Raises:
            RosterInvalid: the file cannot be read, or the chain does not verify.
        """
        try:
            text = self.file.read_text(encoding="utf-8")
        except OSError as error:
            raise RosterInvalid(f"cannot read the roster {self.file}: {error.strerror}") from None
        return _verified(text, self.genesis, self.minimum)


class HostTerms(Message):
    """What a one-shot process is told of its host: where its identity key is, where the roster, and what is pinned.

    Attributes:
        software: the installed code, as `masterkey --version` names it.
    """

    identity: str
    roster_file: str
    roster_genesis: str
    roster_minimum: int
    software: str | None = None

    def open(self, seen: int = 0) -> tuple[RosterChain, Identity]:
        """The verified roster, not older than version `seen`, and the identity.

        Raises:
            RosterInvalid, ConfigurationInvalid: one of them is not as it should be.
        """
        source = RosterSource(Path(self.roster_file), self.roster_genesis, max(self.roster_minimum, seen))
        return source.load(), Identity.load(Path(self.identity))


@lru_cache(maxsize=4)
def _verified(text: str, genesis: str, minimum: int) -> RosterChain:
    # The same bytes verify the same way: nothing in it depends on the time.
    return verify_chain(parse_roster_file(text), genesis=genesis, minimum_number=minimum)
