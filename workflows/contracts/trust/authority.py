"""Who may do what: the rules that workflow, keystore worker and strongroom each apply for themselves.

Pure functions over signed documents, a verified roster chain and the time. The workflow applies them to
tell people early; the keystore worker and the session apply them because nobody upstream is trusted.
Read `plan`, `protection`, `roster` and `quorum` before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from workflows.contracts.trust.canonical import Signed, canonical_json, digest
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import (
    ApprovalInvalid,
    AuthorityInvalid,
    DocumentInvalid,
    ManifestInvalid,
    PlanInvalid,
)
from workflows.contracts.trust.fields import Action
from workflows.contracts.trust.plan import Plan, RecipientRequest, Target, parse_plan
from workflows.contracts.trust.protection import Manifest, ManifestShard
from workflows.contracts.trust.quorum import Authority, approvers_of, check_governance, check_opening
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.signatures import open_signed
from workflows.contracts.trust.topology import check_target
from workflows.contracts.trust.validity import CLOCK_SKEW, MAXIMUM_CEREMONY, SEAL_REQUEST_LIFETIME, check_time

PROTECTING: tuple[Action, ...] = ("init", "reshard", "recover")
"""Actions that make a protection."""
RESHARDING: tuple[Action, ...] = ("reshard", "recover")
"""Actions that open one protection of a MasterKey to make another of it."""
_LONGEST_STEP = 1000
"""How much the epoch may grow at once: more would leave no room for a later protection."""


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

    def check_custodian(self, shard: ManifestShard) -> None:
        """Check that one of a shard's own custodians approved; a shard in `seal` mode needs none.

        Raises:
            ApprovalInvalid: none did; `subject` is the keystore.
        """
        keystore = shard.binding.keystore
        if shard.binding.mode == "sss" and not set(shard.custodians) & set(self.approvers):
            names = ", ".join(shard.custodians)
            raise ApprovalInvalid(
                f"none of the custodians of {keystore} approved ({names})",
                next_step="let one of them approve: nobody else can release this shard",
                subject=keystore,
            )


def check_protect(chain: RosterChain, authority: Authority, now: datetime) -> Granted:
    """Check that a quorum has authorised a plan that protects a MasterKey anew.

    Raises:
        ApprovalInvalid, PlanInvalid: it has not, or what it authorised is not possible.
    """
    plan = check_plan(chain, authority, now)
    if plan.target is None or plan.recipient is not None or plan.action not in PROTECTING:
        raise AuthorityInvalid(f"a plan to {plan.action} protects nothing")
    if (plan.source is None) != (plan.action == "init"):
        raise AuthorityInvalid("only the creation of a MasterKey opens no protection of it")
    _check_epoch(plan, plan.target)
    check_target(plan.target, plan.master_key, chain.current)
    approvers, approvals = approvers_of(chain.current, plan, authority, now)
    check_governance(chain.current, plan, approvers)
    return Granted(plan, approvers, approvals, authority_digest(plan, approvals, None))


def check_release(chain: RosterChain, authority: Authority, source: Signed, now: datetime) -> Granted:
    """Check that the release of a protection to a recipient is authorised.

    In `sss` mode: by the governance quorum, and by custodians of at least M different shards. In `seal`
    mode: by the request of a recipient that is enrolled for this MasterKey. The recipient's request is
    demanded in both, because it carries the key to encrypt to.

    Raises:
        ApprovalInvalid, ManifestInvalid: it is not.
    """
    plan = check_plan(chain, authority, now)
    manifest = check_manifest(source, chain)
    if plan.action != "unseal" or plan.source is None or plan.recipient is None or plan.target is not None:
        raise AuthorityInvalid(f"a plan to {plan.action} releases nothing to a recipient")
    check_source(plan, manifest, source)
    request = check_request(chain.current, authority.request, plan, now)
    approvers: tuple[str, ...] = ()
    approvals: tuple[str, ...] = ()
    if manifest.mode == "sss":
        approvers, approvals = approvers_of(chain.current, plan, authority, now)
        check_opening(chain.current, plan, manifest, approvers)
    assert authority.request is not None  # noqa: S101 - check_request refused none
    return Granted(
        plan, approvers, approvals, authority_digest(plan, approvals, authority.request.digest), request, manifest
    )


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
        raise AuthorityInvalid(f"a plan to {plan.action} opens nothing to protect it anew")
    check_source(plan, manifest, source)
    if (plan.target.purpose == manifest.purpose) != (plan.target.predecessor == source.digest):
        raise PlanInvalid("the new protection does not name the one of its purpose that it replaces")
    check_opening(chain.current, plan, manifest, granted.approvers)
    return replace(granted, manifest=manifest)


def check_manifest(signed: Signed, chain: RosterChain) -> Manifest:
    """Verify that a manifest was signed by a strongroom of the roster that it names.

    Raises:
        ManifestInvalid: another signer, a revoked one, an unknown roster, or a malformed document.
    """
    try:
        manifest, signer = open_signed(Manifest, signed)
    except DocumentInvalid as error:
        raise ManifestInvalid(error.message) from None
    if chain.at(manifest.roster).signer_of(manifest, signer) is None or signer in chain.current.revoked:
        raise ManifestInvalid("the manifest is not signed by a strongroom of the roster", subject=signer)
    minimum = chain.current.governance_of(manifest.master_key).minimum_threshold
    if manifest.mode == "sss" and manifest.threshold < minimum:
        raise ManifestInvalid(f"the manifest's threshold is below the roster's minimum of {minimum}")
    return manifest


def check_request(roster: Roster, signed: Signed | None, plan: Plan, now: datetime) -> RecipientRequest:
    """Verify a recipient's request against the plan made from it.

    Raises:
        ApprovalInvalid: not signed by the recipient, not enrolled for this MasterKey, expired, or not the
            one that the plan names.
    """
    if signed is None or plan.recipient is None or plan.source is None:
        raise AuthorityInvalid("a release needs a recipient's request")
    request, name = roster.open(RecipientRequest, signed)
    if not roster.receives(name, plan.master_key):
        raise ApprovalInvalid(
            f"recipient {name} is not enrolled for MasterKey {plan.master_key}",
            next_step="enrol it with `masterkey roster propose`",
            subject=name,
        )
    wanted = (request.master_key, request.ceremony, request.manifest, request.epoch, request.strongroom)
    planned = (plan.master_key, plan.ceremony, plan.source.manifest, plan.source.epoch, plan.strongroom)
    named = (plan.recipient.fingerprint, plan.recipient.hpke_key, plan.recipient.name)
    if wanted != planned or named != (request.recipient, request.hpke_key, name):
        raise AuthorityInvalid("the plan does not say what the recipient asked for", subject=name)
    longest = SEAL_REQUEST_LIFETIME if plan.source.mode == "seal" else MAXIMUM_CEREMONY
    check_time(f"the request of {name}", request.issued, request.expires, now, longest + CLOCK_SKEW)
    return request


def check_plan(chain: RosterChain, authority: Authority, now: datetime) -> Plan:
    """The plan of an authority, if it is in force under this roster, whoever approved it.

    Raises:
        ApprovalInvalid: it is another roster's, out of time, or contradicts itself.
    """
    plan = parse_plan(authority.plan)
    if not plan.ceremony.startswith(f"{plan.master_key}.{plan.action}."):
        raise AuthorityInvalid(f"ceremony {plan.ceremony} is not one to {plan.action} {plan.master_key}")
    if plan.roster != chain.digest:
        raise AuthorityInvalid(
            f"the plan was made under another roster than this host's version {chain.current.number}",
            next_step="distribute the current roster file to every host, then start the ceremony anew",
        )
    if chain.current.strongroom(plan.strongroom) is None:
        raise AuthorityInvalid("the plan names a strongroom that is not in the roster", subject=plan.strongroom)
    if (plan.action == "lift") != (plan.stops is not None):
        raise AuthorityInvalid("a plan to lift names stops, and no other does")
    check_time("the plan", plan.created, plan.expires, now, MAXIMUM_CEREMONY)
    return plan


def check_source(plan: Plan, manifest: Manifest, source: Signed) -> None:
    """Check that a plan is about this manifest; raises ApprovalInvalid if it is about another."""
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
        raise AuthorityInvalid("the plan is about another manifest than the one presented")


def _check_epoch(plan: Plan, target: Target) -> None:
    if plan.source is None:
        if target.epoch != 1 or target.predecessor is not None:
            # A huge first epoch would leave no room for a later protection.
            raise PlanInvalid("the first protection of a MasterKey has epoch 1 and replaces none")
    elif not plan.source.epoch < target.epoch <= plan.source.epoch + _LONGEST_STEP:
        raise PlanInvalid(f"epoch {target.epoch} does not follow epoch {plan.source.epoch} of what is opened")


def authority_digest(plan: Plan, approvals: Sequence[str], request: str | None) -> str:
    """One digest over a plan, the digests of its approvals, and that of a recipient's request, if there is one."""
    return digest(canonical_json({"approvals": list(approvals), "plan": plan.digest, "request": request}))
