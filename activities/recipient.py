"""The recipient's one-shot process: makes an HPKE key, opens one delivery, writes 32 bytes to a descriptor.

The MasterKey exists in this process alone until it has been written to the pipe of the program that was
named to receive it. The process that runs the command line never holds it.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from activities.crypto.envelope import MASTER_KEY_BYTES, equal, key_check_value
from activities.crypto.hpke import PrivateKey
from activities.identity import Identity
from activities.oneshot.child import Channel
from activities.roster import HostTerms
from workflows.contracts.messages.strongroom import Delivered
from workflows.contracts.trust.authority import check_manifest
from workflows.contracts.trust.canonical import Message, Signed, decode64, digest, seconds
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import AnswerInvalid, CiphertextInvalid, ManifestInvalid
from workflows.contracts.trust.fields import SUITE
from workflows.contracts.trust.plan import RecipientRequest
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.session import Delivery, delivery_info
from workflows.contracts.trust.stop import Ended
from workflows.contracts.trust.validity import CLOCK_SKEW, MAXIMUM_CEREMONY

TARGET = "activities.recipient:serve"
"""What a recipient's one-shot process runs."""
ACKNOWLEDGE = "activities.recipient:acknowledge"
"""What the process runs that says, signed, that a program has ended."""


class Terms(HostTerms):
    """What the process is told: who receives, what is pinned, and which protection is wanted."""

    master_key: str
    ceremony: str
    kcv: str
    manifest: Signed
    strongroom: str
    nonce: str
    issued: datetime
    expires: datetime


class Handover(Message):
    """The delivery; the descriptor to write to follows it on the same pipe."""

    delivered: Delivered


class EndedTerms(Message):
    """What is acknowledged: the program that held this MasterKey has ended because of this stop."""

    identity: str
    master_key: str
    ceremony: str
    stop: str
    time: datetime


def acknowledge(channel: Channel) -> None:
    """Sign that a program has ended (`Ended`): terms in, signed document out."""
    terms = channel.read(EndedTerms)
    identity = Identity.load(Path(terms.identity))
    ended = Ended(
        master_key=terms.master_key,
        ceremony=terms.ceremony,
        stop=terms.stop,
        recipient=identity.fingerprint,
        time=terms.time,
    )
    channel.reply(identity.sign(ended))


def serve(channel: Channel) -> None:
    """Run the recipient's side: terms in, signed request out, delivery and descriptor in, "done" out."""
    terms, key = channel.read(Terms), PrivateKey()
    chain, identity = terms.open()
    manifest = pinned_manifest(terms.manifest, chain, terms.master_key, terms.kcv)
    request = RecipientRequest(
        master_key=terms.master_key,
        ceremony=terms.ceremony,
        manifest=terms.manifest.digest,
        epoch=manifest.epoch,
        recipient=identity.fingerprint,
        suite=SUITE,
        hpke_public_key=key.public_key,
        strongroom=terms.strongroom,
        nonce=terms.nonce,
        issued=seconds(terms.issued),
        expires=seconds(terms.expires),
    )
    channel.reply(identity.sign(request))
    handover = channel.read(Handover)
    descriptor = channel.receive_descriptor()
    try:
        master_key = open_delivery(handover.delivered, request, chain, key, terms.kcv, datetime.now(UTC))
        written = os.write(descriptor, master_key)
        if written != MASTER_KEY_BYTES:
            raise CiphertextInvalid("the receiving program did not take all 32 bytes")
    finally:
        os.close(descriptor)
    channel.send(b"done")


def pinned_manifest(signed: Signed, chain: RosterChain, master_key: str, kcv: str) -> Manifest:
    """Verify a manifest as a recipient does: signed by a strongroom, of this MasterKey, with the pinned KCV.

    Raises:
        ManifestInvalid: it is not.
    """
    manifest = check_manifest(signed, chain)
    if manifest.master_key != master_key or not equal(manifest.kcv, kcv):
        raise ManifestInvalid(
            f"the manifest is not of the {master_key} whose key check value {kcv} is pinned",
            next_step="do not go on: somebody presents another key, or the pinned value is wrong",
        )
    return manifest


def open_delivery(
    delivered: Delivered, request: RecipientRequest, chain: RosterChain, key: PrivateKey, kcv: str, now: datetime
) -> bytes:
    """Verify a delivery and open it.

    Args:
        delivered: what the workflow returned.
        request: the request that this process signed.
        chain: the verified roster.
        key: the private key of this one request.
        kcv: the pinned key check value.
        now: the time.

    Returns:
        The MasterKey, 32 bytes.

    Raises:
        ApprovalInvalid: not signed by the strongroom that was asked, or for another request.
        CiphertextInvalid: it does not open, or is not the key whose KCV is pinned.
    """
    delivery, _ = chain.current.open(Delivery, delivered.delivery)
    if delivery.strongroom != request.strongroom:
        raise AnswerInvalid("the delivery is not signed by the strongroom that was asked", subject=request.strongroom)
    ciphertext = decode64(delivered.ciphertext)
    said = (delivery.master_key, delivery.ceremony, delivery.request, delivery.manifest, delivery.recipient_key)
    wanted = (request.master_key, request.ceremony, request.digest, request.manifest, request.hpke_key)
    if said != wanted or delivery.ciphertext_hash != digest(ciphertext):
        raise AnswerInvalid("the delivery answers another request")
    if delivery.time < request.issued - CLOCK_SKEW or now - delivery.time > MAXIMUM_CEREMONY:
        raise AnswerInvalid("the delivery is older than the request")
    if not equal(delivery.kcv, kcv):
        raise CiphertextInvalid("the delivery is of another key than the pinned one")
    master_key = key.open(ciphertext, delivery_info(delivery.request, delivery.manifest, delivery.kcv))
    if len(master_key) != MASTER_KEY_BYTES or not equal(key_check_value(master_key, request.master_key), kcv):
        raise CiphertextInvalid("what was delivered is not the key whose check value is pinned")
    return master_key
