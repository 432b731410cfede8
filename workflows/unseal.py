"""`UnsealWorkflow`: release a MasterKey to a recipient.

Phases: planning, quorum (`sss` only), releasing, waiting (too few keystores answer: it tries again, and
again with every new approval), done; or refused, failed, expired. A custodian's stop ends it.
"""

from __future__ import annotations

from temporalio import workflow

from workflows.calls.sessions import use_session
from workflows.contracts import names
from workflows.contracts.messages.requests import UnsealRequest
from workflows.contracts.messages.results import UnsealResult
from workflows.contracts.messages.strongroom import Delivered, Release, SessionOpened
from workflows.contracts.trust.authority import check_request
from workflows.contracts.trust.errors import ApprovalInvalid, AuthorityInvalid
from workflows.contracts.trust.plan import Plan, PlanRecipient, RecipientRequest
from workflows.contracts.trust.roster import Roster
from workflows.steps.open import Opening
from workflows.steps.plan import make_plan
from workflows.steps.protections import StoredManifest
from workflows.steps.stoppable import Stoppable


@workflow.defn
class UnsealWorkflow(Stoppable, Opening):
    """One release of one MasterKey to one recipient."""

    @workflow.init
    def __init__(self, request: UnsealRequest) -> None:
        super().__init__(request.ceremony, "unseal", request.master_key)
        self._request = request

    @workflow.run
    async def run(self, request: UnsealRequest) -> UnsealResult:
        """Plan, gather the quorum, release; fails with the type of one of our errors."""
        try:
            return await self.run_to_the_end(self._release)
        finally:
            await self.acknowledge_stop()

    async def _release(self) -> UnsealResult:
        # Unverified: `check_request` verifies it against the plan made from it.
        wanted = RecipientRequest.parse(self._request.request.document.encode())
        begun, roster = await self.begin(wanted.manifest, self._request.request)
        self.know_roster(roster)
        if begun.protection is None:
            raise AuthorityInvalid(
                "the ledger gave no protection to open", next_step="compare the ledger with a bundle"
            )
        source = StoredManifest.read(begun.protection)
        manifest = source.manifest
        plan, recipient = self._plan(source, wanted, roster)
        self.plan = plan
        check_request(roster, self._request.request, plan, self.now())
        quorum = self.open_what(source, plan, roster)
        if manifest.mode == "sss":
            await self.ask(quorum)
        strongroom = roster.strongroom(plan.strongroom)
        if strongroom is None:
            raise AuthorityInvalid(
                "the request names a strongroom that is not in the roster",
                next_step="ask again: `masterkey unseal` names one of the current roster",
            )
        # Where no human is asked, nothing but the keystores themselves can change their answer.
        self.gives_up = manifest.mode == "seal"
        delivered = await self.open_until_done(
            plan, strongroom, "release", "releasing", lambda s: self._attempt(s, plan, source)
        )
        self.event(
            "delivered",
            "masterkey-delivered",
            plan=plan.canonical().decode(),
            delivery=delivered.delivery.document,
            signature=delivered.delivery.signature,
            served_by=list(self.served_by),
            approved_by=list(self.approved_by),
        )
        await self.to_its_end(self.close("done", f"delivered to {recipient}"))
        return UnsealResult(
            ceremony=self.ceremony,
            master_key=self.master_key,
            delivered=delivered,
            approved_by=self.approved_by,
            served_by=self.served_by,
            failed=self.failed_keystores,
        )

    def _plan(self, source: StoredManifest, wanted: RecipientRequest, roster: Roster) -> tuple[Plan, str]:
        recipient = roster.recipient(wanted.recipient)
        if recipient is None:
            raise ApprovalInvalid(
                f"the key {wanted.recipient} is no recipient's in the roster",
                next_step="enrol it with `masterkey roster propose`",
                subject=wanted.recipient,
            )
        to = PlanRecipient(name=recipient.name, fingerprint=recipient.fingerprint, hpke_key=wanted.hpke_key)
        plan = make_plan(
            self,
            roster,
            wanted.strongroom,
            self._request.quorum_timeout_seconds,
            no_later_than=wanted.expires,
            source=source,
            recipient=to,
        )
        return plan, recipient.name

    async def _attempt(self, opened: SessionOpened, plan: Plan, source: StoredManifest) -> Delivered:
        authority = self.authority(plan, self._request.request)
        deks = await self.ask_for_data_keys(opened, source, authority)
        release = Release(session=opened.session, authority=authority, protection=source.stored, deks=deks)
        return await use_session(opened, names.RELEASE, release, Delivered)
