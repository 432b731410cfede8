"""The roster file: every version from the pinned first one, each signed by the change quorum before. After `roster`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import StringConstraints, ValidationError

from workflows.contracts.trust.canonical import Message
from workflows.contracts.trust.errors import ApprovalInvalid, RosterInvalid
from workflows.contracts.trust.roster import ChangeQuorum, Roster
from workflows.contracts.trust.signatures import check


class RosterVersion(Message):
    """A version as it stands in the roster file: canonical bytes as text, and armoured signatures."""

    document: Annotated[str, StringConstraints(max_length=1_000_000)]
    signatures: tuple[Annotated[str, StringConstraints(max_length=16_384)], ...] = ()


class RosterFile(Message):
    """The roster file: every version so far, oldest first, and perhaps one that is still being signed."""

    versions: tuple[RosterVersion, ...]
    proposed: RosterVersion | None = None


@dataclass(frozen=True)
class RosterChain:
    """A verified chain of roster versions, oldest first."""

    versions: tuple[Roster, ...]
    digests: tuple[str, ...]

    @property
    def current(self) -> Roster:
        """The newest version."""
        return self.versions[-1]

    @property
    def digest(self) -> str:
        """Digest of the newest version."""
        return self.digests[-1]

    def at(self, version_digest: str) -> Roster:
        """The version with this digest.

        Raises:
            RosterInvalid: it is not in the chain.
        """
        for version, known in zip(self.versions, self.digests, strict=True):
            if known == version_digest:
                return version
        raise RosterInvalid(f"roster version {version_digest[:19]}... is not in this roster's chain")


def parse_roster_file(text: str) -> RosterFile:
    """Read a roster file, unverified.

    Raises:
        RosterInvalid: it is not a roster file.
    """
    try:
        parsed = RosterFile.model_validate_json(text)
    except ValidationError:
        raise RosterInvalid("the file is not a roster file (JSON with a list `versions`)") from None
    if not parsed.versions:
        raise RosterInvalid("the roster file holds no version")
    return parsed


def signers_of(version: RosterVersion, quorum: ChangeQuorum, roster: Roster) -> list[str]:
    """Names of the distinct custodians of `quorum` whose valid signatures a version carries."""
    found: set[str] = set()
    for signature in version.signatures:
        try:
            signer = roster.custodian(check(version.document.encode(), signature, Roster.TYPE))
        except ApprovalInvalid:
            continue
        if signer is not None and signer.name in quorum.custodians:
            found.add(signer.name)
    return sorted(found)


def verify_chain(file: RosterFile, *, genesis: str, minimum_number: int = 1) -> RosterChain:
    """Verify every version from the pinned first one.

    Args:
        file: the roster file.
        genesis: the pinned digest of version 1.
        minimum_number: the oldest version that may be the newest (protects against a roll-back).

    Raises:
        RosterInvalid: which version is wrong, and why.
    """
    versions: list[Roster] = []
    digests: list[str] = []
    for place, entry in enumerate(file.versions, start=1):
        try:
            roster = Roster.parse(entry.document.encode())
        except ApprovalInvalid as error:
            raise RosterInvalid(f"roster version {place}: {error.message}") from None
        if roster.number != place or roster.previous != (digests[-1] if digests else None):
            raise RosterInvalid(f"roster version {place} does not continue the chain")
        if versions:
            before = versions[-1]
            signers = signers_of(entry, before.change, before)
            if len(signers) < before.change.quorum:
                raise RosterInvalid(
                    f"roster version {place} is signed by {len(signers)} custodians; "
                    f"version {place - 1} demands {before.change.quorum}",
                    next_step="collect the missing signatures with `masterkey roster sign`",
                )
        elif roster.digest != genesis:
            raise RosterInvalid(
                f"the first roster version is {roster.digest}, but {genesis} is pinned",
                next_step="somebody gave you another roster: compare the pinned digest with your colleagues",
            )
        versions.append(roster)
        digests.append(roster.digest)
    if versions[-1].number < minimum_number:
        raise RosterInvalid(
            f"the roster ends at version {versions[-1].number}, but version {minimum_number} was seen before",
            next_step="this roster was rolled back: get the current file",
        )
    return RosterChain(tuple(versions), tuple(digests))
