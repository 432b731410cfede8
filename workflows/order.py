"""`OrderWorkflow`: what a governance quorum orders and that opens nothing: lift stops, retire or destroy a protection.

Phases: planning, quorum, ordering, done; or refused, failed, expired.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from workflows.calls.concurrency import gather
from workflows.calls.keystores import call_keystore
from workflows.contracts import names
from workflows.contracts.messages.keystore import NoteOrder, ReportState
from workflows.contracts.messages.ledger import Begun, ExecuteOrder
from workflows.contracts.messages.requests import OrderRequest
from workflows.contracts.messages.results import KeystoreTold, OrderResult
from workflows.contracts.trust.canonical import Signed, digest
from workflows.contracts.trust.errors import MasterKeyError, PlanInvalid
from workflows.contracts.trust.keystore import KeystoreState
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.roster import Roster
from workflows.steps.notify import keys_of, tell_keystores
from workflows.steps.open import source_of
from workflows.steps.protect import Protecting, choose_strongroom, read_statement
from workflows.steps.quorum import Quorum
from workflows.steps.replace import old_keys

_PATIENCE = timedelta(minutes=2)
_SURVEY_PATIENCE = timedelta(seconds=10)
_DONE = {
    "lift": "the stops are lifted",
    "retire": "the protection is retired",
    "destroy": "the ciphertexts are destroyed",
}


@workflow.defn
class OrderWorkflow(Protecting):
    """One order of one governance quorum."""

    @workflow.init
    def __init__(self, request: OrderRequest) -> None:
        super().__init__(request.ceremony, request.action, request.master_key)
        self._request = request

    @workflow.run
    async def run(self, request: OrderRequest) -> OrderResult:
        """Plan, gather the quorum, do it in the ledger, tell the keystores."""
        return await self.run_to_the_end(self._order)

    async def _order(self) -> OrderResult:
        request = self._request
        begun = await self.begin(request.manifest, all_active=request.action != "lift")
        roster = Roster.parse(begun.roster.encode())
        stops = await self._stops(begun, roster) if request.action == "lift" else None
        plan = self._make_plan(begun, roster, stops)
        self.quorum = Quorum(plan, roster, custody=(), threshold=0)
        await self.record_plan(plan, "quorum")
        await self.wait_for_quorum("quorum")
        await self.enter("ordering", flush=True)
        return await self.to_its_end(self._execute(begun, plan, roster, self.quorum))

    async def _stops(self, begun: Begun, roster: Roster) -> tuple[str, ...]:
        """The stops that are in force anywhere, also those that the ledger does not know.

        A keystore may remember one that it was not told the lift of, or that is newer than the bundle that this
        ledger was made from.
        """
        nonce = workflow.uuid4().hex
        about = digest(bytes.fromhex(nonce))

        async def ask(name: str) -> tuple[str, ...]:
            try:
                request = ReportState(keystore=name, nonce=nonce)
                signed = await call_keystore(
                    names.REPORT_STATE, name, request, Signed, patience=_SURVEY_PATIENCE, attempts=2
                )
                said = read_statement(signed, name, roster, about)
            except MasterKeyError as error:
                self.progress(name, "failed", error)
                return ()
            self.progress(name, "answered")
            return next((one.stops for one in said.master_keys if one.master_key == self.master_key), ())

        reported = await gather([ask(one.name) for one in roster.keystores if one.offline is None])
        found = {stop.digest for stop in begun.stops} | {stop for stops in reported for stop in stops}
        if not found:
            raise PlanInvalid(
                f"no stop of {self.master_key} is in force: neither the ledger nor a keystore that answers knows one",
                next_step="look at `masterkey status`; a keystore that does not answer may remember one",
            )
        return tuple(sorted(found))

    def _make_plan(self, begun: Begun, roster: Roster, stops: tuple[str, ...] | None) -> Plan:
        stored, action = begun.protection, self._request.action
        if (stored is None) != (action == "lift"):
            raise PlanInvalid(f"there is nothing to {action}")
        manifest = Manifest.parse(stored.manifest.document.encode()) if stored else None
        quorum = roster.governance_of(self.master_key).quorum
        return Plan(
            action=action,
            master_key=self.master_key,
            ceremony=self.ceremony,
            governance_quorum=max(quorum, manifest.governance_quorum if manifest else 1),
            source=source_of(manifest, stored.manifest.digest) if stored and manifest else None,
            target=None,
            recipient=None,
            strongroom=choose_strongroom(roster, self._request.strongroom).fingerprint,
            roster=begun.roster_digest,
            created=self.now(),
            expires=self.now() + timedelta(seconds=self._request.quorum_timeout_seconds),
            stops=stops,
        )

    async def _execute(self, begun: Begun, plan: Plan, roster: Roster, quorum: Quorum) -> OrderResult:
        request, stored = self._request, begun.protection
        await self.ledger(
            names.EXECUTE_ORDER,
            ExecuteOrder(
                ceremony=self.ceremony,
                master_key=self.master_key,
                action=request.action,
                manifest=request.manifest,
                stops=plan.stops or (),
            ),
        )
        manifest = Manifest.parse(stored.manifest.document.encode()) if stored else None
        authority = self.authority()
        told = await tell_keystores(
            names.NOTE_ORDER,
            lambda name: NoteOrder(keystore=name, authority=authority, manifest=stored.manifest if stored else None),
            roster,
            about=plan.digest,
            patience=_PATIENCE,
            keys=keys_of([stored] if stored else []),
            heard=lambda state: _heard(state, plan, manifest),
            master_key=self.master_key,
        )
        for one in told:
            self.event(
                f"told.{one.keystore}",
                "keystore-told" if one.acknowledged else "keystore-not-told",
                keystore=one.keystore,
                error=one.error,
            )
        await self.close("done", _said(request.action, told))
        bundles = await self.export_bundle(final=True)
        return OrderResult(
            ceremony=self.ceremony,
            master_key=self.master_key,
            action=request.action,
            approved_by=quorum.approved_by,
            keystores=told,
            stops=plan.stops or (),
            manifest=request.manifest,
            old_keys=old_keys(manifest, *_others(begun, request.manifest)) if manifest else (),
            bundles=bundles,
        )


def _others(begun: Begun, manifest: str | None) -> list[Manifest]:
    """Manifests in force, but the one that the order is about: what they need is not to be destroyed."""
    return [Manifest.parse(one.manifest.document.encode()) for one in begun.active if one.manifest.digest != manifest]


def _heard(state: KeystoreState | None, plan: Plan, manifest: Manifest | None) -> bool:
    if plan.stops is not None:
        return state is None or not set(plan.stops) & set(state.stops)
    return state is not None and manifest is not None and state.epochs.get(manifest.purpose, 1) > manifest.epoch


def _said(action: str, told: tuple[KeystoreTold, ...]) -> str:
    deaf = [one.keystore for one in told if not one.acknowledged]
    return _DONE[action] + (f"; not told: {', '.join(deaf)}" if deaf else "; every keystore has heard of it")
