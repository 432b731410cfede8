"""Whose approvals a plan needs, and whether they stand: governance, and custodians of shards. After `plan`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from workflows.contracts.trust.canonical import Message, Signed
from workflows.contracts.trust.errors import ApprovalInvalid, AuthorityInvalid
from workflows.contracts.trust.plan import Approval, Plan
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.validity import CLOCK_SKEW, MAXIMUM_CEREMONY, check_time


class Authority(Message):
    """What a caller shows to a keystore worker or a session: the plan and whatever authorises it."""

    plan: str
    approvals: tuple[Signed, ...] = ()
    request: Signed | None = None


def check_approval(signed: Signed, plan_digest: str, roster: Roster, now: datetime) -> tuple[Approval, str]:
    """Verify one approval or rejection of a plan.

    Returns:
        The document and the custodian's name.

    Raises:
        ApprovalInvalid: signature, signer, plan or time is wrong.
    """
    approval, name = roster.open(Approval, signed)
    if approval.plan_digest != plan_digest:
        raise ApprovalInvalid(f"{name} signed another plan (ceremony {approval.plan.ceremony})", subject=name)
    check_time(f"the approval of {name}", approval.issued, approval.expires, now, MAXIMUM_CEREMONY + CLOCK_SKEW)
    return approval, name


def approvers_of(
    roster: Roster, plan: Plan, authority: Authority, now: datetime
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who approved a plan.

    Returns:
        Names of the distinct custodians, and the digests of their approvals, each sorted.

    Raises:
        ApprovalInvalid: one of the approvals does not verify, or rejects the plan.
    """
    names: dict[str, str] = {}
    for signed in authority.approvals:
        approval, name = check_approval(signed, plan.digest, roster, now)
        if approval.decision != "approve":
            raise ApprovalInvalid(
                f"{name} rejected this plan",
                next_step="start a new ceremony with a plan that they agree to",
                subject=name,
            )
        names[name] = signed.digest
    return tuple(sorted(names)), tuple(sorted(names.values()))


def required_quorum(plan: Plan, roster: Roster) -> int:
    """How many governance custodians must approve: the plan's number, never less than the roster's."""
    return max(plan.governance_quorum, roster.governance_of(plan.master_key).quorum)


def check_governance(roster: Roster, plan: Plan, approvers: Sequence[str]) -> None:
    """Check that the governance quorum of a plan's MasterKey approved; raises ApprovalInvalid if too few did."""
    governance = roster.governance_of(plan.master_key)
    if plan.governance_quorum < governance.quorum:
        # The manifest keeps the plan's number: a lower one would outlive the roster that forbids it.
        raise AuthorityInvalid(f"the plan asks for a smaller quorum than the roster's {governance.quorum}")
    standing = set(approvers) & set(governance.custodians)
    needed = required_quorum(plan, roster)
    if len(standing) < needed:
        raise ApprovalInvalid(
            f"{len(standing)} custodians of the governance quorum approved, {needed} are needed",
            next_step="collect more approvals",
        )


def custodians_of(plan: Plan, manifest: Manifest | None) -> tuple[tuple[str, ...], ...]:
    """For each shard that the plan opens, the names of those who may release it; empty in `seal` mode."""
    if plan.source is None or manifest is None or manifest.mode == "seal":
        return ()
    return tuple(shard.custodians for shard in manifest.shards)


def shards_released_by(approvers: Collection[str], custody: Iterable[Sequence[str]]) -> list[int]:
    """Indexes (from 1) of the shards that one of their custodians has approved to release."""
    return [index for index, custodians in enumerate(custody, start=1) if set(custodians) & set(approvers)]


def check_opening(roster: Roster, plan: Plan, manifest: Manifest, approvers: Sequence[str]) -> None:
    """Check that the quorum that a manifest demands stands, and custodians of enough of its shards approved.

    Raises:
        ApprovalInvalid: too few of either.
    """
    if plan.governance_quorum < manifest.governance_quorum:
        raise AuthorityInvalid("the plan asks for a smaller quorum than the manifest demands")
    check_governance(roster, plan, approvers)
    custody = custodians_of(plan, manifest)
    released = shards_released_by(approvers, custody)
    if custody and len(released) < manifest.threshold:
        raise ApprovalInvalid(
            f"custodians of {len(released)} shards approved, {manifest.threshold} are needed",
            next_step="collect more approvals",
        )
