"""What people and workers signed, as the event log keeps it.

Workflows verify a signed document before they record it under `document` and `signature`: one that does not verify
was altered. What they record as it came (a delivery, which only its recipient needs to believe) may not verify,
and nothing depends on it: that is a doubt, not a fault.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from activities.ledger.bodies import Imported, PlanMade, read_body, wrong
from activities.ledger.records import EventRecord
from workflows.contracts.authority import parse_plan
from workflows.contracts.bundle import ImportApproval
from workflows.contracts.canonical import Document, Signed
from workflows.contracts.documents import (
    Approval,
    CheckResponse,
    DekResponse,
    Delivery,
    Ended,
    KeyDescription,
    Manifest,
    Plan,
    RecipientRequest,
    SessionAnnouncement,
    StateStatement,
    Stop,
)
from workflows.contracts.errors import ApprovalInvalid
from workflows.contracts.roster import KeystoreWorker, Roster, RosterChain
from workflows.contracts.signatures import open_signed


@dataclass
class Evidence:
    """Everything signed that the event log holds, each signature verified.

    Attributes:
        plans: by digest; older ledgers keep them only inside the approvals.
        approvals: by ceremony and digest, in the order in which they were recorded; rejections are not in it.
        doubts: what does not verify, and need not.
    """

    plans: dict[str, Plan] = field(default_factory=dict)
    approvals: dict[str, dict[str, tuple[Approval, Signed]]] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)


def read_evidence(events: Iterable[EventRecord], chain: RosterChain) -> Evidence:
    """Verify every signature in an event log, by whoever was in the roster with that role at any time.

    Raises:
        BundleInvalid: naming the first event with a signature that does not verify.
    """
    evidence = Evidence()
    for event in events:
        try:
            _read(event, chain, evidence)
        except ApprovalInvalid as error:
            raise wrong(event, error.message) from None
    return evidence


def _read(event: EventRecord, chain: RosterChain, evidence: Evidence) -> None:
    body = _object(event.body)
    if (signed := _signed(body, "document")) is not None:
        document = open_by_role(signed, chain)
        if isinstance(document, Approval):
            if document.plan.ceremony != event.ceremony:
                raise ApprovalInvalid("the approval is of another ceremony")
            evidence.plans.setdefault(document.plan_digest, document.plan)
            if document.decision == "approve":
                evidence.approvals.setdefault(event.ceremony, {})[signed.digest] = (document, signed)
    own = read_body(event)
    if isinstance(own, PlanMade):
        plan = parse_plan(own.plan)
        if (plan.ceremony, plan.master_key) != (event.ceremony, event.master_key):
            raise ApprovalInvalid("the plan is of another ceremony")
        evidence.plans.setdefault(plan.digest, plan)
    if isinstance(own, Imported):
        for approval in own.approvals:
            if not isinstance(open_by_role(approval, chain), ImportApproval):
                raise ApprovalInvalid("the approval to import is something else")
    for came in _as_they_came(body):
        if not _verifies(came, chain):
            evidence.doubts.append(f"event {event.seq} ({event.type}) holds a signature that does not verify")


def signed_documents(event: EventRecord) -> list[Signed]:
    """Every signed document in an event, unverified."""
    body = _object(event.body)
    recorded = [_signed(body, "document"), _signed(_object(body.get("request")), "document")]
    approvals = body.get("approvals") if isinstance(body.get("approvals"), list) else []
    recorded += [_signed(_object(one), "document") for one in approvals or ()]
    return [one for one in recorded if one is not None] + _as_they_came(body)


def open_by_role(signed: Signed, chain: RosterChain) -> Document:
    """Verify a document that was signed by whoever signs documents of its type.

    Raises:
        ApprovalInvalid: it is no document that anybody signs, or was not signed by one who may.
    """
    type_ = _object(signed.document).get("type")
    for kind, role in _ROLES.items():
        if type_ == kind.TYPE:
            document, signer = open_signed(kind, signed)
            if not any(role(version, signer) for version in chain.versions):
                raise ApprovalInvalid(f"the {type_} document is not signed by one who may", subject=signer)
            return document
    raise ApprovalInvalid("what is signed is no document that this program knows")


def _keystore(roster: Roster, key: str) -> KeystoreWorker | None:
    return next((entry for entry in roster.keystores if entry.fingerprint == key), None)


_ROLES: dict[type[Document], Callable[[Roster, str], object]] = {
    Approval: Roster.custodian,
    Stop: Roster.custodian,
    ImportApproval: Roster.custodian,
    CheckResponse: _keystore,
    StateStatement: _keystore,
    KeyDescription: _keystore,
    DekResponse: _keystore,
    Manifest: Roster.strongroom,
    Delivery: Roster.strongroom,
    SessionAnnouncement: Roster.strongroom,
    RecipientRequest: Roster.recipient,
    Ended: Roster.recipient,
}


def _as_they_came(body: dict[str, Any]) -> list[Signed]:
    """What was recorded without being verified: a delivery, an acknowledgement of a stop."""
    came = (_signed(body, "delivery"), _signed(_object(body.get("ended")), "document"))
    return [one for one in came if one is not None]


def _verifies(signed: Signed, chain: RosterChain) -> bool:
    try:
        open_by_role(signed, chain)
    except ApprovalInvalid:
        return False
    return True


def _object(text: Any) -> dict[str, Any]:
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
    return Signed.model_construct(document=document, signature=signature)
