"""`UnsealWorkflow`: release a MasterKey to a recipient.

Phases: planning, quorum (`sss` only), releasing, waiting (too few keystores answer: it tries again, and
again with every new approval), done; or refused, failed, expired. A custodian's stop ends it.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from workflows.calls.sessions import use_session
from workflows.contracts import names
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.messages.requests import UnsealRequest
from workflows.contracts.messages.results import UnsealResult
from workflows.contracts.messages.strongroom import Delivered, Release, SessionOpened
from workflows.contracts.trust.authority import check_request
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.plan import Plan, PlanRecipient, RecipientRequest
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.quorum import custodians_of
from workflows.contracts.trust.roster import Roster
from workflows.steps.ceremony import parse_request
from workflows.steps.open import Opening, source_of
from workflows.steps.quorum import Quorum
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
        wanted = parse_request(self._request.request)
        begun = await self.begin(wanted.manifest, self._request.request)
        roster, stored = Roster.parse(begun.roster.encode()), begun.protection
        self.know_roster(roster)
        if stored is None:
            raise ApprovalInvalid("the ledger gave no protection to open")
        # Not verified here, where it would prove nothing: every keystore and the session verify it.
        manifest = Manifest.parse(stored.manifest.document.encode())
        plan = self._make_plan(manifest, stored, wanted, roster, begun.roster_digest)
        self.plan = plan
        check_request(roster, self._request.request, plan, self.now())
        self.open_what(manifest, roster)
        if manifest.mode == "sss":
            custody = custodians_of(plan, manifest)
            self.quorum = Quorum(plan, roster, custody, manifest.threshold)
            await self.record_plan(plan, "quorum")
            await self.wait_for_quorum("quorum")
        strongroom = roster.strongroom(plan.strongroom)
        if strongroom is None:
            raise ApprovalInvalid("the request names a strongroom that is not in the roster")
        # Where no human is asked, nothing but the keystores themselves can change their answer.
        self.gives_up = manifest.mode == "seal"
        delivered = await self.open_until_done(
            plan, manifest, strongroom, "release", "releasing", lambda s: self._attempt(s, manifest, stored)
        )
        approved_by = self.quorum.approved_by if self.quorum else ()
        self.event(
            "delivered",
            "masterkey-delivered",
            plan=plan.canonical().decode(),
            delivery=delivered.delivery.document,
            signature=delivered.delivery.signature,
            served_by=list(self.served_by),
            approved_by=list(approved_by),
        )
        outcome = f"delivered to {plan.recipient.name}" if plan.recipient else "delivered"
        await self.to_its_end(self.close("done", outcome))
        return UnsealResult(
            ceremony=self.ceremony,
            master_key=self.master_key,
            delivered=delivered,
            approved_by=approved_by,
            served_by=self.served_by,
            failed=self.failed_keystores,
        )

    def _make_plan(
        self, manifest: Manifest, stored: StoredProtection, wanted: RecipientRequest, roster: Roster, roster_digest: str
    ) -> Plan:
        recipient = roster.recipient(wanted.recipient)
        if recipient is None:
            raise ApprovalInvalid(f"the key {wanted.recipient} is no recipient's in the roster")
        limit = self.now() + timedelta(seconds=self._request.quorum_timeout_seconds)
        return Plan(
            action="unseal",
            master_key=self.master_key,
            ceremony=self.ceremony,
            governance_quorum=max(manifest.governance_quorum, roster.governance_of(self.master_key).quorum),
            source=source_of(manifest, stored.manifest.digest),
            target=None,
            recipient=PlanRecipient(name=recipient.name, fingerprint=recipient.fingerprint, hpke_key=wanted.hpke_key),
            strongroom=wanted.strongroom,
            roster=roster_digest,
            created=self.now(),
            expires=min(limit, wanted.expires),
        )

    async def _attempt(self, opened: SessionOpened, manifest: Manifest, stored: StoredProtection) -> Delivered:
        authority = self.authority(self._request.request)
        deks = await self.ask_for_data_keys(opened, manifest, stored, authority)
        release = Release(session=opened.session, authority=authority, protection=stored, deks=deks)
        return await use_session(opened, names.RELEASE, release, Delivered)
