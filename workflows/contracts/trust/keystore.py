"""What a keystore worker says of itself, and what it checks for itself of proofs and sessions. After `session`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar, Literal

from workflows.contracts.trust.canonical import Digest, Document, Name, Part, Role, Signed, Time
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import AnswerInvalid, ApprovalInvalid, ManifestInvalid
from workflows.contracts.trust.fields import Index, KeyId, Mode, Nonce, Number, Purpose, Work
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.session import SessionAnnouncement
from workflows.contracts.trust.validity import SESSION_LIFETIME, check_time


class KeyDescription(Document):
    """A keystore worker's signed answer which key it uses."""

    TYPE: ClassVar[str] = "masterkey-key"
    SIGNER: ClassVar[Role | None] = "keystore"

    type: Literal["masterkey-key"] = "masterkey-key"
    version: Literal[1] = 1
    keystore: Name
    kind: str
    key_id: KeyId
    key_version: str
    modes: tuple[Mode, ...]
    time: Time


class CheckResponse(Document):
    """A keystore worker's signed answer that it can still give back a DEK."""

    TYPE: ClassVar[str] = "masterkey-check"
    SIGNER: ClassVar[Role | None] = "keystore"

    type: Literal["masterkey-check"] = "masterkey-check"
    version: Literal[1] = 1
    manifest: Digest
    master_key: Name
    index: Index
    keystore: Name
    key_id: KeyId
    key_version: str
    nonce: Nonce
    matches: bool
    time: Time


class KeystoreState(Part):
    """What a keystore worker remembers of one MasterKey.

    Attributes:
        kcv: key check value at the first commit that it heard of; "" if it has heard of a stop only.
        epochs: lowest epoch that it still serves, for each purpose.
        stops: digests of the stops in force here.
    """

    master_key: Name
    kcv: str
    epochs: dict[Purpose, Number]
    stops: tuple[Digest, ...]


class StateStatement(Document):
    """A keystore worker's signed answer what it remembers: sent after a stop, a lift or a retirement, and on request.

    Attributes:
        about: digest of what it was told, or a nonce's digest if it was only asked.
    """

    TYPE: ClassVar[str] = "masterkey-state"
    SIGNER: ClassVar[Role | None] = "keystore"

    type: Literal["masterkey-state"] = "masterkey-state"
    version: Literal[1] = 1
    keystore: Name
    about: Digest
    roster_number: int
    master_keys: tuple[KeystoreState, ...]
    time: Time


def check_proofs(chain: RosterChain, manifest: Manifest, manifest_digest: str, proofs: Sequence[Signed]) -> None:
    """Check that every keystore of a protection has proven that it can give back its data key.

    Before that no keystore worker takes a protection for the one in force: who hides the proofs, or could not get
    them, cannot retire the protection that works.

    Args:
        chain: the verified roster.
        manifest: of the protection.
        manifest_digest: its digest.
        proofs: a signed `CheckResponse` of each shard's keystore, in any order.

    Raises:
        ManifestInvalid: one is missing, or was not signed by that keystore's worker.
    """
    missing = {shard.binding.index: shard.binding.keystore for shard in manifest.shards}
    for signed in proofs:
        try:
            answer, _ = chain.current.open(CheckResponse, signed)
        except ApprovalInvalid:
            # No proof of anything: its keystore stays among those that are missing.
            continue
        if (answer.manifest, answer.matches, missing.get(answer.index)) == (manifest_digest, True, answer.keystore):
            del missing[answer.index]
    if missing:
        raise ManifestInvalid(
            f"the protection was not proven by {', '.join(sorted(missing.values()))}",
            next_step="nothing was changed: what was in force before is in force still",
        )


def check_session(chain: RosterChain, signed: Signed, plan: Plan, purpose: Work, now: datetime) -> SessionAnnouncement:
    """Verify that a session's key was announced by the strongroom that the plan names, for this plan.

    Raises:
        AnswerInvalid: it was not.
        ApprovalInvalid: it is out of time.
    """
    session, _ = chain.current.open(SessionAnnouncement, signed)
    if session.strongroom != plan.strongroom:
        raise AnswerInvalid("the session is not signed by the strongroom that the plan names", subject=plan.strongroom)
    source = plan.source.manifest if plan.source else None
    announced = (
        session.purpose,
        session.master_key,
        session.ceremony,
        session.plan,
        session.source,
        session.roster,
    )
    if announced != (purpose, plan.master_key, plan.ceremony, plan.digest, source, plan.roster):
        raise AnswerInvalid("the session was opened for something else")
    check_time("the session", session.issued, session.expires, now, SESSION_LIFETIME)
    return session
