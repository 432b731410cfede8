"""What a keystore worker is told, and remembers: commits, retirements, stops and lifts. It verifies each by itself."""

from __future__ import annotations

from datetime import datetime

from activities.keystores.context import Desk
from workflows.contracts.messages.keystore import NoteCommit, NoteOrder, ReportState, StopServing
from workflows.contracts.trust.authority import check_manifest
from workflows.contracts.trust.canonical import Signed, digest, seconds
from workflows.contracts.trust.keystore import KeystoreState, StateStatement, check_proofs
from workflows.contracts.trust.order import check_order
from workflows.contracts.trust.stop import check_stop


def note_commit(desk: Desk, request: NoteCommit, now: datetime) -> Signed:
    """Remember a manifest that is in force, and answer with what is remembered now (`StateStatement`).

    Raises:
        ManifestInvalid: it contradicts what is remembered, or not every keystore has proven its part of it: then
            nobody may be kept from using what was in force before.
    """
    manifest = check_manifest(request.manifest, desk.chain)
    check_proofs(desk.chain, manifest, request.manifest.digest, request.proofs)
    desk.state.note_commit(manifest)
    return _statement(desk, request.manifest.digest, manifest.master_key, now)


def note_order(desk: Desk, request: NoteOrder, now: datetime) -> Signed:
    """Do what a governance quorum has ordered, and answer with what is remembered now (`StateStatement`).

    Raises:
        ApprovalInvalid, ManifestInvalid: it has not ordered it.
    """
    granted = check_order(desk.chain, request.authority, request.manifest, now)
    plan = granted.plan
    if plan.stops is not None:
        desk.state.note_lift(plan.master_key, plan.stops)
    elif granted.manifest is not None:
        desk.state.note_retired(granted.manifest)
    return _statement(desk, plan.digest, plan.master_key, now)


def stop_serving(desk: Desk, request: StopServing, now: datetime) -> Signed:
    """Remember a custodian's order to stop, and answer with what is remembered now (`StateStatement`).

    Raises:
        ApprovalInvalid: no custodian of the roster gave it.
    """
    stop, _ = check_stop(desk.chain.current, request.stop, now)
    desk.state.note_stop(stop.master_key, request.stop.digest)
    return _statement(desk, request.stop.digest, stop.master_key, now)


def report_state(desk: Desk, request: ReportState, now: datetime) -> Signed:
    """What this worker remembers of all MasterKeys, signed over the caller's nonce (`StateStatement`)."""
    return _statement(desk, digest(bytes.fromhex(request.nonce)), None, now)


def _statement(desk: Desk, about: str, master_key: str | None, now: datetime) -> Signed:
    state = desk.state.read()
    names = sorted({*state.master_keys, *state.stops})
    return desk.identity.sign(
        StateStatement(
            keystore=desk.terms.name,
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
