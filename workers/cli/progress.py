"""A ceremony from its start to its end, as the command line shows it: what it waits for, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Group
from rich.live import Live
from rich.text import Text
from temporalio.client import Client, WorkflowHandle

from workers.client import ceremonies
from workers.output import OPTIONS, answer, plain, say
from workflows.contracts.messages.status import CeremonyStatus, KeystoreHealth
from workflows.contracts.trust.canonical import Message, Signed

M = TypeVar("M", bound=Message)

_SAID = {
    "assessing": "asking every keystore whether it can still give back its part",
    "reconstructing": "opening the old protection and making the new one, in one session of the strongroom",
    "proving": "every keystore proves that it can give back its new part; nothing is changed yet",
    "committing": "the new protection is put in force, and keystores are notified of it",
    "stopping": "notifying keystores and recipients to stop",
    "ordering": "the quorum stands: doing it, and notifying the keystores",
    "waiting": "too little answers at the moment: it tries again, and goes on by itself when it can",
}
_HEALTHY = ("healthy", "offline")
_MARKS = {"waiting": "·", "asked": "…", "answered": "✓", "failed": "✗", "quarantined": "✗"}


def lines(status: CeremonyStatus) -> list[str]:
    """A status in words."""
    found = [f"{status.action} {status.master_key}: {status.phase}   ({status.ceremony})"]
    if status.phase in _SAID:
        found.append(f"  {_SAID[status.phase]}")
    for health in status.health:
        found.append(f"  {'✓' if health.state in _HEALTHY else '✗'} {_health(health)}")
    for change in status.changes:
        found.append(f"  plan          {change}")
    if status.approved_by:
        found.append(f"  approved by   {', '.join(status.approved_by)}")
    if status.rejected_by:
        found.append(f"  rejected by   {', '.join(status.rejected_by)}")
    if status.needed:
        found.append(f"  still needed  {status.needed}")
    if status.missing and status.needed:
        found.append(f"  not heard of  {', '.join(status.missing)}")
    if status.deadline is not None and status.needed:
        found.append(f"  deadline      {status.deadline:%Y-%m-%d %H:%M} UTC")
    for name in status.wanted:
        found.append(
            f"  could use     the custodian of {name}: masterkey contribute {status.ceremony} --keystore {name}"
        )
    for keystore in status.keystores:
        told = f": {keystore.error}: {keystore.detail}" if keystore.error else ""
        found.append(f"  {_MARKS[keystore.state]} {keystore.keystore} {keystore.state}{told}")
    if status.detail:
        found.append(f"  {status.detail}")
    return [plain(line) for line in found]


def _health(health: KeystoreHealth) -> str:
    proven = f", last proven {health.proven:%Y-%m-%d %H:%M} UTC" if health.proven else ""
    if health.state in _HEALTHY:
        return f"{health.keystore}: {health.state}{proven}"
    since = f" since {health.since:%Y-%m-%d %H:%M:%S} UTC" if health.since else ""
    return f"{health.keystore}: {health.state.upper()}{since}{proven}: {health.detail}"


@contextmanager
def live() -> Iterator[Callable[[CeremonyStatus], None]]:
    """Show progress while the block runs: redrawn on a terminal, line by line elsewhere."""
    console = OPTIONS.errors
    if console.is_terminal:
        with Live(console=console, transient=True, refresh_per_second=4) as shown:
            yield lambda status: shown.update(Group(*(Text(line) for line in lines(status))))
        return
    last: list[str] = []

    def show(status: CeremonyStatus) -> None:
        now = lines(status)
        if now != last:
            for line in now:
                if line not in last:
                    console.print(line, markup=False)
            last[:] = now

    yield show


def as_json(result: Message) -> dict[str, Any]:
    """A result for programs: of a manifest its digest, by which it is named everywhere."""
    data, manifest = result.model_dump(mode="json"), getattr(result, "manifest", None)
    return {**data, "manifest": manifest.digest} if isinstance(manifest, Signed) else data


async def run_ceremony(
    client: Client,
    workflow: str,
    request: ceremonies.Request,
    result: type[M],
    words: Callable[[M], None],
    *,
    wait: bool,
) -> None:
    """Start a ceremony that people decide, and see it to its end.

    Args:
        client: of Temporal.
        workflow: its type.
        request: what it is started with.
        result: what it ends with.
        words: says the result to people.
        wait: for the end; else the answer is the ceremony's id alone.

    Raises:
        MasterKeyError: the ceremony's own failure.
    """
    handle = await ceremonies.start(client, workflow, request)
    say(was_started(str(request.ceremony)))
    await conclude(handle, str(request.ceremony), result, words, wait=wait)


def was_started(ceremony: str) -> str:
    """The line that says so, and what comes next."""
    return f"ceremony {ceremony} was started; custodians decide with: masterkey approve {ceremony}"


async def conclude(
    handle: WorkflowHandle[Any, Any],
    ceremony: str,
    result: type[M],
    words: Callable[[M], None],
    *,
    wait: bool,
) -> None:
    """See a ceremony that was started to its end; see `run_ceremony`."""
    if not wait:
        answer({"ceremony": ceremony}, lambda: None)
        return
    found = await watched(handle, result)
    answer(as_json(found), lambda: words(found))


async def watched(handle: WorkflowHandle[Any, Any], result: type[M]) -> M:
    """Wait for a ceremony's end, showing progress; raises its own failure."""
    with live() as show:
        return await ceremonies.watch(handle, result, show)
