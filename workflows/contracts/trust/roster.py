"""The roster: the signed, versioned document that says who everyone is.

Every role verifies the whole chain of versions from a digest that is pinned in its own configuration.
Each version is signed by the change quorum of the one before it, so nobody can add a custodian, a
recipient or a worker's identity without the custodians.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from workflows.contracts.trust.canonical import Digest, Document, Fingerprint, Message, Name, Part, Time, digest, later
from workflows.contracts.trust.errors import ApprovalInvalid, PlanInvalid, RosterInvalid
from workflows.contracts.trust.signatures import check, fingerprint, normal_public_key

PublicKeyLine = Annotated[str, StringConstraints(max_length=2048), AfterValidator(normal_public_key)]


def _ed25519(text: str) -> str:
    if not text.startswith("ssh-ed25519 "):
        raise ValueError("the identity of a worker or a recipient is an ssh-ed25519 key")
    return text


IdentityLine = Annotated[PublicKeyLine, AfterValidator(_ed25519)]
AgeRecipient = Annotated[str, StringConstraints(pattern=r"^age1(pq1)?[02-9ac-hj-np-z]{8,2100}$")]
"""Bech32 of an age recipient (https://age-encryption.org/v1); whether a key can be made of it, its user finds out."""
ANY = "*"
"""In a governance entry: every MasterKey that has no entry of its own."""


class Custodian(Part):
    """A person with an SSH signing key (Ed25519 or RSA)."""

    name: Name
    public_key: PublicKeyLine

    @property
    def fingerprint(self) -> str:
        """Of the signing key, as `ssh-keygen -l` prints it."""
        return fingerprint(self.public_key)


class Recipient(Part):
    """Somebody who may receive the named MasterKeys."""

    name: Name
    public_key: IdentityLine
    master_keys: tuple[Name, ...]

    @property
    def fingerprint(self) -> str:
        """Of the identity key."""
        return fingerprint(self.public_key)


class KeystoreWorker(Part):
    """The identity of a keystore's worker, and the custodians of its shards unless a plan names others.

    Attributes:
        offline: for a keystore without a worker that waits: the age recipient (`age1...`) that data keys are
            encrypted to. Its custodian keeps the age identity, and the identity key, and answers by
            `masterkey contribute`.
    """

    name: Name
    public_key: IdentityLine
    custodians: tuple[Name, ...] = ()
    offline: AgeRecipient | None = later()

    @property
    def offline_key_id(self) -> str:
        """The id of an offline keystore's key: a digest of its age recipient."""
        return f"age:{digest((self.offline or '').encode())}"

    @property
    def fingerprint(self) -> str:
        """Of the identity key."""
        return fingerprint(self.public_key)


class Strongroom(Part):
    """The identity of a strongroom."""

    name: Name
    public_key: IdentityLine

    @property
    def fingerprint(self) -> str:
        """Of the identity key."""
        return fingerprint(self.public_key)


class Governance(Part):
    """Who, and how many of them, authorise what happens to a MasterKey.

    Attributes:
        master_key: its name, or `*` for every MasterKey without an entry of its own.
        custodians: names; at least `quorum` of them sign.
        quorum: 1 to the number of custodians.
        minimum_threshold: the smallest M that an `sss` protection may have; at least 2.
    """

    master_key: Annotated[str, StringConstraints(pattern=r"^(\*|[a-z0-9][a-z0-9-]{0,62})$")]
    custodians: tuple[Name, ...]
    quorum: Annotated[int, Field(ge=1, le=255)]
    minimum_threshold: Annotated[int, Field(ge=2, le=255)] = 2


class ChangeQuorum(Part):
    """Who, and how many of them, sign the next version of the roster."""

    custodians: tuple[Name, ...]
    quorum: Annotated[int, Field(ge=1, le=255)]


class Roster(Document):
    """One version of the roster.

    Attributes:
        number: 1 for the first, then one more each time.
        previous: digest of the version before; none for the first.
        revoked: fingerprints of identity keys whose signatures no longer count, not even on old manifests.
    """

    TYPE: ClassVar[str] = "masterkey-roster"

    type: Literal["masterkey-roster"] = "masterkey-roster"
    version: Literal[1] = 1
    number: Annotated[int, Field(ge=1)]
    previous: Digest | None
    issued: Time
    custodians: tuple[Custodian, ...]
    recipients: tuple[Recipient, ...]
    keystores: tuple[KeystoreWorker, ...]
    strongrooms: tuple[Strongroom, ...]
    governance: tuple[Governance, ...]
    change: ChangeQuorum
    revoked: tuple[Fingerprint, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = {entry.name for entry in self.custodians}
        for kind in (self.custodians, self.recipients, self.keystores, self.strongrooms):
            listed = [entry.name for entry in kind]
            if len(set(listed)) != len(listed):
                raise ValueError("a name stands twice")
        keys = [e.public_key for kind in self._entries() for e in kind]
        if len(set(keys)) != len(keys):
            raise ValueError("the same key stands twice; every person and every worker has a key of its own")
        quorums = [(f"governance of {g.master_key}", g.custodians, g.quorum) for g in self.governance]
        for what, custodians, quorum in [
            *quorums,
            ("change quorum", self.change.custodians, self.change.quorum),
        ]:
            if unknown := set(custodians) - names:
                raise ValueError(f"{what} names {sorted(unknown)}, who are not custodians")
            if len(set(custodians)) != len(custodians) or not quorum <= len(custodians):
                raise ValueError(f"{what} asks for {quorum} of {len(set(custodians))} custodians")
        if unknown := {name for keystore in self.keystores for name in keystore.custodians} - names:
            raise ValueError(f"a keystore names {sorted(unknown)}, who are not custodians")
        if len({g.master_key for g in self.governance}) != len(self.governance):
            raise ValueError("a MasterKey has two governance entries")
        return self

    def _entries(self) -> tuple[tuple[Custodian | Recipient | KeystoreWorker | Strongroom, ...], ...]:
        return (self.custodians, self.recipients, self.keystores, self.strongrooms)

    def governance_of(self, master_key: str) -> Governance:
        """The governance entry of a MasterKey.

        Raises:
            PlanInvalid: the roster has none for it.
        """
        for wanted in (master_key, ANY):
            for entry in self.governance:
                if entry.master_key == wanted:
                    return entry
        raise PlanInvalid(
            f"the roster has no governance quorum for MasterKey {master_key}",
            next_step="add one with `masterkey roster propose`",
        )

    def custodian(self, key: str) -> Custodian | None:
        """The custodian with this name or this fingerprint, or none."""
        return next(
            (c for c in self.custodians if key in (c.name, c.fingerprint) and self._valid(c.fingerprint)),
            None,
        )

    def recipient(self, key: str) -> Recipient | None:
        """The recipient with this name or this fingerprint, or none."""
        return next(
            (r for r in self.recipients if key in (r.name, r.fingerprint) and self._valid(r.fingerprint)),
            None,
        )

    def keystore(self, name: str) -> KeystoreWorker | None:
        """The keystore worker of this name, or none."""
        return next((k for k in self.keystores if k.name == name and self._valid(k.fingerprint)), None)

    def strongroom(self, key: str) -> Strongroom | None:
        """The strongroom with this name or this fingerprint, or none."""
        return next(
            (s for s in self.strongrooms if key in (s.name, s.fingerprint) and self._valid(s.fingerprint)),
            None,
        )

    def _valid(self, key_fingerprint: str) -> bool:
        return key_fingerprint not in self.revoked


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
