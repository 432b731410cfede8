"""Who may do what: the rules that workflow, keystore worker and strongroom each apply for themselves.

Pure functions over signed documents, a verified roster chain and the time. The workflow applies them to
tell people early; the keystore worker and the session apply them because nobody upstream is trusted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from workflows.contracts.trust.canonical import Message, Signed, canonical_json, digest
from workflows.contracts.trust.documents import (
    Action,
    Approval,
    CheckResponse,
    Manifest,
    Plan,
    RecipientRequest,
    SessionAnnouncement,
    Stop,
    Target,
    Work,
)
from workflows.contracts.trust.errors import ApprovalInvalid, ManifestInvalid, PlanInvalid
from workflows.contracts.trust.roster import Roster, RosterChain
from workflows.contracts.trust.signatures import open_signed

CLOCK_SKEW = timedelta(seconds=60)
"""How far the clocks of two hosts may differ."""
SEAL_REQUEST_LIFETIME = timedelta(minutes=5)
"""The longest life of a recipient's request in `seal` mode, where no human looks at it."""
MAXIMUM_CEREMONY = timedelta(days=30)
"""The longest life of a plan, and so of an approval."""
SESSION_LIFETIME = timedelta(minutes=5)
"""The longest life of a session's HPKE key."""
PROTECTING: tuple[Action, ...] = ("init", "reshard", "recover")
"""Actions that make a protection."""
RESHARDING: tuple[Action, ...] = ("reshard", "recover")
"""Actions that open one protection of a MasterKey to make another of it."""
_LONGEST_STEP = 1000
"""How much the epoch may grow at once: more would leave no room for a later protection."""
ORDERS: tuple[Action, ...] = ("lift", "retire", "destroy")
"""Actions that a governance quorum orders and that open nothing."""


class Authority(Message):
    """What a caller shows to a keystore worker or a session: the plan and whatever authorises it."""

    plan: str
    approvals: tuple[Signed, ...] = ()
    request: Signed | None = None


@dataclass(frozen=True)
class Granted:
    """The outcome of a successful check.

    Attributes:
        plan: what was authorised.
        approvers: names of the distinct custodians who approved.
        approvals: digests of their approvals, sorted.
        digest: one digest over plan, approvals and request.
        request: the recipient's request, if the plan releases to one.
        manifest: the source manifest, if the plan has one.
    """

    plan: Plan
    approvers: tuple[str, ...]
    approvals: tuple[str, ...]
    digest: str
    request: RecipientRequest | None = None
    manifest: Manifest | None = None


def check_time(what: str, issued: datetime, expires: datetime, now: datetime, longest: timedelta) -> None:
    """Check that something signed is in force.

    Raises:
        ApprovalInvalid: it is expired, from the future, or in force for longer than allowed.
    """
    if expires <= issued or expires - issued > longest:
        raise ApprovalInvalid(f"{what} is in force for longer than {longest} or not at all")
    if now > expires:
        raise ApprovalInvalid(f"{what} expired at {expires:%Y-%m-%d %H:%M:%S} UTC", next_step="sign anew")
    if issued > now + CLOCK_SKEW:
        raise ApprovalInvalid(f"{what} is dated in the future", next_step="compare the clocks of the two hosts")


def check_approval(signed: Signed, plan_digest: str, roster: Roster, now: datetime) -> tuple[Approval, str]:
    """Verify one approval or rejection of a plan.

    Returns:
        The document and the custodian's name.

    Raises:
        ApprovalInvalid: signature, signer, plan or time is wrong.
    """
    approval, signer = open_signed(Approval, signed)
    custodian = roster.custodian(signer)
    if custodian is None:
        raise ApprovalInvalid(f"the key {signer} is no custodian's in this roster", subject=signer)
    if approval.custodian != signer:
        raise ApprovalInvalid("the approval names another custodian than the one who signed", subject=custodian.name)
    if approval.plan_digest != plan_digest:
        raise ApprovalInvalid(
            f"{custodian.name} signed another plan (ceremony {approval.plan.ceremony})",
            subject=custodian.name,
        )
    what = f"the approval of {custodian.name}"
    check_time(what, approval.issued, approval.expires, now, MAXIMUM_CEREMONY + CLOCK_SKEW)
    return approval, custodian.name


def required_quorum(plan: Plan, roster: Roster) -> int:
    """How many governance custodians must approve: the plan's number, never less than the roster's."""
    return max(plan.governance_quorum, roster.governance_of(plan.master_key).quorum)


def custodians_of(plan: Plan, manifest: Manifest | None) -> tuple[tuple[str, ...], ...]:
    """For each shard that the plan opens, the names of those who may release it; empty in `seal` mode."""
    if plan.source is None or manifest is None or manifest.mode == "seal":
        return ()
    return tuple(shard.custodians for shard in manifest.shards)


def shards_released_by(approvers: Collection[str], custody: Iterable[Sequence[str]]) -> list[int]:
    """Indexes (from 1) of the shards that one of their custodians has approved to release."""
    return [index for index, names in enumerate(custody, start=1) if set(names) & set(approvers)]


def check_target(target: Target, master_key: str, roster: Roster) -> None:
    """Check that a topology is possible and keeps the rules of custody.

    Raises:
        PlanInvalid: M > N, M < 2 in `sss`, N > 255, a keystore or KMS key twice, overlapping or unknown
            custody, an unknown keystore, or a threshold below the roster's minimum.
    """
    m, n, mode = target.threshold, target.count, target.mode
    if n != len(target.shards) or [s.index for s in target.shards] != list(range(1, n + 1)):
        raise PlanInvalid(f"the plan lists {len(target.shards)} shards, but N is {n}")
    if m > n:
        raise PlanInvalid(f"threshold {m} is more than the {n} shards: the MasterKey could never be recovered")
    if mode == "sss" and m < 2:
        raise PlanInvalid("an sss protection needs a threshold of 2 or more", next_step="use --mode seal for one")
    if mode == "seal" and m != 1:
        raise PlanInvalid("in seal mode any one keystore suffices, so the threshold is 1")
    minimum = roster.governance_of(master_key).minimum_threshold
    if mode == "sss" and m < minimum:
        raise PlanInvalid(f"threshold {m} is below the roster's minimum of {minimum} for {master_key}")
    _check_distinct([s.keystore for s in target.shards], "keystore")
    _check_distinct([s.key_id for s in target.shards], "KMS key")
    for shard in target.shards:
        if roster.keystore(shard.keystore) is None:
            raise PlanInvalid(f"keystore {shard.keystore} is not in the roster", subject=shard.keystore)
        if (mode == "sss") != bool(shard.custodians):
            raise PlanInvalid(
                f"shard {shard.index} in {shard.keystore} has {'no' if mode == 'sss' else 'a'} custodian",
                next_step="in sss every shard has custodians (--keystore NAME:CUSTODIAN), in seal none",
            )
        for name in shard.custodians:
            if roster.custodian(name) is None:
                raise PlanInvalid(f"custodian {name} is not in the roster", subject=name)
    _check_distinct([name for s in target.shards for name in s.custodians], "custodian")


def _check_distinct(values: list[str], what: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise PlanInvalid(
                f"{what} {value} stands behind more than one shard",
                next_step=f"give every shard a {what} of its own, or one loss counts twice",
                subject=value,
            )


def check_manifest(signed: Signed, chain: RosterChain) -> Manifest:
    """Verify that a manifest was signed by a strongroom of the roster that it names.

    Raises:
        ManifestInvalid: another signer, a revoked one, an unknown roster, or a malformed document.
    """
    try:
        manifest, signer = open_signed(Manifest, signed)
    except ApprovalInvalid as error:
        raise ManifestInvalid(error.message) from None
    strongroom = chain.at(manifest.roster).strongroom(signer)
    if strongroom is None or signer != manifest.strongroom or signer in chain.current.revoked:
        raise ManifestInvalid("the manifest is not signed by a strongroom of the roster", subject=signer)
    minimum = chain.current.governance_of(manifest.master_key).minimum_threshold
    if manifest.mode == "sss" and manifest.threshold < minimum:
        raise ManifestInvalid(f"the manifest's threshold is below the roster's minimum of {minimum}")
    return manifest


def check_protect(chain: RosterChain, authority: Authority, now: datetime) -> Granted:
    """Check that a quorum has authorised a plan that protects a MasterKey anew.

    Raises:
        ApprovalInvalid, PlanInvalid: it has not, or what it authorised is not possible.
    """
    plan = _plan(chain, authority, now)
    if plan.target is None or plan.recipient is not None or plan.action not in PROTECTING:
        raise ApprovalInvalid(f"a plan to {plan.action} protects nothing")
    if (plan.source is None) != (plan.action == "init"):
        raise ApprovalInvalid("only the creation of a MasterKey opens no protection of it")
    _check_epoch(plan, plan.target)
    check_target(plan.target, plan.master_key, chain.current)
    approvers, approvals = _approvers(chain.current, plan, authority, now)
    _check_governance(chain.current, plan, approvers)
    return Granted(plan, approvers, approvals, _digest(plan, approvals, None))


def check_release(chain: RosterChain, authority: Authority, source: Signed, now: datetime) -> Granted:
    """Check that the release of a protection to a recipient is authorised.

    In `sss` mode: by the governance quorum, and by custodians of at least M different shards. In `seal`
    mode: by the request of a recipient that is enrolled for this MasterKey. The recipient's request is
    demanded in both, because it carries the key to encrypt to.

    Raises:
        ApprovalInvalid, ManifestInvalid: it is not.
    """
    plan = _plan(chain, authority, now)
    manifest = check_manifest(source, chain)
    if plan.action != "unseal" or plan.source is None or plan.recipient is None or plan.target is not None:
        raise ApprovalInvalid(f"a plan to {plan.action} releases nothing to a recipient")
    _check_source(plan, manifest, source)
    request = check_request(chain.current, authority.request, plan, now)
    approvers: tuple[str, ...] = ()
    approvals: tuple[str, ...] = ()
    if manifest.mode == "sss":
        approvers, approvals = _approvers(chain.current, plan, authority, now)
        _check_opening(chain.current, plan, manifest, approvers)
    assert authority.request is not None  # noqa: S101 - check_request refused none
    return Granted(plan, approvers, approvals, _digest(plan, approvals, authority.request.digest), request, manifest)


def check_reshard(chain: RosterChain, authority: Authority, source: Signed, now: datetime) -> Granted:
    """Check that a quorum has authorised a plan that opens one protection of a MasterKey to make another of it.

    Everything that `check_protect` demands; and that the manifest is the plan's, that the quorum is not smaller
    than the manifest demands, and that custodians of at least M of its shards approved, if they have any.

    Raises:
        ApprovalInvalid, PlanInvalid, ManifestInvalid: it is not.
    """
    granted = check_protect(chain, authority, now)
    plan, manifest = granted.plan, check_manifest(source, chain)
    if plan.action not in RESHARDING or plan.target is None:
        raise ApprovalInvalid(f"a plan to {plan.action} opens nothing to protect it anew")
    _check_source(plan, manifest, source)
    if (plan.target.purpose == manifest.purpose) != (plan.target.predecessor == source.digest):
        raise PlanInvalid("the new protection does not name the one of its purpose that it replaces")
    _check_opening(chain.current, plan, manifest, granted.approvers)
    return replace(granted, manifest=manifest)


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
    plan = _plan(chain, authority, now)
    if plan.action not in ORDERS or plan.target is not None or plan.recipient is not None:
        raise ApprovalInvalid(f"a plan to {plan.action} is no order")
    if (plan.action == "lift") != (plan.source is None):
        raise ApprovalInvalid("a lift names no manifest, every other order one")
    manifest = None
    if plan.source is not None:
        if source is None:
            raise ApprovalInvalid("the manifest that the order is about was not presented")
        manifest = check_manifest(source, chain)
        _check_source(plan, manifest, source)
        if plan.governance_quorum < manifest.governance_quorum:
            raise ApprovalInvalid("the plan asks for a smaller quorum than the manifest demands")
    approvers, approvals = _approvers(chain.current, plan, authority, now)
    _check_governance(chain.current, plan, approvers)
    return Granted(plan, approvers, approvals, _digest(plan, approvals, None), None, manifest)


def check_stop(roster: Roster, signed: Signed, now: datetime | None) -> tuple[Stop, str]:
    """Verify an order to stop: any one custodian of the roster may give it.

    Args:
        roster: who is a custodian.
        signed: the order.
        now: the time; none to look at one that was taken in before.

    Returns:
        The order, and the custodian's name.

    Raises:
        ApprovalInvalid: signature, signer or time is wrong.
    """
    stop, signer = open_signed(Stop, signed)
    custodian = roster.custodian(signer)
    if custodian is None or stop.custodian != signer:
        raise ApprovalInvalid("the stop is not signed by a custodian of the roster", subject=signer)
    if now is None:
        return stop, custodian.name
    # Without sums of its date: near the year 9999 they would raise, and hang a workflow that is told of it.
    if stop.issued > now + CLOCK_SKEW:
        raise ApprovalInvalid(f"the stop of {custodian.name} is dated in the future", subject=custodian.name)
    if now - stop.issued > MAXIMUM_CEREMONY:
        raise ApprovalInvalid(f"the stop of {custodian.name} is too old", next_step="sign anew", subject=custodian.name)
    return stop, custodian.name


def check_proofs(chain: RosterChain, manifest: Manifest, manifest_digest: str, proofs: Sequence[Signed]) -> None:
    """Check that every keystore of a protection has proven that it can give back its data key.

    Before that no keystore worker takes a protection for the one in force: who hides the proofs, or could not get
    them, cannot retire the protection that works.

    Args:
        chain: the verified roster.
        manifest: of the protection.
        manifest_digest: its digest.
        proofs: a signed `CheckResponse` of each shard's keystore, in any order.

    Raises:
        ManifestInvalid: one is missing, or was not signed by that keystore's worker.
    """
    missing = {shard.binding.index: shard.binding.keystore for shard in manifest.shards}
    for signed in proofs:
        try:
            answer, signer = open_signed(CheckResponse, signed)
        except ApprovalInvalid as error:
            raise ManifestInvalid(error.message) from None
        worker = chain.current.keystore(answer.keystore)
        proven = (answer.manifest, answer.matches) == (manifest_digest, True)
        if (
            proven
            and worker is not None
            and signer == worker.fingerprint
            and (missing.get(answer.index) == answer.keystore)
        ):
            del missing[answer.index]
    if missing:
        raise ManifestInvalid(
            f"the protection was not proven by {', '.join(sorted(missing.values()))}",
            next_step="nothing was changed: what was in force before is in force still",
        )


def _check_source(plan: Plan, manifest: Manifest, source: Signed) -> None:
    described = (
        manifest.master_key,
        source.digest,
        manifest.epoch,
        manifest.mode,
        manifest.threshold,
        manifest.count,
    )
    s = plan.source
    if s is None or described != (plan.master_key, s.manifest, s.epoch, s.mode, s.threshold, s.count):
        raise ApprovalInvalid("the plan is about another manifest than the one presented")


def _check_opening(roster: Roster, plan: Plan, manifest: Manifest, approvers: Sequence[str]) -> None:
    """Check that the quorum that a manifest demands stands, and custodians of enough of its shards approved."""
    if plan.governance_quorum < manifest.governance_quorum:
        raise ApprovalInvalid("the plan asks for a smaller quorum than the manifest demands")
    _check_governance(roster, plan, approvers)
    custody = custodians_of(plan, manifest)
    released = shards_released_by(approvers, custody)
    if custody and len(released) < manifest.threshold:
        raise ApprovalInvalid(
            f"custodians of {len(released)} shards approved, {manifest.threshold} are needed",
            next_step="collect more approvals",
        )


def _check_epoch(plan: Plan, target: Target) -> None:
    if plan.source is None:
        if target.epoch != 1 or target.predecessor is not None:
            # A huge first epoch would leave no room for a later protection.
            raise PlanInvalid("the first protection of a MasterKey has epoch 1 and replaces none")
    elif not plan.source.epoch < target.epoch <= plan.source.epoch + _LONGEST_STEP:
        raise PlanInvalid(f"epoch {target.epoch} does not follow epoch {plan.source.epoch} of what is opened")


def check_request(roster: Roster, signed: Signed | None, plan: Plan, now: datetime) -> RecipientRequest:
    """Verify a recipient's request against the plan made from it.

    Raises:
        ApprovalInvalid: not signed by the recipient, not enrolled for this MasterKey, expired, or not the
            one that the plan names.
    """
    if signed is None or plan.recipient is None or plan.source is None:
        raise ApprovalInvalid("a release needs a recipient's request")
    request, signer = open_signed(RecipientRequest, signed)
    recipient = roster.recipient(signer)
    if recipient is None or request.recipient != signer:
        raise ApprovalInvalid(f"the key {signer} is no recipient's in this roster", subject=signer)
    if plan.master_key not in recipient.master_keys:
        raise ApprovalInvalid(
            f"recipient {recipient.name} is not enrolled for MasterKey {plan.master_key}",
            subject=recipient.name,
            next_step="enrol it with `masterkey roster propose`",
        )
    wanted = (request.master_key, request.ceremony, request.manifest, request.epoch, request.strongroom)
    planned = (plan.master_key, plan.ceremony, plan.source.manifest, plan.source.epoch, plan.strongroom)
    named = (plan.recipient.fingerprint, plan.recipient.hpke_key, plan.recipient.name)
    if wanted != planned or named != (signer, request.hpke_key, recipient.name):
        raise ApprovalInvalid("the plan does not say what the recipient asked for", subject=recipient.name)
    longest = SEAL_REQUEST_LIFETIME if plan.source.mode == "seal" else MAXIMUM_CEREMONY
    check_time(f"the request of {recipient.name}", request.issued, request.expires, now, longest + CLOCK_SKEW)
    return request


def check_session(chain: RosterChain, signed: Signed, plan: Plan, purpose: Work, now: datetime) -> SessionAnnouncement:
    """Verify that a session's key was announced by the strongroom that the plan names, for this plan.

    Raises:
        ApprovalInvalid: it was not.
    """
    session, signer = open_signed(SessionAnnouncement, signed)
    if signer != session.strongroom or chain.current.strongroom(signer) is None or signer != plan.strongroom:
        raise ApprovalInvalid("the session is not signed by the strongroom that the plan names", subject=signer)
    source = plan.source.manifest if plan.source else None
    announced = (
        session.purpose,
        session.master_key,
        session.ceremony,
        session.plan,
        session.source,
        session.roster,
    )
    if announced != (purpose, plan.master_key, plan.ceremony, plan.digest, source, plan.roster):
        raise ApprovalInvalid("the session was opened for something else")
    check_time("the session", session.issued, session.expires, now, SESSION_LIFETIME)
    return session


def parse_plan(text: str) -> Plan:
    """A plan from its canonical text; raises ApprovalInvalid."""
    return Plan.parse(text.encode())


def _plan(chain: RosterChain, authority: Authority, now: datetime) -> Plan:
    plan = parse_plan(authority.plan)
    if not plan.ceremony.startswith(f"{plan.master_key}.{plan.action}."):
        raise ApprovalInvalid(f"ceremony {plan.ceremony} is not one to {plan.action} {plan.master_key}")
    if plan.roster != chain.digest:
        raise ApprovalInvalid(
            f"the plan was made under another roster than this host's version {chain.current.number}",
            next_step="distribute the current roster file to every host, then start the ceremony anew",
        )
    if chain.current.strongroom(plan.strongroom) is None:
        raise ApprovalInvalid("the plan names a strongroom that is not in the roster", subject=plan.strongroom)
    if (plan.action == "lift") != (plan.stops is not None):
        raise ApprovalInvalid("a plan to lift names stops, and no other does")
    check_time("the plan", plan.created, plan.expires, now, MAXIMUM_CEREMONY)
    return plan


def _approvers(
    roster: Roster, plan: Plan, authority: Authority, now: datetime
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names: dict[str, str] = {}
    for signed in authority.approvals:
        approval, name = check_approval(signed, plan.digest, roster, now)
        if approval.decision != "approve":
            raise ApprovalInvalid(f"{name} rejected this plan", subject=name)
        names[name] = signed.digest
    return tuple(sorted(names)), tuple(sorted(names.values()))


def _check_governance(roster: Roster, plan: Plan, approvers: Sequence[str]) -> None:
    governance = roster.governance_of(plan.master_key)
    if plan.governance_quorum < governance.quorum:
        # The manifest keeps the plan's number: a lower one would outlive the roster that forbids it.
        raise ApprovalInvalid(f"the plan asks for a smaller quorum than the roster's {governance.quorum}")
    standing = set(approvers) & set(governance.custodians)
    needed = required_quorum(plan, roster)
    if len(standing) < needed:
        raise ApprovalInvalid(
            f"{len(standing)} custodians of the governance quorum approved, {needed} are needed",
            next_step="collect more approvals",
        )


def _digest(plan: Plan, approvals: Sequence[str], request: str | None) -> str:
    return digest(canonical_json({"approvals": list(approvals), "plan": plan.digest, "request": request}))
