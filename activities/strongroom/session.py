"""A session: the one-shot process that holds a MasterKey for a few milliseconds.

It makes its own HPKE key, announces the public half signed by the strongroom's identity, receives DEKs that
keystore workers encrypted to that key, protects, releases or reshards a MasterKey, answers with ciphertext and
signed documents, and exits. It verifies for itself everything that authorises the work: whoever sends the work
is not trusted.
"""

from __future__ import annotations

import secrets
import signal
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from activities.crypto import envelope, hpke
from activities.oneshot.child import Channel
from activities.oneshot.requests import Asked
from activities.roster import HostTerms
from activities.strongroom.datakeys import Session
from activities.strongroom.opening import open_protection
from activities.strongroom.protecting import make_protection
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.messages.strongroom import Delivered, Protect, Release, Reshard
from workflows.contracts.trust.authority import Granted, check_protect, check_release, check_reshard
from workflows.contracts.trust.canonical import Message, Signed, digest, encode64, seconds
from workflows.contracts.trust.errors import AuthorityInvalid
from workflows.contracts.trust.fields import SUITE, Nonce, Work
from workflows.contracts.trust.plan import parse_plan
from workflows.contracts.trust.session import Delivery, SessionAnnouncement, delivery_info
from workflows.contracts.trust.validity import SESSION_LIFETIME


class SessionTerms(HostTerms):
    """What a session is told when it is opened."""

    purpose: Work
    plan: str
    attempt: int
    session: Nonce


def serve(channel: Channel) -> None:
    """Run a session over a pipe: terms in, announcement out, work in, answer out."""
    session = open_session(channel.read(SessionTerms), _now())
    # The key dies with its announcement: SIGALRM ends the process, whatever it waits for.
    signal.setitimer(signal.ITIMER_REAL, SESSION_LIFETIME.total_seconds())
    channel.reply(session.identity.sign(session.announcement))
    work = channel.read(Asked).request(WORK)
    channel.reply(WORK[type(work)](session, work, _now()))


def open_session(terms: SessionTerms, now: datetime) -> Session:
    """Make a key, and the announcement of its public half.

    Raises:
        ApprovalInvalid: the plan names another strongroom, another roster, or is out of time.
    """
    chain, identity = terms.open()
    key, plan = hpke.PrivateKey(), parse_plan(terms.plan)
    if plan.strongroom != identity.fingerprint:
        raise AuthorityInvalid("the plan names another strongroom")
    announcement = SessionAnnouncement(
        session=terms.session,
        purpose=terms.purpose,
        suite=SUITE,
        hpke_public_key=key.public_key,
        strongroom=identity.fingerprint,
        master_key=plan.master_key,
        ceremony=plan.ceremony,
        attempt=terms.attempt,
        plan=plan.digest,
        source=plan.source.manifest if plan.source else None,
        roster=chain.digest,
        issued=seconds(now),
        expires=seconds(now) + SESSION_LIFETIME,
    )
    return Session(key, identity, chain, plan, announcement, terms.software)


def protect(session: Session, work: Protect, now: datetime) -> StoredProtection:
    """Draw a MasterKey and protect it as the approved plan says.

    Raises:
        ApprovalInvalid: plan, approvals, or a keystore's signature do not verify.
        CiphertextInvalid: a DEK does not open, or what was just made does not recombine.
    """
    granted = _granted(session, "protect", check_protect(session.chain, work.authority, now))
    if granted.plan.action != "init":
        raise AuthorityInvalid("a new MasterKey is drawn only at its creation")
    master_key = secrets.token_bytes(envelope.MASTER_KEY_BYTES)
    return make_protection(session, granted, master_key, work.deks, now)


def reshard(session: Session, work: Reshard, now: datetime) -> StoredProtection:
    """Recombine a MasterKey and protect it anew; it leaves this process only inside the new shards.

    Raises:
        ApprovalInvalid, ManifestInvalid, PlanInvalid: it is not authorised.
        CiphertextInvalid: a row or a DEK is not what the manifest describes, or what was made does not recombine.
    """
    source = work.protection.manifest
    granted = _granted(session, "reshard", check_reshard(session.chain, work.authority, source, now))
    manifest = granted.manifest
    assert manifest is not None  # noqa: S101 - check_reshard sets it
    master_key = open_protection(session, granted, manifest, work.protection, work.opened, now)
    return make_protection(session, granted, master_key, work.deks, now)


def release(session: Session, work: Release, now: datetime) -> Delivered:
    """Recombine a MasterKey and encrypt it to the recipient that the plan names.

    Raises:
        ApprovalInvalid, ManifestInvalid: the release is not authorised.
        CiphertextInvalid: a row or a DEK is not what the manifest describes; `subject` is the keystore.
    """
    source = work.protection.manifest
    granted = _granted(session, "release", check_release(session.chain, work.authority, source, now))
    manifest, request = granted.manifest, granted.request
    assert manifest is not None and request is not None  # noqa: S101, PT018 - check_release sets both
    master_key = open_protection(session, granted, manifest, work.protection, work.deks, now)
    info = delivery_info(_request_digest(work), source.digest, manifest.kcv)
    ciphertext = hpke.encrypt_to(request.hpke_public_key, master_key, info)
    delivery = Delivery(
        master_key=manifest.master_key,
        ceremony=granted.plan.ceremony,
        request=_request_digest(work),
        manifest=source.digest,
        kcv=manifest.kcv,
        recipient_key=request.hpke_key,
        strongroom=session.identity.fingerprint,
        ciphertext_hash=digest(ciphertext),
        time=seconds(now),
    )
    return Delivered(delivery=session.identity.sign(delivery), ciphertext=encode64(ciphertext))


WORK: Mapping[type[Message], Callable[[Session, Any, datetime], Message]] = {
    Protect: protect,
    Release: release,
    Reshard: reshard,
}
"""The one thing that a session is asked to do, and what does it."""


def _granted(session: Session, purpose: Work, granted: Granted) -> Granted:
    ours = session.announcement
    if (granted.plan.digest, purpose) != (ours.plan, ours.purpose):
        raise AuthorityInvalid("this session was opened for another plan or purpose")
    return granted


def _request_digest(work: Release) -> str:
    signed: Signed | None = work.authority.request
    assert signed is not None  # noqa: S101 - check_release refuses a release without one
    return signed.digest


def _now() -> datetime:
    return datetime.now(UTC)
