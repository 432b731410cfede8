"""Contributions to a ceremony: only what was asked for counts, and only if the custodian's keystore signed it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowUpdateFailedError

from activities.identity import Identity
from tests.driving.reading import Handle, clean
from tests.workflows.doubles import Clock, Doubles
from tests.workflows.test_messages import GARBAGE
from tests.world import NAMES, World
from workflows.contracts import names
from workflows.contracts.messages.protection import DekAnswer
from workflows.contracts.messages.requests import Contribution, DrillRequest, Wanted
from workflows.contracts.messages.results import DrillResult, UnsealResult
from workflows.contracts.trust.canonical import Document, Signed, digest
from workflows.contracts.trust.keystore import CheckResponse
from workflows.contracts.trust.service_errors import KeystoreUnavailable
from workflows.contracts.trust.session import DekResponse

LIFETIME = timedelta(hours=2)


@pytest.fixture
def doubles(tmp_path: Path) -> Doubles:
    """3-of-4, of which the fourth is offline and the first never answers."""
    found = Doubles(World.make(tmp_path, offline=["ks-4"]), count=4)
    found.unwrap = lambda name: KeystoreUnavailable("away", subject=name) if name == "ks-1" else None
    return found


async def wanted(handle: Handle) -> Wanted:
    found: Wanted = await handle.query("wanted", result_type=Wanted)
    return found


async def asked(clock: Clock, handle: Handle) -> Wanted:
    """What is wanted, once a proof or a data key is."""
    for _ in range(500):
        found = await wanted(handle)
        if found.checks or found.unwraps:
            return found
        await clock.environment.sleep(0.01)
    raise AssertionError("nobody was asked for anything")


async def give(handle: Handle, **what: Any) -> Wanted:
    contribution = Contribution(**{"keystore": "ks-4", **what})
    found: Wanted = await handle.execute_update("contribute", contribution, result_type=Wanted)
    return found


async def refused(handle: Handle, *arguments: Any) -> str:
    """Send what must be refused, and give back why it was."""
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await handle.execute_update("contribute", args=arguments)
    return str(caught.value.cause)


def signed_anew(signer: Identity, kind: type[Document], signed: Signed) -> Signed:
    """The same document, signed by somebody else."""
    return signer.sign(kind.parse(signed.document.encode()))


async def test_an_unseal_survives_every_wrong_contribution_and_completes_with_the_right_one(
    clock: Clock, doubles: Doubles
) -> None:
    stranger = doubles.world.keystores["ks-3"]
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.unseal_request(await clock.now(), LIFETIME))
        plan = await clock.plan(handle)
        assert "nothing of ks-4" in await refused(handle, Contribution(keystore="ks-4", present=True))
        for name in NAMES[:4]:
            await handle.signal("approve", doubles.decision(name, plan, await clock.now(), LIFETIME))
        await clock.reach(handle, "waiting")
        for keystore in ("ks-1", "ks-5", "unheard-of"):
            assert f"nothing of {keystore}" in await refused(handle, Contribution(keystore=keystore, present=True))
        for arguments in GARBAGE:
            await refused(handle, *arguments)
        assert (await wanted(handle)).keystores == ("ks-4",)
        await give(handle, present=True)
        request = (await asked(clock, handle)).unwraps[0]
        sessions, right = len(doubles.sessions), doubles.data_key(request, await clock.now())
        other_session = doubles.data_key(request, await clock.now(), session=digest(b"another"))
        by_another = right.model_copy(update={"response": signed_anew(stranger, DekResponse, right.response)})
        of_another = doubles.data_key(request, await clock.now(), keystore="ks-3")
        no_response = DekAnswer(response=stranger.sign(plan), ciphertext="", wrapped_dek="")
        for wrong in (other_session, by_another, of_another, no_response):
            await refused(handle, Contribution(keystore="ks-4", dek=wrong))
            await refused(handle, Contribution(keystore="ks-4", present=True, dek=wrong))
        for arguments in GARBAGE:
            await refused(handle, *arguments)
        # To say again that one is there starts no other attempt.
        for _ in range(3):
            await give(handle, present=True)
        assert (await wanted(handle)).unwraps == (request,)
        assert len(doubles.sessions) == sessions
        assert (await give(handle, dek=right)).unwraps == ()
        result = UnsealResult.model_validate(await handle.result())
    assert result.served_by == ("ks-2", "ks-3", "ks-4")
    await clean(handle)


async def test_presence_that_is_said_again_while_others_are_away_starts_no_attempt(
    clock: Clock, doubles: Doubles
) -> None:
    doubles.unwrap = lambda name: KeystoreUnavailable("away", subject=name)
    async with doubles.working(clock.environment):
        handle = await clock.start(doubles.unseal_request(await clock.now(), LIFETIME))
        plan = await clock.plan(handle)
        for name in NAMES[:4]:
            await handle.signal("approve", doubles.decision(name, plan, await clock.now(), LIFETIME))
        await clock.environment.sleep(timedelta(minutes=10))
        await clock.reach(handle, "waiting")
        await give(handle, present=True)
        request = (await asked(clock, handle)).unwraps[0]
        await give(handle, dek=doubles.data_key(request, await clock.now()))
        await clock.reach(handle, "waiting")
        before = len(doubles.sessions)
        for _ in range(10):
            await give(handle, present=True)
        assert len(doubles.sessions) == before
        await handle.terminate()


async def test_a_drill_survives_every_wrong_proof_and_counts_the_right_one(clock: Clock, doubles: Doubles) -> None:
    stranger = doubles.world.keystores["ks-3"]
    async with doubles.working(clock.environment):
        ceremony = names.new_ceremony_id("eu10", "drill")
        handle = await clock.start(DrillRequest(master_key="eu10", ceremony=ceremony, offline_seconds=3600))
        request = (await asked(clock, handle)).checks[0]
        right = doubles.proof(request, await clock.now())
        for arguments in GARBAGE:
            await refused(handle, *arguments)
        for wrong in (
            doubles.proof(request, await clock.now(), nonce="1" * 32),
            doubles.proof(request, await clock.now(), keystore="ks-3"),
            doubles.proof(request, await clock.now(), matches=False),
            signed_anew(stranger, CheckResponse, right),
            Signed(document=right.document, signature=""),
        ):
            await refused(handle, Contribution(keystore="ks-4", check=wrong))
        assert (await wanted(handle)).checks == (request,)
        await give(handle, check=right)
        result = DrillResult.model_validate(await handle.result())
    found = {shard.keystore: (shard.opens, shard.offline) for shard in result.protections[0].shards}
    assert (result.healthy, found["ks-4"]) == (True, (True, False))
    await clean(handle)
