"""Auditing a ceremony: its workflow history against the code, and against the event log.

Two records are kept apart: Temporal's history and the ledger's hash-chained events. Each can be altered by whoever
controls its database; what they say of a ceremony must agree, and every signature in the log must verify. Nobody signs
a history: whoever controls Temporal *and* the ledger can make up a ceremony that agrees with itself, but not the
custodians' signatures in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from temporalio.client import WorkflowHistory

from activities.ledger.activities import ABANDONED
from activities.ledger.log.events import OWN, CeremonyClosed, StagedDiscarded
from activities.ledger.log.records import EventRecord
from activities.ledger.log.signed import read_object
from workers.audit import replay
from workers.audit.expectations import HOLDING, Expectations
from workers.audit.histories import calls, ceremony_of, check_shape, ended_outside, workflow_of

_HOLD = "HoldWorkflow"


@dataclass(frozen=True)
class Run:
    """A workflow history, and what an audit of it found.

    Attributes:
        ceremony: what it was about; empty for a workflow that is no ceremony.
        outside: how somebody else than the workflow ended it; empty if nobody did.
        running: it has not ended.
        differences: what the code would have done otherwise; empty if it does exactly the same.
    """

    history: WorkflowHistory
    ceremony: str
    workflow: str
    outside: str
    running: bool
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """What an event log says of a ceremony, compared with its workflows.

    Attributes:
        differences: what does not agree.
        notes: what could not be compared.
    """

    differences: tuple[str, ...]
    notes: tuple[str, ...] = ()


async def audit_run(history: WorkflowHistory, *, running: bool = False, ceremony: str | None = None) -> Run:
    """Replay one history.

    Args:
        history: of any workflow of ours.
        running: it was when it was asked for, so it may end anywhere.
        ceremony: the one that was asked for; another is a difference.

    Raises:
        NotKnown: it is no history that can be gone through.
    """
    check_shape(history)
    outside, found = ended_outside(history), ceremony_of(history)
    # It may have ended since somebody looked.
    running = running and not outside and not replay.ends(history)
    differences = await replay.in_a_process(history, whole=not running and not outside)
    if outside:
        differences.append(f"the workflow was {outside}, from outside: what it would have done then is not known")
    if ceremony is not None and found != ceremony:
        differences.append(f"this is the history of {found or 'no ceremony'}, not of {ceremony}")
    return Run(history, found, workflow_of(history), outside, running, tuple(differences))


def compare_with_log(runs: Sequence[Run], log: Iterable[EventRecord]) -> Compared:
    """Compare what the workflows of one ceremony had written down with what the event log says of it.

    Args:
        runs: of one ceremony: all that there are.
        log: the ceremony's events.
    """
    asked, events = Expectations(), list(log)
    for run in runs:
        for call in calls(run.history):
            asked.take(call)
    notes = []
    if any(run.running or run.outside for run in runs):
        notes.append("what was asked for last may be in the event log or not")
    given = {run.workflow == _HOLD for run in runs}
    compared = [event for event in events if event.key.startswith(HOLDING) in given]
    if left_out := [event.type for event in events if event.key.startswith(HOLDING) not in given]:
        kinds = ", ".join(sorted(set(left_out)))
        notes.append(f"{len(left_out)} events ({kinds}) are of workflows whose history was not given")
    wrong = [*asked.unreadable, *_missing(asked, compared), *_other(asked, compared, runs)]
    return Compared(tuple(wrong), tuple(notes))


def _missing(asked: Expectations, events: Sequence[EventRecord]) -> list[str]:
    keys = {event.key for event in events}
    return [
        f"{some[0].type} ({key}) was recorded, and is not in the event log"
        for key, some in sorted(asked.by_key.items())
        if key not in keys and any(one.needed for one in some)
    ]


def _other(asked: Expectations, events: Sequence[EventRecord], runs: Sequence[Run]) -> list[str]:
    wrong = []
    for event in events:
        some = asked.by_key.get(event.key, [])
        found = [one.disagreement(event) for one in some]
        if "" in found or _by_others(asked, event, runs):
            continue
        # A second run of the same ceremony asks for what the ledger refuses: the first one's word counts as well.
        disagreement = found[0] if found else "it is in the event log, and the workflow did not record it"
        wrong.append(f"event {event.seq} ({event.type}): {disagreement}")
    return wrong


def _by_others(asked: Expectations, event: EventRecord, runs: Sequence[Run]) -> bool:
    """Whether the ledger itself, or the next ceremony, wrote an event."""
    if not event.key.startswith(OWN):
        return False
    said = read_object(event.body)
    if event.type == StagedDiscarded.TYPE:
        return isinstance(said.get("discarded"), list) and set(map(str, said["discarded"])) <= asked.staged
    abandoned = {"outcome": "failed", "detail": ABANDONED}
    return event.type == CeremonyClosed.TYPE and said == abandoned and any(run.outside for run in runs)


__all__ = ["Compared", "Run", "audit_run", "compare_with_log"]
