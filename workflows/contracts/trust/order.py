"""What a governance quorum orders and that opens no shard: a lift, a retirement, a destruction. After `authority`."""

from __future__ import annotations

from datetime import datetime

from workflows.contracts.trust.authority import Granted, authority_digest, check_manifest, check_plan, check_source
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import AuthorityInvalid
from workflows.contracts.trust.fields import Action
from workflows.contracts.trust.quorum import Authority, approvers_of, check_governance

ORDERS: tuple[Action, ...] = ("lift", "retire", "destroy")
"""Actions that a governance quorum orders and that open nothing."""


def check_order(chain: RosterChain, authority: Authority, source: Signed | None, now: datetime) -> Granted:
    """Check that a governance quorum has ordered something that opens no shard: a lift, a retirement, a destruction.

    Args:
        chain: the verified roster.
        authority: the plan and the approvals.
        source: the manifest that is to be retired or destroyed; none for a lift.
        now: the time.

    Raises:
        ApprovalInvalid, ManifestInvalid: it has not.
    """
    plan = check_plan(chain, authority, now)
    if plan.action not in ORDERS or plan.target is not None or plan.recipient is not None:
        raise AuthorityInvalid(f"a plan to {plan.action} is no order")
    if (plan.action == "lift") != (plan.source is None):
        raise AuthorityInvalid("a lift names no manifest, every other order one")
    manifest = None
    if plan.source is not None:
        if source is None:
            raise AuthorityInvalid("the manifest that the order is about was not presented")
        manifest = check_manifest(source, chain)
        check_source(plan, manifest, source)
        if plan.governance_quorum < manifest.governance_quorum:
            raise AuthorityInvalid("the plan asks for a smaller quorum than the manifest demands")
    approvers, approvals = approvers_of(chain.current, plan, authority, now)
    check_governance(chain.current, plan, approvers)
    return Granted(plan, approvers, approvals, authority_digest(plan, approvals, None), None, manifest)
