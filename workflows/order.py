"""`OrderWorkflow`: what a governance quorum orders and that opens nothing: lift stops, retire or destroy a protection.

Phases: planning, quorum, ordering, done; or refused, failed, expired.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from workflows.calls.concurrency import gather
from workflows.calls.ledger import call_ledger
from workflows.contracts import names
from workflows.contracts.messages.keystore import NoteOrder, ReportState
from workflows.contracts.messages.ledger import Begun, ExecuteOrder
from workflows.contracts.messages.requests import OrderRequest
from workflows.contracts.messages.results import OrderResult
from workflows.contracts.trust.canonical import digest
from workflows.contracts.trust.errors import MasterKeyError, PlanInvalid
from workflows.contracts.trust.keystore import KeystoreState
from workflows.contracts.trust.plan import Plan
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.roster import Roster
from workflows.steps.ceremony import Ceremony
from workflows.steps.notify import notify_keystores, record_notified, state_in, statement_of
from workflows.steps.plan import choose_strongroom, make_plan
from workflows.steps.protections import StoredManifest, keys_of, old_keys
from workflows.steps.quorum import Quorum

_TIMEOUT = timedelta(minutes=2)
_SURVEY_TIMEOUT = timedelta(seconds=10)
_DONE = {
    "lift": "the stops are lifted",
    "retire": "the protection is retired",
    "destroy": "the ciphertexts are destroyed",
}


@workflow.defn
class OrderWorkflow(Ceremony):
    """One order of one governance quorum."""

    @workflow.init
    def __init__(self, request: OrderRequest) -> None:
        super().__init__(request.ceremony, request.action, request.master_key)
        self._request = request

    @workflow.run
    async def run(self, request: OrderRequest) -> OrderResult:
        """Plan, gather the quorum, do it in the ledger, notify the keystores."""
        return await self.run_to_the_end(self._order)

    async def _order(self) -> OrderResult:
        request, lifts = self._request, self._request.action == "lift"
        begun, roster = await self.begin(request.manifest, all_active=not lifts)
        stops = await self._stops(begun, roster) if lifts else None
        if (begun.protection is None) != lifts:
            raise PlanInvalid(f"there is nothing to {request.action}")
        about = StoredManifest.read(begun.protection) if begun.protection else None
        strongroom = choose_strongroom(roster, request.strongroom).fingerprint
        plan = make_plan(self, roster, strongroom, request.quorum_timeout_seconds, source=about, stops=stops)
        await self.ask(Quorum(plan, roster))
        await self.enter("ordering", flush=True)
        return await self.to_its_end(self._execute(plan, about, begun, roster))

    async def _stops(self, begun: Begun, roster: Roster) -> tuple[str, ...]:
        """The stops that are in force anywhere, also those that the ledger does not know.

        A keystore may remember one that it was not told the lift of, or that is newer than the bundle that this
        ledger was made from.
        """
        nonce = workflow.uuid4().hex
        about = digest(bytes.fromhex(nonce))

        async def ask(name: str) -> tuple[str, ...]:
            request = ReportState(keystore=name, nonce=nonce)
            try:
                with self.asking(name):
                    said = await statement_of(
                        names.REPORT_STATE, name, request, roster, about, within=_SURVEY_TIMEOUT, attempts=2
                    )
            except MasterKeyError:
                # Whoever watches sees it; a keystore that is away does not keep a stop from being lifted.
                return ()
            state = state_in(said, self.master_key)
            return state.stops if state else ()

        reported = await gather([ask(one.name) for one in roster.keystores if one.offline is None])
        found = {stop.digest for stop in begun.stops} | {stop for stops in reported for stop in stops}
        if not found:
            raise PlanInvalid(
                f"no stop of {self.master_key} is in force: neither the ledger nor a keystore that answers knows one",
                next_step="look at `masterkey status`; a keystore that does not answer may remember one",
            )
        return tuple(sorted(found))

    async def _execute(self, plan: Plan, about: StoredManifest | None, begun: Begun, roster: Roster) -> OrderResult:
        request, stops = self._request, plan.stops or ()
        await call_ledger(
            names.EXECUTE_ORDER,
            ExecuteOrder(
                ceremony=self.ceremony,
                master_key=self.master_key,
                action=request.action,
                manifest=request.manifest,
                stops=stops,
            ),
        )
        authority, manifest = self.authority(plan), about.stored.manifest if about else None
        notified = await notify_keystores(
            names.NOTE_ORDER,
            lambda name: NoteOrder(keystore=name, authority=authority, manifest=manifest),
            roster,
            about=plan.digest,
            within=_TIMEOUT,
            keys=keys_of([about] if about else []),
            acknowledged=lambda state: _acknowledged(state, plan, about.manifest if about else None),
            master_key=self.master_key,
        )
        missed = record_notified(self, notified, "keystore-told")
        heard = f"; not told: {', '.join(missed)}" if missed else "; every keystore has heard of it"
        bundles = await self.finish(_DONE[request.action] + heard)
        # What others need that are in force is not to be destroyed.
        others = [StoredManifest.read(one).manifest for one in begun.active if one.manifest.digest != request.manifest]
        return OrderResult(
            ceremony=self.ceremony,
            master_key=self.master_key,
            action=request.action,
            approved_by=self.approved_by,
            keystores=notified,
            stops=stops,
            manifest=request.manifest,
            old_keys=old_keys(about.manifest, others) if about else (),
            bundles=bundles,
        )


def _acknowledged(state: KeystoreState | None, plan: Plan, manifest: Manifest | None) -> bool:
    if plan.stops is not None:
        return state is None or not set(plan.stops) & set(state.stops)
    return state is not None and manifest is not None and state.epochs.get(manifest.purpose, 1) > manifest.epoch
