"""The roster: the signed, versioned document that says who everyone is.

Every role verifies the whole chain of versions from a digest that is pinned in its own configuration.
Each version is signed by the change quorum of the one before it, so nobody can add a custodian, a
recipient or a worker's identity without the custodians.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from workflows.contracts.trust.canonical import Digest, Document, Fingerprint, Name, Part, Time, digest, later
from workflows.contracts.trust.errors import PlanInvalid
from workflows.contracts.trust.signatures import fingerprint, normal_public_key

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
