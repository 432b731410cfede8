"""What a ceremony's plan is made from, and the early refusals: the ledger's part of a ceremony's beginning.

Nothing here protects a key. Keystore workers and the strongroom refuse by themselves what is refused here; this
is to tell people at once, and not after three custodians have signed.
"""

from __future__ import annotations

import json

from sqlalchemy.orm import Session

from activities.ledger.log.records import ProtectionRecord, StopRecord
from activities.ledger.store import chain as events
from activities.ledger.store.ledger import Ledger
from workflows.contracts.messages.ledger import BeginCeremony, Begun, LastProof
from workflows.contracts.messages.protection import StoredProtection, StoredShard
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.keystore import CheckResponse
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.service_errors import NameTaken, NotKnown, Stopped
from workflows.contracts.trust.stop import Stop, check_stop

_REFUSED_WHILE_STOPPED = ("init", "unseal", "reshard", "recover")
_WITH_PROOFS = ("drill", "reshard", "recover")
_LOOKED_AT = 5000
"""Events that are looked at for proofs: of a drill an hour, a month or more."""


def begin(ledger: Ledger, chain: RosterChain, request: BeginCeremony) -> Begun:
    """What the plan of a ceremony that was just opened is made from.

    Raises:
        NameTaken: init of a name that exists.
        NotKnown: there is no such MasterKey, or no such protection.
        PlanInvalid: the protection that an order is about is not in the state for it.
        ApprovalInvalid: a stop that no custodian signed, or of another MasterKey or ceremony.
        Stopped: a custodian has ordered that this MasterKey is served to nobody.
    """
    action, master_key, roster = request.action, request.master_key, chain.current
    # So that a bundle cannot come with an older roster than the one that was in force.
    ledger.note_roster(roster.number, chain.digest)
    known = next((key for key in ledger.master_keys() if key.master_key == master_key), None)
    if action == "init" and known is not None:
        raise NameTaken(f"a MasterKey named {master_key} exists already")
    if known is None and (request.all_active or action in ("seal", "lift")):
        raise NotKnown(f"there is no MasterKey {master_key}")
    if request.stop is not None and action == "seal":
        _order(ledger, roster, request, request.stop)
    in_force = ledger.stops_in_force(master_key)
    if in_force and action in _REFUSED_WHILE_STOPPED:
        raise stopped(in_force[0], roster)
    if request.manifest is not None and action in ("retire", "destroy"):
        ledger.check_order(master_key, action, request.manifest)
    active = _active(ledger, request)
    return Begun(
        roster=roster.canonical().decode(),
        roster_digest=chain.digest,
        protection=_asked_for(ledger, request),
        active=tuple(stored(record) for record in active),
        next_epoch=known.epoch + 1 if known else 1,
        stops=tuple(stop.signed for stop in in_force) if action == "lift" else (),
        releases=tuple(ledger.releases(master_key)) if action == "seal" else (),
        proofs=ledger.read(lambda session: _last_proofs(session, master_key, active)) if action in _WITH_PROOFS else (),
    )


def stopped(stop: StopRecord, roster: Roster) -> Stopped:
    """The refusal that names who has ordered to stop, when, and why."""
    said = Stop.parse(stop.document.encode())
    custodian = roster.custodian(said.custodian)
    who = custodian.name if custodian else f"the custodian {said.custodian}"
    why = f": {said.reason}" if said.reason else ""
    return Stopped(
        f"{stop.master_key} is stopped: {who} ordered it on {stop.ordered_at:%Y-%m-%d at %H:%M:%S} UTC{why}",
        subject=stop.master_key,
    )


def _last_proofs(session: Session, master_key: str, protections: list[ProtectionRecord]) -> tuple[LastProof, ...]:
    """When each shard of these protections was last proven; unverified, and only of the newest proofs."""
    missing = {(record.digest, shard.index) for record in protections for shard in record.shards}
    found: list[LastProof] = []
    for event in events.newest(session, master_key, "data-key-proven", limit=_LOOKED_AT):
        if not missing:
            break
        body = json.loads(event.body)
        try:
            answer = CheckResponse.parse(str(body.get("document", "")).encode())
        except ApprovalInvalid:
            # A recipient of this list asks for proofs anew where it has none.
            continue
        if answer.matches and (shard := (answer.manifest, answer.index)) in missing:
            missing.remove(shard)
            proof = Signed(document=str(body["document"]), signature=str(body.get("signature", "")))
            found.append(LastProof(manifest=answer.manifest, index=answer.index, at=answer.time, proof=proof))
    return tuple(sorted(found, key=lambda proof: (proof.manifest, proof.index)))


def stored(record: ProtectionRecord) -> StoredProtection:
    """A protection as it travels."""
    rows = tuple(StoredShard.model_validate(row.model_dump()) for row in record.shards)
    return StoredProtection(manifest=record.signed, shards=rows)


def _order(ledger: Ledger, roster: Roster, request: BeginCeremony, signed: Signed) -> None:
    stop, _ = check_stop(roster, signed, request.opened_at)
    if (stop.master_key, stop.ceremony) != (request.master_key, request.ceremony):
        raise ApprovalInvalid("the stop is of another MasterKey or another ceremony", subject=request.master_key)
    ledger.order_stop(request.ceremony, request.master_key, signed)


def _active(ledger: Ledger, request: BeginCeremony) -> list[ProtectionRecord]:
    # Whoever served something that was retired serves it still until told: a stop, and its lift, go there too.
    wanted = ("active", "retired") if request.action in ("seal", "lift") else ("active",)
    if not request.all_active and request.action not in ("seal", "lift"):
        return []
    return [record for record in ledger.protections(request.master_key) if record.status in wanted]


def _asked_for(ledger: Ledger, request: BeginCeremony) -> StoredProtection | None:
    if request.manifest is None:
        return None
    record = ledger.protection(request.master_key, digest=request.manifest)
    if record.status not in ("active", "retired"):
        raise NotKnown(f"the protection of {request.master_key} that was asked for does not serve")
    return stored(record)
