"""What a custodian is about to sign, in plain words, rendered from the very bytes that are signed."""

from __future__ import annotations

from workflows.contracts.documents import Approval, Plan
from workflows.contracts.errors import ApprovalInvalid
from workflows.contracts.roster import RosterChain


def render_approval(data: bytes, chain: RosterChain) -> str:
    """An approval or rejection in words.

    Args:
        data: the canonical bytes that will be, or were, signed.
        chain: the verified roster, which gives fingerprints their names.

    Returns:
        Lines of text without a trailing newline.

    Raises:
        ApprovalInvalid: the bytes are no approval, or were made under another roster.
    """
    approval = Approval.parse(data)
    plan, roster = approval.plan, chain.current
    if plan.roster != chain.digest:
        raise ApprovalInvalid(
            f"the plan was made under another roster than yours (version {roster.number})",
            next_step="get the current roster file, or tell the others that theirs is old",
        )
    signer = roster.custodian(approval.custodian)
    who = signer.name if signer else f"UNKNOWN {approval.custodian}"
    verb = "APPROVE" if approval.decision == "approve" else "REJECT"
    lines = [
        f"I, {who}, {verb} this plan:",
        "",
        *_headline(plan),
        *_topology(plan),
        f"  carried out by  strongroom {_strongroom(plan, chain)}",
        f"  needs           {plan.governance_quorum} custodians of the governance quorum{_threshold(plan)}",
        f"  ceremony        {plan.ceremony}",
        f"  plan            {approval.plan_digest}",
        f"  roster          version {roster.number}, {plan.roster}",
        f"  decide before   {plan.expires:%Y-%m-%d %H:%M:%S} UTC",
        f"  my decision     signed {approval.issued:%Y-%m-%d %H:%M:%S}, counts until "
        f"{approval.expires:%Y-%m-%d %H:%M:%S} UTC",
        f"  my key          {approval.custodian}",
    ]
    return "\n".join(lines)


def _headline(plan: Plan) -> list[str]:
    if plan.action == "init":
        return [f"  CREATE a new MasterKey named {plan.master_key}"]
    lines = [f"  RELEASE the MasterKey {plan.master_key}"]
    if plan.recipient is not None:
        lines += [
            f"  to              {plan.recipient.name} (key {plan.recipient.fingerprint})",
            f"                  who can then keep it; encrypted to {plan.recipient.hpke_key}",
        ]
    return lines


def _topology(plan: Plan) -> list[str]:
    lines = []
    if plan.source is not None:
        source = plan.source
        lines += [
            f"  from            {_shape(source.mode, source.threshold, source.count)}, epoch {source.epoch}",
            f"  manifest        {source.manifest}",
        ]
    if plan.target is not None:
        target = plan.target
        lines.append(
            f"  protected by    {_shape(target.mode, target.threshold, target.count)}, {target.purpose}, "
            f"epoch {target.epoch}"
        )
        for shard in target.shards:
            custody = f"released by {' or '.join(shard.custodians)}" if shard.custodians else "released by policy"
            lines.append(f"    shard {shard.index:<3}     {shard.keystore}: {shard.key_id}; {custody}")
    return lines


def _shape(mode: str, threshold: int, count: int) -> str:
    if mode == "seal":
        return f"seal, any one of {count} keystores"
    return f"Shamir, any {threshold} of {count} shards"


def _threshold(plan: Plan) -> str:
    if plan.source is not None and plan.source.mode == "sss":
        return f", among them custodians of {plan.source.threshold} shards"
    return ""


def _strongroom(plan: Plan, chain: RosterChain) -> str:
    strongroom = chain.current.strongroom(plan.strongroom)
    return f"{strongroom.name} (key {plan.strongroom})" if strongroom else f"UNKNOWN {plan.strongroom}"
