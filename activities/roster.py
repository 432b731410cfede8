"""The roster as a file on this host, verified from the digest that this host's configuration pins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

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


@lru_cache(maxsize=4)
def _verified(text: str, genesis: str, minimum: int) -> RosterChain:
    # The same bytes verify the same way: nothing in it depends on the time.
    return verify_chain(parse_roster_file(text), genesis=genesis, minimum_number=minimum)
