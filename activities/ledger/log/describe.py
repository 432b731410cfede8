"""The event log in words: what happened, and who signed it.

A name is given only to a signature that verifies, by the roster; everything else is what an orchestrator wrote down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from activities.ledger.log.events import (
    BundleImported,
    CeremonyClosed,
    CeremonyOpened,
    HoldingBegan,
    HoldingEnded,
    LedgerEvent,
    PlanProposed,
    ProtectionCommitted,
    ProtectionDestroyed,
    ProtectionRetired,
    ProtectionStaged,
    RosterSeen,
    StagedDiscarded,
    StopOrdered,
    StopsLifted,
    read_event,
)
from activities.ledger.log.records import EventRecord
from activities.ledger.log.signed import open_by_role, read_object, signed_documents, strange
from workflows.contracts.trust.canonical import Document, Signed
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import ApprovalInvalid, PlanInvalid
from workflows.contracts.trust.keystore import CheckResponse
from workflows.contracts.trust.plan import Approval, parse_plan
from workflows.contracts.trust.service_errors import BundleInvalid
from workflows.contracts.trust.session import Delivery
from workflows.contracts.trust.signatures import open_signed
from workflows.contracts.trust.stop import Ended, Stop

UNVERIFIED = "UNVERIFIED"
"""Stands where a signature does not verify."""
_DOCUMENTS = ("document", "signature", "plan", "delivery", "result", "wish", "ended")
_SIGNED_TYPES = (
    "approval-recorded",
    "rejection-recorded",
    "data-key-proven",
    StopOrdered.TYPE,
    "stop-heeded",
    "holder-ended",
    "masterkey-delivered",
)
_LONG = 200


@dataclass(frozen=True)
class RenderedEvent:
    """An event in words.

    Attributes:
        event: as it is in the log.
        who: names of those whose signatures are in it and verify, or `UNVERIFIED`; empty if nothing is signed.
        words: what happened.
    """

    event: EventRecord
    who: tuple[str, ...]
    words: str


def describe_event(event: EventRecord, chain: RosterChain) -> RenderedEvent:
    """An event in words; one that cannot be read says so."""
    who: list[str] = []
    documents: list[Document] = []
    try:
        for signed in signed_documents(event):
            document, key = _open(signed, event, chain)
            who.append(name_of(key, chain) if key else UNVERIFIED)
            documents += [document] if document else []
        if not who and event.type in _SIGNED_TYPES:
            who.append(UNVERIFIED)
        words = _own(event) or _theirs(event, documents)
    except (BundleInvalid, PlanInvalid, ApprovalInvalid) as error:
        who, words = who or [UNVERIFIED], f"cannot be read: {error.message}"
    return RenderedEvent(event, tuple(dict.fromkeys(who)), words)


def name_of(key: str, chain: RosterChain) -> str:
    """The name that a key has or had in the roster, or the key's fingerprint."""
    for version in reversed(chain.versions):
        known = {
            **{one.fingerprint: one.name for one in version.custodians},
            **{one.fingerprint: one.name for one in version.keystores},
            **{one.fingerprint: one.name for one in version.strongrooms},
            **{one.fingerprint: one.name for one in version.recipients},
        }
        if key in known:
            return known[key]
    return key


def _open(signed: Signed, event: EventRecord, chain: RosterChain) -> tuple[Document | None, str]:
    """What a document says, and who signed it; neither, if it does not verify or belongs elsewhere."""
    try:
        document = open_by_role(signed, chain)
        key = open_signed(type(document), signed)[1]
    except ApprovalInvalid:
        return None, ""
    return (None, "") if strange(document, event) else (document, key)


def _own(event: EventRecord) -> str:
    """What one of the ledger's own events says; empty for one of a workflow."""
    body = read_event(event)
    return "" if body is None else str(_OWN[type(body)](body))


def _theirs(event: EventRecord, documents: list[Document]) -> str:
    """What an event of a workflow says: its documents in words, and its plain fields."""
    told = [_SIGNED[type(one)](one) for one in documents if type(one) in _SIGNED]
    body = read_object(event.body)
    if not body and event.body != "{}":
        raise BundleInvalid("it is no object")
    fields = [f"{key.replace('_', ' ')} {_value(value)}" for key, value in body.items() if _shown(key, value)]
    return "; ".join([*(told or [event.type.replace("-", " ")]), *([", ".join(fields)] if fields else [])])


def _shown(key: str, value: Any) -> bool:
    return key not in _DOCUMENTS and value not in ("", None, [])


def _value(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]} ..."


def _short(digest: str) -> str:
    """Enough of a digest to find it by; the event itself has all of it."""
    return f"{digest[:19]}..."


def _protection(body: ProtectionStaged) -> str:
    return f"epoch {body.epoch} ({body.purpose}: {body.mode} {body.threshold} of {body.count}), {_short(body.digest)}"


def _committed(body: ProtectionCommitted) -> str:
    replaced = f"; it replaces {_short(body.retired)}" if body.retired else ""
    kept = f", whose ciphertexts are kept until {body.destroy_after:%Y-%m-%d %H:%M} UTC" if body.destroy_after else ""
    return f"in force: {_protection(body)}; KCV {body.kcv}{replaced}{kept}"


def _plan_made(body: PlanProposed) -> str:
    plan = parse_plan(body.plan)
    return f"plan {_short(plan.digest)} is put to its custodians, until {plan.expires:%Y-%m-%d %H:%M} UTC"


def _opened(body: CeremonyOpened) -> str:
    build = f", on build {body.build}" if body.build else ""
    return f"{body.opened.action} began, as workflow {body.opened.workflow_id}{build}"


def _destroyed(body: ProtectionDestroyed) -> str:
    return f"ciphertexts of epoch {body.epoch} destroyed ({'as scheduled' if body.scheduled else 'by order'})"


_OWN: dict[type[LedgerEvent], Callable[[Any], str]] = {
    RosterSeen: lambda body: f"roster version {body.number} came into use, {_short(body.digest)}",
    CeremonyOpened: _opened,
    PlanProposed: _plan_made,
    CeremonyClosed: lambda body: f"ended: {body.outcome}; {body.detail}",
    ProtectionStaged: lambda body: f"staged: {_protection(body)}",
    ProtectionCommitted: _committed,
    StagedDiscarded: lambda body: f"discarded what was only staged: {', '.join(map(_short, body.discarded))}",
    ProtectionRetired: lambda body: f"epoch {body.epoch} ({body.purpose}) retired by order, {_short(body.digest)}",
    ProtectionDestroyed: _destroyed,
    StopOrdered: lambda body: _stopped(Stop.parse(body.document.encode())),
    StopsLifted: lambda body: f"stops lifted: {', '.join(map(_short, body.stops))}",
    HoldingBegan: lambda body: f"a recipient's program holds the MasterKey: workflow {body.workflow_id}",
    HoldingEnded: lambda body: f"a recipient's program holds it no more: workflow {body.workflow_id}",
    BundleImported: lambda body: f"{body.events} events imported from bundle {_short(body.bundle)}",
}


def _stopped(stop: Stop) -> str:
    return f"ordered to stop serving {stop.master_key}: {stop.reason or 'no reason given'}"


_SIGNED: dict[type[Document], Callable[[Any], str]] = {
    Approval: lambda it: f"{it.decision}s plan {_short(it.plan_digest)}, until {it.expires:%Y-%m-%d %H:%M} UTC",
    CheckResponse: lambda it: f"data key of shard {it.index} {'can' if it.matches else 'CANNOT'} be given back",
    Delivery: lambda it: f"the MasterKey of manifest {_short(it.manifest)}, encrypted to its recipient",
    Ended: lambda it: "the program that held the MasterKey has ended",
    Stop: _stopped,
}

__all__ = ["UNVERIFIED", "RenderedEvent", "describe_event", "name_of"]
