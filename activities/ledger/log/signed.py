"""What people and workers signed, as the event log keeps it.

Workflows verify a signed document before they record it under `document` and `signature`: one that does not verify
was altered. What they record as it came (a delivery, which only its recipient needs to believe) may not verify,
and nothing depends on it: that is a warning, not a fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from activities.ledger.log.events import BundleImported, PlanProposed, read_event, wrong
from activities.ledger.log.records import EventRecord
from workflows.contracts.trust.canonical import Document, Signed
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import ApprovalInvalid, DocumentInvalid
from workflows.contracts.trust.import_approval import ImportApproval
from workflows.contracts.trust.keystore import CheckResponse, KeyDescription, StateStatement
from workflows.contracts.trust.plan import Approval, Plan, RecipientRequest, parse_plan
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.roster import refusal
from workflows.contracts.trust.session import DekResponse, Delivery, SessionAnnouncement
from workflows.contracts.trust.signatures import open_signed
from workflows.contracts.trust.stop import Ended, Stop


@dataclass
class VerifiedSignatures:
    """Everything signed that the event log holds, each signature verified.

    Attributes:
        plans: by digest.
        approvals: by ceremony and digest, in the order in which they were recorded; rejections are not in it.
        warnings: what does not verify, and need not.
    """

    plans: dict[str, Plan] = field(default_factory=dict)
    approvals: dict[str, dict[str, tuple[Approval, Signed]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def verify_signatures(events: Iterable[EventRecord], chain: RosterChain) -> VerifiedSignatures:
    """Verify every signature in an event log, by whoever was in the roster with that role at any time.

    Raises:
        BundleInvalid: naming the first event with a signature that does not verify.
    """
    signatures = VerifiedSignatures()
    for event in events:
        try:
            _read(event, chain, signatures)
        except ApprovalInvalid as error:
            raise wrong(event, error.message) from None
    return signatures


def _read(event: EventRecord, chain: RosterChain, signatures: VerifiedSignatures) -> None:
    body = read_object(event.body)
    if (signed := _signed(body, "document")) is not None:
        document = open_by_role(signed, chain)
        if (what := strange(document, event)) is not None:
            raise ApprovalInvalid(what)
        if isinstance(document, Approval) and document.decision == "approve":
            signatures.approvals.setdefault(event.ceremony, {})[signed.digest] = (document, signed)
    own = read_event(event)
    if isinstance(own, PlanProposed):
        plan = parse_plan(own.plan)
        if (plan.ceremony, plan.master_key) != (event.ceremony, event.master_key):
            raise ApprovalInvalid("the plan is of another ceremony")
        signatures.plans.setdefault(plan.digest, plan)
    if isinstance(own, BundleImported):
        for approval in own.approvals:
            if not isinstance(open_by_role(approval, chain), ImportApproval):
                raise ApprovalInvalid("the approval to import is something else")
    for came in _as_they_came(body):
        if (warning := _warning(came, event, chain)) is not None:
            signatures.warnings.append(f"event {event.seq} ({event.type}) {warning}")


def strange(document: Document, event: EventRecord) -> str | None:
    """Why a document does not belong to an event, or None if it does.

    A stop is heeded in other ceremonies than its own, and its recipients answer from those by which they got the key.
    """
    if isinstance(document, Approval):
        about, ceremony = document.plan.master_key, document.plan.ceremony
    else:
        about = getattr(document, "master_key", event.master_key)
        ceremony = (
            event.ceremony if isinstance(document, Stop | Ended) else getattr(document, "ceremony", event.ceremony)
        )
    if ceremony != event.ceremony:
        return f"the {document.TYPE} document is of another ceremony"
    return None if about == event.master_key else f"the {document.TYPE} document is of another MasterKey"


def _warning(came: Signed, event: EventRecord, chain: RosterChain) -> str | None:
    try:
        document = open_by_role(came, chain)
    except ApprovalInvalid:
        return "holds a signature that does not verify"
    return "holds a document of another ceremony or MasterKey" if strange(document, event) else None


def signed_documents(event: EventRecord) -> list[Signed]:
    """Every signed document in an event, unverified.

    Raises:
        ApprovalInvalid: one cannot be text.
    """
    body = read_object(event.body)
    approvals = body.get("approvals") if isinstance(body.get("approvals"), list) else []
    recorded = [_signed(body, "document"), *(_signed(read_object(one), "document") for one in approvals or ())]
    return [one for one in recorded if one is not None] + _as_they_came(body)


def open_by_role(signed: Signed, chain: RosterChain) -> Document:
    """Verify a document that was signed by whoever signs documents of its type.

    Raises:
        ApprovalInvalid: it is no document that anybody signs, or was not signed by one who may.
    """
    kind = _KINDS.get(str(read_object(signed.document).get("type")))
    if kind is None:
        raise DocumentInvalid("what is signed is no document that this program knows")
    document, key = open_signed(kind, signed)
    if not any(version.signer_of(document, key) for version in chain.versions):
        raise refusal(kind, key)
    return document


_KINDS: dict[str, type[Document]] = {
    kind.TYPE: kind
    for kind in (
        Approval,
        CheckResponse,
        DekResponse,
        Delivery,
        Ended,
        ImportApproval,
        KeyDescription,
        Manifest,
        RecipientRequest,
        SessionAnnouncement,
        StateStatement,
        Stop,
    )
}


def _as_they_came(body: dict[str, Any]) -> list[Signed]:
    """What was recorded without being verified: a request, a delivery, an acknowledgement of a stop."""
    came = (
        _signed(read_object(body.get("request")), "document"),
        _signed(body, "delivery"),
        _signed(read_object(body.get("ended")), "document"),
    )
    return [one for one in came if one is not None]


def read_object(text: Any) -> dict[str, Any]:
    """The JSON object of a text, or the object that is one already; an empty one for anything else."""
    try:
        value = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _signed(body: dict[str, Any], name: str) -> Signed | None:
    document, signature = body.get(name), body.get("signature")
    if not isinstance(document, str) or not isinstance(signature, str):
        return None
    if not _is_text(document) or not _is_text(signature):
        raise ApprovalInvalid("what is signed is no text")
    return Signed.model_construct(document=document, signature=signature)


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: half of a surrogate pair, which JSON can hold, cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
