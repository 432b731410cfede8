"""The roster: the signed, versioned document that says who everyone is.

Every role verifies the whole chain of versions from a digest that is pinned in its own configuration.
Each version is signed by the change quorum of the one before it, so nobody can add a custodian, a
recipient or a worker's identity without the custodians.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from workflows.contracts.trust.canonical import (
    Digest,
    Document,
    Fingerprint,
    Name,
    Part,
    Role,
    Signed,
    Time,
    digest,
    later,
)
from workflows.contracts.trust.errors import AnswerInvalid, ApprovalInvalid, DocumentInvalid, PlanInvalid
from workflows.contracts.trust.signatures import fingerprint, normal_public_key, open_signed

D = TypeVar("D", bound=Document)
Kind = type[D]
"""A class of documents; by a name of its own, because a roster has a field `type`."""

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


Entry = Custodian | Recipient | KeystoreWorker | Strongroom


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

    def _entries(self) -> tuple[tuple[Entry, ...], ...]:
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

    def keystore(self, key: str) -> KeystoreWorker | None:
        """The keystore worker with this name or this fingerprint, or none."""
        return next(
            (k for k in self.keystores if key in (k.name, k.fingerprint) and self._valid(k.fingerprint)),
            None,
        )

    def strongroom(self, key: str) -> Strongroom | None:
        """The strongroom with this name or this fingerprint, or none."""
        return next(
            (s for s in self.strongrooms if key in (s.name, s.fingerprint) and self._valid(s.fingerprint)),
            None,
        )

    def receives(self, recipient: str, master_key: str) -> bool:
        """Whether a recipient, by name or fingerprint, is enrolled for a MasterKey."""
        entry = self.recipient(recipient)
        return entry is not None and master_key in entry.master_keys

    def open(self, kind: Kind[D], signed: Signed, *, of: str = "") -> tuple[D, str]:
        """Verify a document that must be signed by whoever has the role that documents of its kind demand.

        Args:
            kind: the class of the document; its `SIGNER` is the role.
            signed: the document.
            of: the name that it must be signed by; an error is then about that one. Anybody of the role otherwise.

        Returns:
            The document, and the name of who signed it.

        Raises:
            DocumentInvalid: the signature or the document is not valid.
            ApprovalInvalid: a person signed that is not in this roster, or another than the document names.
            AnswerInvalid: a worker did.
        """
        try:
            document, key = open_signed(kind, signed)
        except DocumentInvalid as error:
            raise DocumentInvalid(error.message, subject=of) from None
        name = self.signer_of(document, key)
        if name is None or of not in ("", name):
            raise refusal(kind, of or key)
        return document, name

    def signer_of(self, document: Document, key: str) -> str | None:
        """The name of who signed a document, or none if they may not.

        Args:
            document: verified to be signed by `key`.
            key: the fingerprint.
        """
        if document.SIGNER is None:
            return None
        entry = _ENTRY_OF[document.SIGNER](self, getattr(document, document.SIGNER))
        return entry.name if entry is not None and entry.fingerprint == key else None

    def _valid(self, key_fingerprint: str) -> bool:
        return key_fingerprint not in self.revoked


_ENTRY_OF: dict[Role, Callable[[Roster, str], Entry | None]] = {
    "custodian": Roster.custodian,
    "recipient": Roster.recipient,
    "keystore": Roster.keystore,
    "strongroom": Roster.strongroom,
}


def refusal(kind: type[Document], subject: str) -> ApprovalInvalid:
    """The error for a document whose signer may not sign it, by the role that should have."""
    if kind.SIGNER == "keystore":
        return AnswerInvalid(f"the {kind.TYPE} document of {subject} is not signed by its worker", subject=subject)
    what = f"the {kind.TYPE} document is not signed by"
    if kind.SIGNER == "strongroom":
        return AnswerInvalid(f"{what} the strongroom of the roster that it names", subject=subject)
    return ApprovalInvalid(
        f"{what} a {kind.SIGNER} of the roster, or by another than it names",
        next_step="sign with the key that `masterkey roster show` lists, or enrol this one",
        subject=subject,
    )
