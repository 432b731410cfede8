"""What a custodian is about to sign, in plain words, rendered from the very bytes that are signed."""

from __future__ import annotations

from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.difference import shape
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.plan import Approval, Plan
from workflows.contracts.trust.stop import Stop


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
    body = render_plan(plan, chain)
    signer = roster.custodian(approval.custodian)
    who = signer.name if signer else f"UNKNOWN {approval.custodian}"
    verb = "APPROVE" if approval.decision == "approve" else "REJECT"
    lines = [
        f"I, {who}, {verb} this plan:",
        "",
        body,
        f"  my decision     signed {approval.issued:%Y-%m-%d %H:%M:%S}, counts until "
        f"{approval.expires:%Y-%m-%d %H:%M:%S} UTC",
        f"  my key          {approval.custodian}",
    ]
    return "\n".join(lines)


def render_plan(plan: Plan, chain: RosterChain) -> str:
    """A plan in words.

    Returns:
        Lines of text without a trailing newline.

    Raises:
        ApprovalInvalid: it was made under another roster.
    """
    roster = chain.current
    if plan.roster != chain.digest:
        raise ApprovalInvalid(
            f"the plan was made under another roster than yours (version {roster.number})",
            next_step="get the current roster file, or tell the others that theirs is old",
        )
    return "\n".join(
        [
            *_headline(plan),
            *_topology(plan),
            f"  carried out by  strongroom {_strongroom(plan, chain)}",
            f"  needs           {plan.governance_quorum} custodians of the governance quorum{_threshold(plan)}",
            f"  ceremony        {plan.ceremony}",
            f"  plan            {plan.digest}",
            f"  roster          version {roster.number}, {plan.roster}",
            f"  decide before   {plan.expires:%Y-%m-%d %H:%M:%S} UTC",
        ]
    )


def render_stop(data: bytes, chain: RosterChain) -> str:
    """A stop in words; raises ApprovalInvalid if the bytes are none."""
    stop = Stop.parse(data)
    signer = chain.current.custodian(stop.custodian)
    return "\n".join(
        [
            f"I, {signer.name if signer else f'UNKNOWN {stop.custodian}'}, STOP the MasterKey {stop.master_key}:",
            "  no keystore serves it, and whoever holds it is told to end,",
            "  until the governance quorum lifts this stop",
            f"  reason          {stop.reason or '(none given)'}",
            f"  ceremony        {stop.ceremony}",
            f"  ordered         {stop.issued:%Y-%m-%d %H:%M:%S} UTC",
        ]
    )


_HEADLINES = {
    "init": "CREATE a new MasterKey named {}",
    "reshard": "PROTECT ANEW the MasterKey {}, which stays the same",
    "recover": "RECOVER the MasterKey {}, which stays the same, into a new protection",
    "lift": "LIFT the stops of the MasterKey {}: keystores serve it again",
    "retire": "RETIRE a protection of the MasterKey {}: no keystore serves it any more",
    "destroy": "DESTROY the ciphertexts of a retired protection of the MasterKey {}, for good",
}


def _headline(plan: Plan) -> list[str]:
    if plan.action in _HEADLINES:
        lines = [f"  {_HEADLINES[plan.action].format(plan.master_key)}"]
    else:
        lines = [f"  RELEASE the MasterKey {plan.master_key}"]
    lines += [f"  stop            {stop}" for stop in plan.stops or ()]
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
            f"  {_SOURCES.get(plan.action, 'from'):<16}{shape(source.mode, source.threshold, source.count)}, "
            f"epoch {source.epoch}",
            f"  manifest        {source.manifest}",
        ]
    if plan.target is not None:
        target = plan.target
        lines.append(
            f"  protected by    {shape(target.mode, target.threshold, target.count)}, {target.purpose}, "
            f"epoch {target.epoch}"
        )
        for shard in target.shards:
            custody = f"released by {' or '.join(shard.custodians)}" if shard.custodians else "released by policy"
            lines.append(f"    shard {shard.index:<3}     {shard.keystore}: {shard.key_id}; {custody}")
        if target.predecessor is not None:
            kept = "until their destruction is ordered"
            if target.retention_hours is not None:
                kept = f"for {target.retention_hours} hours, then destroyed"
            lines += [f"  replaces        {target.predecessor}", f"                  its ciphertexts are kept {kept}"]
        elif plan.source is not None:
            # Keystores go by the epoch, whatever a plan calls the one before.
            lines.append(f"  replaces        nothing by name; an older {target.purpose} protection is served no more")
    return lines


_SOURCES = {"reshard": "opened is", "recover": "opened is", "retire": "retired is", "destroy": "destroyed is"}


def _threshold(plan: Plan) -> str:
    opens = plan.action in ("unseal", "reshard", "recover")
    if opens and plan.source is not None and plan.source.mode == "sss":
        return f", among them custodians of {plan.source.threshold} shards"
    return ""


def _strongroom(plan: Plan, chain: RosterChain) -> str:
    strongroom = chain.current.strongroom(plan.strongroom)
    return f"{strongroom.name} (key {plan.strongroom})" if strongroom else f"UNKNOWN {plan.strongroom}"
