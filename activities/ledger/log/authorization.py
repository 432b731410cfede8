"""Whether the right people stood behind what was done: protections made, stops, lifts, retirements, destructions.

Each is judged by the roster that its plan names, and at the time when it was decided: who was a custodian then, and
whose approval was in force then. Who has left since does not undo it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from activities.ledger.log.events import ProtectionDestroyed, ProtectionRetired, StopsLifted, wrong
from activities.ledger.log.records import EventRecord
from activities.ledger.log.signed import VerifiedSignatures
from activities.ledger.log.state import ProtectionPast, StopPast
from workflows.contracts.trust.authority import check_protect, check_reshard
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import ApprovalInvalid, MasterKeyError
from workflows.contracts.trust.order import check_order
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.stop import Stop, check_stop
from workflows.contracts.trust.validity import CLOCK_SKEW

_ACTIONS = {StopsLifted.TYPE: "lift", ProtectionRetired.TYPE: "retire", ProtectionDestroyed.TYPE: "destroy"}

_OF_PLAN = ("master_key", "ceremony", "governance_quorum", "strongroom")
_OF_TARGET = ("purpose", "mode", "epoch", "threshold", "predecessor")


def as_of(chain: RosterChain, version: str) -> RosterChain:
    """The roster as it was when this version was the newest.

    Raises:
        RosterInvalid: the chain has no such version.
    """
    end = chain.versions.index(chain.at(version)) + 1
    return RosterChain(chain.versions[:end], chain.digests[:end])


@dataclass(frozen=True)
class Authorization:
    """Judges what was done by what was signed.

    Attributes:
        chain: the verified roster.
        signatures: plans and approvals, their signatures verified.
        manifests: signed, by digest: what was ever committed.
    """

    chain: RosterChain
    signatures: VerifiedSignatures
    manifests: Mapping[str, Signed]

    def check_protection(self, manifest: Manifest, past: ProtectionPast) -> None:
        """Check that a quorum had authorised exactly this protection when the strongroom made it.

        And for how long what it replaces is kept.

        Raises:
            ApprovalInvalid, PlanInvalid, ManifestInvalid, RosterInvalid: it had not.
        """
        plan, given = self.signatures.plans.get(manifest.plan), self.signatures.approvals.get(manifest.ceremony, {})
        if plan is None:
            raise ApprovalInvalid(f"plan {manifest.plan} is not in the event log")
        for entry in manifest.authority:
            if entry not in given:
                raise ApprovalInvalid(f"approval {entry} is not in the event log")
        approvals = tuple(given[entry][1] for entry in manifest.authority)
        authority, then = _authority(plan, *approvals), as_of(self.chain, manifest.roster)
        if plan.source is None:
            check_protect(then, authority, manifest.created)
        elif (source := self.manifests.get(plan.source.manifest)) is None:
            raise ApprovalInvalid(f"manifest {plan.source.manifest}, from which it was made, is not in the bundle")
        else:
            check_reshard(then, authority, source, manifest.created)
        if not _as_approved(plan, manifest):
            raise ApprovalInvalid("the protection is not what was approved")
        hours = plan.target.retention_hours if plan.target and manifest.predecessor else None
        if past.destroys_after != (None if hours is None else past.committed + timedelta(hours=hours)):
            raise ApprovalInvalid("what it replaces is not kept for as long as was approved")

    def check_stop(self, past: StopPast) -> None:
        """Check that a custodian of any roster version ordered a stop.

        Raises:
            ApprovalInvalid: nobody did.
        """
        for version in self.chain.versions:
            try:
                stop, _ = check_stop(version, past.signed, past.ordered_at)
            except ApprovalInvalid:
                continue  # A custodian of another version may have.
            if (stop.master_key, stop.ceremony) == (past.master_key, past.ceremony):
                return
        raise ApprovalInvalid(f"no custodian ordered the {Stop.TYPE} document")

    def check_order(self, event: EventRecord, body: StopsLifted | ProtectionRetired) -> None:
        """Check that there was a moment before an event at which a quorum stood behind what it did.

        Raises:
            BundleInvalid: there was none.
        """
        plans = [plan for plan in self.signatures.plans.values() if plan.ceremony == event.ceremony]
        if not any(_orders(plan, event, body) and self._stood(plan, event, body) for plan in plans):
            raise wrong(event, "no quorum had ordered it")

    def _stood(self, plan: Plan, event: EventRecord, body: StopsLifted | ProtectionRetired) -> bool:
        source = None if isinstance(body, StopsLifted) else self.manifests.get(body.digest)
        decisions = self.signatures.approvals.get(event.ceremony, {}).values()
        approvals = [(approval, signed) for approval, signed in decisions if approval.plan_digest == plan.digest]
        for moment in sorted({approval.issued for approval, _ in approvals}):
            standing = [s for a, s in approvals if a.issued <= moment + CLOCK_SKEW and moment <= a.expires]
            try:
                check_order(as_of(self.chain, plan.roster), _authority(plan, *standing), source, moment)
            except MasterKeyError:
                continue  # It may have stood a moment later.
            return moment <= event.at + CLOCK_SKEW
        return False


def _orders(plan: Plan, event: EventRecord, body: StopsLifted | ProtectionRetired) -> bool:
    if (plan.action, plan.master_key) != (_ACTIONS[event.type], event.master_key):
        return False
    if isinstance(body, StopsLifted):
        return plan.stops is not None and sorted(plan.stops) == sorted(body.stops)
    return plan.source is not None and plan.source.manifest == body.digest


def _authority(plan: Plan, *approvals: Signed) -> Authority:
    return Authority(plan=plan.canonical().decode(), approvals=approvals)


def _as_approved(plan: Plan, manifest: Manifest) -> bool:
    """Whether a manifest describes what its plan asks for."""
    target = plan.target
    return (
        target is not None
        and all(getattr(plan, name) == getattr(manifest, name) for name in _OF_PLAN)
        and all(getattr(target, name) == getattr(manifest, name) for name in _OF_TARGET)
        and [(s.index, s.keystore, s.key_id, s.custodians) for s in target.shards]
        == [(s.binding.index, s.binding.keystore, s.binding.key_id, s.custodians) for s in manifest.shards]
    )
