"""The log folded: MasterKeys, protections and their statuses, stops and ceremonies, as the events tell.

The rows of the ledger say the same, or the ledger was altered. Only events whose keys begin with `ledger:` count
here: no workflow can write those. The rules are those by which the ledger writes; a log that breaks one was never
written by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from activities.ledger.log.events import (
    CeremonyClosed,
    CeremonyOpened,
    LedgerEvent,
    PlanProposed,
    ProtectionCommitted,
    ProtectionDestroyed,
    ProtectionRetired,
    ProtectionStaged,
    RosterSeen,
    StagedDiscarded,
    StopOrdered,
    StopsLifted,
    read_event,
    wrong,
)
from activities.ledger.log.records import CeremonyAction, EventRecord, MasterKeyRecord
from workflows.contracts.messages.ledger import Outcome
from workflows.contracts.names import parts_of
from workflows.contracts.trust.canonical import Signed


@dataclass(frozen=True)
class CeremonyPast:
    """A ceremony, as the log tells it; the phase is not in it."""

    ceremony: str
    master_key: str
    action: CeremonyAction
    outcome: Outcome | Literal[""] = ""


@dataclass(frozen=True)
class ProtectionPast:
    """A protection that was committed.

    Attributes:
        destroys_after: when the ciphertexts of what it replaced are due for destruction, if ever.
        destroy_after: when its own are.
    """

    master_key: str
    ceremony: str
    said: ProtectionStaged
    committed: datetime
    destroys_after: datetime | None = None
    status: Literal["active", "retired", "destroyed"] = "active"
    destroy_after: datetime | None = None


@dataclass(frozen=True)
class StopPast:
    """A stop."""

    master_key: str
    ceremony: str
    signed: Signed
    ordered_at: datetime
    lifted_at: datetime | None = None
    lifted_by: str | None = None


@dataclass
class LedgerState:
    """What came of all events.

    Attributes:
        master_keys: by name.
        protections: the committed ones, by digest, in the order of their commits.
        rosters: digests of the roster versions under which ceremonies began.
        orders: for each retirement, destruction by order, and lift: its event and what it said.
    """

    ceremonies: dict[str, CeremonyPast] = field(default_factory=dict)
    master_keys: dict[str, MasterKeyRecord] = field(default_factory=dict)
    protections: dict[str, ProtectionPast] = field(default_factory=dict)
    stops: dict[str, StopPast] = field(default_factory=dict)
    rosters: list[str] = field(default_factory=list)
    orders: list[tuple[EventRecord, ProtectionRetired | StopsLifted]] = field(default_factory=list)
    staged: dict[str, tuple[str, ProtectionStaged]] = field(default_factory=dict)


def fold(events: Iterable[EventRecord]) -> LedgerState:
    """What a log tells.

    Raises:
        BundleInvalid: naming the first event that no ledger would have written there.
    """
    state = LedgerState()
    for event in events:
        body = read_event(event)
        if body is not None:
            _take(state, event, body)
        past = state.ceremonies.get(event.ceremony)
        if past is not None and past.master_key != event.master_key:
            raise wrong(event, f"its ceremony is about {past.master_key}")
    return state


def _take(state: LedgerState, event: EventRecord, body: LedgerEvent) -> None:
    match body:
        case CeremonyOpened():
            if event.ceremony in state.ceremonies:
                raise wrong(event, "the ceremony was opened before")
            if parts_of(event.ceremony) not in (None, (event.master_key, body.opened.action)):
                raise wrong(event, "the ceremony is about something else than its id says")
            opened = body.opened
            state.ceremonies[event.ceremony] = CeremonyPast(event.ceremony, event.master_key, opened.action)
        case RosterSeen():
            state.rosters.append(body.digest)
        case PlanProposed():
            _ceremony(state, event)
        case StagedDiscarded():
            _ceremony(state, event)
            for digest in body.discarded:
                state.staged.pop(digest, None)
        case CeremonyClosed():
            past = _ceremony(state, event)
            if past.outcome or not body.outcome:
                raise wrong(event, "the ceremony was over before")
            state.ceremonies[event.ceremony] = replace(past, outcome=body.outcome)
        case ProtectionCommitted():
            _commit(state, event, body)
        case ProtectionStaged():
            _ceremony(state, event)
            state.staged[body.digest] = (event.ceremony, body)
        case ProtectionDestroyed():
            _end(state, event, body, "retired", "destroyed")
        case ProtectionRetired():
            _end(state, event, body, "active", "retired")
        case StopOrdered():
            if event.master_key not in state.master_keys or body.digest in state.stops:
                raise wrong(event, "the stop is of no MasterKey, or was ordered before")
            past = _ceremony(state, event)
            state.stops[body.digest] = StopPast(event.master_key, past.ceremony, body, event.at)
        case StopsLifted():
            _lift(state, event, body)


def _commit(state: LedgerState, event: EventRecord, body: ProtectionCommitted) -> None:
    past, staged = _ceremony(state, event), state.staged.get(body.digest)
    same = ProtectionStaged.of(body)
    if staged != (event.ceremony, same) or body.digest in state.protections:
        raise wrong(event, "it commits what was not staged")
    known = state.master_keys.get(event.master_key)
    if (known is None) != (past.action == "init"):
        raise wrong(event, "only an init makes a MasterKey, and only once")
    if known is not None and (known.kcv != body.kcv or known.epoch >= body.epoch):
        raise wrong(event, "it commits another key check value, or an epoch that does not follow")
    active = next(
        (
            found
            for found in state.protections.values()
            if (found.master_key, found.said.purpose, found.status) == (event.master_key, body.purpose, "active")
        ),
        None,
    )
    replaced = active.said.digest if active else None
    if (body.predecessor, body.retired) != (replaced, replaced):
        raise wrong(event, "it replaces another protection than the active one")
    if active is not None:
        ended = replace(active, status="retired", destroy_after=body.destroy_after)
        state.protections[active.said.digest] = ended
    elif body.destroy_after is not None:
        raise wrong(event, "it says when to destroy what it does not replace")
    state.protections[body.digest] = ProtectionPast(
        event.master_key, event.ceremony, same, event.at, destroys_after=body.destroy_after
    )
    state.master_keys[event.master_key] = MasterKeyRecord(
        master_key=event.master_key,
        kcv=body.kcv,
        ceremony=known.ceremony if known else event.ceremony,
        created_at=known.created_at if known else event.at,
        epoch=body.epoch,
    )


def _end(
    state: LedgerState,
    event: EventRecord,
    body: ProtectionRetired,
    before: Literal["active", "retired"],
    after: Literal["retired", "destroyed"],
) -> None:
    found = state.protections.get(body.digest)
    if found is None or (found.status, found.master_key) != (before, event.master_key):
        raise wrong(event, f"the protection was not {before}")
    if (body.purpose, body.epoch) != (found.said.purpose, found.said.epoch):
        raise wrong(event, "it speaks of another protection than its digest")
    if isinstance(body, ProtectionDestroyed) and not event.ceremony:
        if body.scheduled is None or body.scheduled != found.destroy_after or event.at < body.scheduled:
            raise wrong(event, "it was neither ordered nor due")
    else:
        _ceremony(state, event)
        state.orders.append((event, body))
    state.protections[body.digest] = replace(found, status=after)


def _lift(state: LedgerState, event: EventRecord, body: StopsLifted) -> None:
    _ceremony(state, event)
    for stop in body.stops:
        found = state.stops.get(stop)
        if found is None:
            continue  # Keystores remembered it, and that ledger did not; the quorum named it all the same.
        if found.master_key != event.master_key:
            raise wrong(event, "it lifts a stop of another MasterKey")
        if found.lifted_at is None:
            state.stops[stop] = replace(found, lifted_at=event.at, lifted_by=event.ceremony)
    state.orders.append((event, body))


def _ceremony(state: LedgerState, event: EventRecord) -> CeremonyPast:
    past = state.ceremonies.get(event.ceremony)
    if past is None or past.master_key != event.master_key:
        raise wrong(event, "its ceremony was not opened, or is of another MasterKey")
    if past.outcome and event.type != StagedDiscarded.TYPE:
        raise wrong(event, "its ceremony was over")
    return past
