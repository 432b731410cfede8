"""What a keystore worker is told, and remembers: commits, retirements, stops and lifts. It verifies each by itself."""

from __future__ import annotations

from datetime import datetime

from activities.keystores.context import CallContext
from workflows.contracts.messages.keystore import NoteCommit, NoteOrder, ReportState, StopServing
from workflows.contracts.trust.authority import check_manifest
from workflows.contracts.trust.canonical import Signed, digest, seconds
from workflows.contracts.trust.keystore import KeystoreState, StateStatement, check_proofs
from workflows.contracts.trust.order import check_order
from workflows.contracts.trust.stop import check_stop


def note_commit(call: CallContext, request: NoteCommit, now: datetime) -> Signed:
    """Remember a manifest that is in force, and answer with what is remembered now (`StateStatement`).

    Raises:
        ManifestInvalid: it contradicts what is remembered, or not every keystore has proven its part of it: then
            nobody may be kept from using what was in force before.
    """
    manifest = check_manifest(request.manifest, call.chain)
    check_proofs(call.chain, manifest, request.manifest.digest, request.proofs)
    call.state.note_commit(manifest)
    return _statement(call, request.manifest.digest, manifest.master_key, now)


def note_order(call: CallContext, request: NoteOrder, now: datetime) -> Signed:
    """Do what a governance quorum has ordered, and answer with what is remembered now (`StateStatement`).

    Raises:
        ApprovalInvalid, ManifestInvalid: it has not ordered it.
    """
    granted = check_order(call.chain, request.authority, request.manifest, now)
    plan = granted.plan
    if plan.stops is not None:
        call.state.note_lift(plan.master_key, plan.stops)
    elif granted.manifest is not None:
        call.state.note_retired(granted.manifest)
    return _statement(call, plan.digest, plan.master_key, now)


def stop_serving(call: CallContext, request: StopServing, now: datetime) -> Signed:
    """Remember a custodian's order to stop, and answer with what is remembered now (`StateStatement`).

    Raises:
        ApprovalInvalid: no custodian of the roster gave it.
    """
    stop, _ = check_stop(call.chain.current, request.stop, now)
    call.state.note_stop(stop.master_key, request.stop.digest)
    return _statement(call, request.stop.digest, stop.master_key, now)


def report_state(call: CallContext, request: ReportState, now: datetime) -> Signed:
    """What this worker remembers of all MasterKeys, signed over the caller's nonce (`StateStatement`)."""
    return _statement(call, digest(bytes.fromhex(request.nonce)), None, now)


def _statement(call: CallContext, about: str, master_key: str | None, now: datetime) -> Signed:
    state = call.state.read()
    names = sorted({*state.master_keys, *state.stops})
    return call.identity.sign(
        StateStatement(
            keystore=call.terms.name,
            about=about,
            roster_number=state.roster_number,
            master_keys=tuple(
                KeystoreState(
                    master_key=name,
                    kcv=state.master_keys[name].kcv if name in state.master_keys else "",
                    epochs=state.master_keys[name].epochs if name in state.master_keys else {},
                    stops=state.stops_in_force(name),
                )
                for name in names
                if master_key in (None, name)
            ),
            time=seconds(now),
        )
    )
