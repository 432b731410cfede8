"""The lease of a MasterKey: a program runs with it, and a custodian's stop ends that program.

The command line waits for the program's end and for a stop at once. It verifies a stop by the roster that it has
pinned: an orchestrator alone can end nothing. Then it ends the program, and says so, signed.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from temporalio.client import Client, WorkflowFailureError
from temporalio.service import RPCError

from activities import recipient
from activities.oneshot.process import Pool
from activities.roster import RosterSource
from workers.client import ceremonies as ceremony_client
from workers.output import say
from workflows.contracts import names
from workflows.contracts.messages.requests import HoldRequest
from workflows.contracts.messages.results import HoldResult
from workflows.contracts.trust.canonical import Signed, seconds
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.stop import Stop, check_stop
from workflows.contracts.trust.validity import CLOCK_SKEW

_GRACE_SECONDS = 10.0
_AGAIN_SECONDS = 5.0


async def keep_lease(
    client: Client, request: HoldRequest, child: subprocess.Popen[bytes], source: RosterSource
) -> tuple[Stop, HoldRequest] | None:
    """Wait until the program ends, or a stop ends it.

    Args:
        client: of Temporal; while it does not answer, a stop cannot arrive, and the program runs on.
        request: who holds what, since which unseal.
        child: the program.
        source: the pinned roster.

    Returns:
        The stop that ended it, if one did, and how it was learned: the caller acknowledges it.
    """
    ended = asyncio.create_task(asyncio.to_thread(child.wait))
    turns: list[HoldRequest] = []
    since = datetime.now(UTC)
    stopped = asyncio.create_task(_listen(client, request, source, turns, since))
    await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
    if not stopped.done():
        stopped.cancel()
        with contextlib.suppress(RPCError):
            await client.get_workflow_handle(_id(turns[-1] if turns else request)).signal("released")
        return None
    stop, turn = stopped.result(), turns[-1]
    if not ended.done():
        say(
            f"a custodian ordered to stop {request.master_key} ({stop.reason or 'no reason given'}): ending the program"
        )
        child.terminate()
        done, _ = await asyncio.wait([ended], timeout=_GRACE_SECONDS)
        if not done:
            child.kill()
    await ended
    return stop, turn


async def acknowledge(client: Client, stop: Stop, request: HoldRequest, identity: Path) -> None:
    """Say, signed by the recipient's identity in a one-shot process, that the program has ended."""
    pool = Pool(recipient.ACKNOWLEDGE, (), spares=0)
    process = await pool.take()
    try:
        terms = recipient.EndedTerms(
            identity=str(identity),
            master_key=request.master_key,
            ceremony=request.ceremony,
            stop=stop.digest,
            time=seconds(datetime.now(UTC)),
        )
        signed = await process.ask(terms, Signed)
    finally:
        pool.release(process)
        await pool.close()
    acknowledgement = {"workflow": _id(request), "ended": signed.model_dump()}
    try:
        await client.get_workflow_handle(names.workflow_id(stop.ceremony)).signal("acknowledge", acknowledgement)
    except RPCError:
        say("the stop's ceremony is over: it reports this recipient as one that did not answer in time")


def _id(request: HoldRequest) -> str:
    return names.hold_id(request.ceremony, request.turn)


async def _listen(
    client: Client, request: HoldRequest, source: RosterSource, turns: list[HoldRequest], since: datetime
) -> Stop:
    while True:
        turns.append(request.model_copy(update={"turn": len(turns) + 1}))
        try:
            handle = await ceremony_client.hold(client, turns[-1])
            result = HoldResult.model_validate(await handle.result())
        except (RPCError, WorkflowFailureError) as error:
            say(f"cannot hear of stops at the moment ({type(error).__name__}); trying again")
            await asyncio.sleep(_AGAIN_SECONDS)
            continue
        if result.stop is None:
            await asyncio.sleep(_AGAIN_SECONDS)
            continue
        try:
            stop, _ = check_stop(source.load().current, result.stop, datetime.now(UTC))
            if stop.master_key != request.master_key:
                raise ApprovalInvalid("it is of another MasterKey")
            if stop.issued < since - CLOCK_SKEW:
                # One in force would have kept the keystores from serving: it was lifted, and somebody sends it again.
                raise ApprovalInvalid("it is older than this release")
        except ApprovalInvalid as error:
            say(f"somebody sent a stop that does not count: {error.message}; it is ignored")
            await asyncio.sleep(_AGAIN_SECONDS)
            continue
        return stop
