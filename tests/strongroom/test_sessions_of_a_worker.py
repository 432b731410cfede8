"""Sessions as a strongroom's worker holds them: opened, held, used once, and gone; and the pipe they speak over."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.crypto import envelope, hpke
from activities.oneshot.child import Channel
from activities.oneshot.process import OneShot, Pool
from activities.oneshot.requests import Asked
from activities.roster import HostTerms
from activities.strongroom import session
from activities.strongroom.activities import TARGET, StrongroomActivities
from tests.strongroom.test_reshard import Resharding
from tests.strongroom.test_session import Ceremony, manifest_of
from tests.world import NAMES, World
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.messages.strongroom import HoldSession, OpenSession, Protect, Release, Reshard, SessionOpened
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import ApprovalInvalid, CiphertextInvalid
from workflows.contracts.trust.session import SessionAnnouncement
from workflows.contracts.trust.signatures import open_signed


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path)


@pytest_asyncio.fixture
async def strongroom(world: World) -> AsyncIterator[StrongroomActivities]:
    pool = Pool(TARGET, ("activities.strongroom.session",), spares=1)
    await pool.start()
    source = world.source
    host = HostTerms(
        identity=str(world.folder / "strongroom"),
        roster_file=str(source.file),
        roster_genesis=source.genesis,
        roster_minimum=1,
    )
    yield StrongroomActivities(pool, "private", host)
    await pool.close()


async def opened(strongroom: StrongroomActivities, world: World) -> tuple[SessionOpened, Protect]:
    plan = world.init_plan(world.target())
    request = OpenSession(purpose="protect", plan=plan.canonical().decode(), attempt=1)
    found: SessionOpened = await ActivityEnvironment().run(strongroom.open_session, request)
    return found, Protect(session=found.session, authority=world.authority(plan, NAMES[:3]), deks=())


def error_of(failure: pytest.ExceptionInfo[ApplicationError]) -> str | None:
    return failure.value.type


async def test_a_session_announces_a_key_signed_by_the_strongroom(
    strongroom: StrongroomActivities, world: World
) -> None:
    found, _ = await opened(strongroom, world)
    announcement, signer = open_signed(SessionAnnouncement, found.announcement)
    assert signer == world.strongroom.fingerprint
    assert announcement.session == found.session
    assert found.queue == "private"
    assert (len(strongroom.shared()), len(strongroom.private())) == (1, 4)


async def test_a_plan_for_another_strongroom_opens_no_session(strongroom: StrongroomActivities, world: World) -> None:
    plan = world.init_plan(world.target(), strongroom=world.stranger.fingerprint)
    request = OpenSession(purpose="protect", plan=plan.canonical().decode(), attempt=1)
    with pytest.raises(ApplicationError) as refused:
        await ActivityEnvironment().run(strongroom.open_session, request)
    assert error_of(refused) == "ApprovalInvalid"
    assert refused.value.non_retryable


async def test_a_session_that_is_given_up_while_it_opens_is_gone(
    strongroom: StrongroomActivities, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[OneShot] = []
    release = strongroom._pool.release

    def note(one: OneShot) -> None:
        released.append(one)
        release(one)

    taken, take = asyncio.Event(), strongroom._pool.take

    async def noted_take() -> OneShot:
        one = await take()
        taken.set()
        return one

    monkeypatch.setattr(strongroom._pool, "release", note)
    monkeypatch.setattr(strongroom._pool, "take", noted_take)
    plan = world.init_plan(world.target()).canonical().decode()
    call = asyncio.ensure_future(strongroom.open_session(OpenSession(purpose="protect", plan=plan, attempt=1)))
    await taken.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert len(released) == 1
    assert strongroom._sessions == {}


async def test_a_session_is_used_once(strongroom: StrongroomActivities, world: World) -> None:
    found, work = await opened(strongroom, world)
    hold = asyncio.ensure_future(ActivityEnvironment().run(strongroom.hold_session, HoldSession(session=found.session)))
    await asyncio.sleep(0.05)
    with pytest.raises(ApplicationError) as refused:
        await ActivityEnvironment().run(strongroom.protect, work)
    assert error_of(refused) == "ApprovalInvalid"  # no DEKs: the session answers, and is over
    await asyncio.wait_for(hold, 5)
    with pytest.raises(ApplicationError) as refused:
        await ActivityEnvironment().run(strongroom.protect, work)
    assert error_of(refused) == "SessionLost"
    with pytest.raises(ApplicationError) as refused:
        await ActivityEnvironment().run(strongroom.release, release_of(found, work))
    assert error_of(refused) == "SessionLost"


def release_of(found: SessionOpened, work: Protect) -> Release:
    return Release(
        session=found.session,
        authority=work.authority,
        protection=StoredProtection(manifest=Signed(document="{}", signature=""), shards=()),
        deks=(),
    )


async def test_a_whole_protection_is_made_and_released_over_the_pipe(
    strongroom: StrongroomActivities, world: World
) -> None:
    ceremony = Ceremony(world)
    stored = ceremony.protect()
    key = hpke.PrivateKey()
    request = world.request(stored, key.public_key)
    plan = world.unseal_plan(stored, request)
    authority = world.authority(plan, NAMES[:3], world.recipient.sign(request))
    asked = OpenSession(purpose="release", plan=plan.canonical().decode(), attempt=1)
    found = await ActivityEnvironment().run(strongroom.open_session, asked)
    deks = tuple(ceremony.unwrap(stored, index, authority, found.announcement) for index in (1, 2, 3))
    work = Release(session=found.session, authority=authority, protection=stored, deks=deks)
    delivered = await ActivityEnvironment().run(strongroom.release, work)
    master_key = ceremony.receive(delivered, request, key, stored)
    assert envelope.key_check_value(master_key, "eu10") == manifest_of(stored).kcv


async def test_a_whole_protection_is_made_anew_over_the_pipe(strongroom: StrongroomActivities, world: World) -> None:
    ceremony = Resharding(world)
    stored, target = ceremony.protect(), world.target_over(("ks-1", "ks-2"))
    key, _ = ceremony.unseal(stored)
    plan = world.reshard_plan(stored, target)
    authority = world.authority(plan, NAMES[:3])
    asked = OpenSession(purpose="reshard", plan=plan.canonical().decode(), attempt=1)
    found = await ActivityEnvironment().run(strongroom.open_session, asked)
    work = Reshard(
        session=found.session,
        authority=authority,
        protection=stored,
        opened=tuple(ceremony.unwrap(stored, index, authority, found.announcement) for index in (1, 2, 3)),
        deks=tuple(ceremony.generate(target, authority, found.announcement)),
    )
    made = await ActivityEnvironment().run(strongroom.reshard, work)
    assert ceremony.unseal(made, indexes=(1, 2))[0] == key
    with pytest.raises(ApplicationError) as refused:
        await ActivityEnvironment().run(strongroom.reshard, work)
    assert error_of(refused) == "SessionLost"


async def test_a_session_that_dies_is_noticed_by_whoever_holds_it(
    strongroom: StrongroomActivities, world: World
) -> None:
    found, _ = await opened(strongroom, world)
    hold = asyncio.ensure_future(ActivityEnvironment().run(strongroom.hold_session, HoldSession(session=found.session)))
    await asyncio.sleep(0.05)
    strongroom._sessions[found.session].process._process.kill()
    with pytest.raises(ApplicationError) as lost:
        await asyncio.wait_for(hold, 5)
    assert error_of(lost) == "SessionLost"


async def test_a_hold_that_is_cancelled_ends_the_session(strongroom: StrongroomActivities, world: World) -> None:
    found, _ = await opened(strongroom, world)
    one = strongroom._sessions[found.session].process
    hold = asyncio.ensure_future(ActivityEnvironment().run(strongroom.hold_session, HoldSession(session=found.session)))
    await asyncio.sleep(0.05)
    hold.cancel()
    await asyncio.gather(hold, return_exceptions=True)
    assert found.session not in strongroom._sessions
    await asyncio.to_thread(one.wait, 5.0)
    with pytest.raises(ApplicationError):
        await ActivityEnvironment().run(strongroom.hold_session, HoldSession(session=found.session))


async def test_a_session_that_nobody_uses_ends_by_itself(
    strongroom: StrongroomActivities, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.strongroom.activities.SESSION_LIFETIME", timedelta(seconds=0.3))
    found, _ = await opened(strongroom, world)
    await asyncio.sleep(1)
    assert found.session not in strongroom._sessions


# --- the session's own side of the pipe -------------------------------------------------------------------


def serve(monkeypatch: pytest.MonkeyPatch) -> tuple[Connection[bytes, bytes], threading.Thread, list[BaseException]]:
    ours, theirs = Pipe()
    raised: list[BaseException] = []
    monkeypatch.setattr("activities.strongroom.session.signal.setitimer", lambda *_: None)

    def run() -> None:
        try:
            session.serve(Channel(theirs))
        except ApprovalInvalid as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return ours, thread, raised


def terms(world: World, plan: Any, purpose: str) -> bytes:
    described = {
        "identity": str(world.folder / "strongroom"),
        "roster_file": str(world.roster_file),
        "roster_genesis": world.roster.digest,
        "roster_minimum": 1,
        "purpose": purpose,
        "plan": plan.canonical().decode(),
        "attempt": 1,
        "session": "ab" * 16,
    }
    return json.dumps(described).encode()


def test_a_session_speaks_terms_announcement_work_and_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ceremony = Ceremony(world)
    plan = world.init_plan(world.target("seal", 1, 1))
    authority = world.authority(plan, NAMES[:3])
    ours, thread, raised = serve(monkeypatch)
    ours.send_bytes(terms(world, plan, "protect"))
    announced = Signed.model_validate_json(ours.recv_bytes()[1:])
    from activities.keystores import datakey
    from tests.world import now
    from workflows.contracts.messages.keystore import GenerateDataKey

    asked = GenerateDataKey(keystore="ks-1", index=1, authority=authority, session=announced)
    dek = datakey.generate(world.desk("ks-1"), asked, now())
    work = Asked.of(Protect(session="ab" * 16, authority=authority, deks=(dek,)))
    ours.send_bytes(work.model_dump_json().encode())
    answer = ours.recv_bytes()
    thread.join(5)
    assert raised == []
    # The answer is ciphertext and a signed document, nothing else.
    assert set(json.loads(answer[1:])) == {"manifest", "shards"}
    assert ceremony.world is world


def test_a_session_that_is_asked_for_something_else_or_for_nothing_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = world.init_plan(world.target())
    release = Release(
        session="ab" * 16,
        authority=world.authority(plan, NAMES[:3]),
        protection=Ceremony(world).protect(),
        deks=(),
    )
    reshard = Reshard(**dict(release), opened=())
    for work, complaint in (
        (Asked.of(OpenSession(purpose="protect", plan="", attempt=1)), "asked for something that it does not do"),
        (Asked.of(release), "releases nothing"),
        (Asked.of(reshard), "opens nothing to protect it anew"),
    ):
        ours, thread, raised = serve(monkeypatch)
        ours.send_bytes(terms(world, plan, "protect"))
        ours.recv_bytes()
        ours.send_bytes(work.model_dump_json().encode())
        thread.join(5)
        assert complaint in str(raised[0])


# --- small things ------------------------------------------------------------------------------------------


def test_what_was_encrypted_to_a_process_opens_only_there_and_bound_to_its_info() -> None:
    key, other = hpke.PrivateKey(), hpke.PrivateKey()
    ciphertext = hpke.encrypt_to(key.public_key, b"k" * 32, b"info")
    assert len(ciphertext) == 1120 + 32 + 16
    assert key.open(ciphertext, b"info") == b"k" * 32
    for opener, data, info in (
        (other, ciphertext, b"info"),
        (key, ciphertext, b"other"),
        (key, ciphertext[:-1] + bytes([ciphertext[-1] ^ 1]), b"info"),
        (key, b"short", b"info"),
    ):
        with pytest.raises(CiphertextInvalid):
            opener.open(data, info)


@pytest.mark.parametrize("public_key", ["", "AAAA", "not base64", "A" * 1624])
def test_a_malformed_public_key_is_refused(public_key: str) -> None:
    with pytest.raises(ApprovalInvalid, match="malformed"):
        hpke.encrypt_to(public_key, b"k" * 32, b"")


def test_a_shard_opens_only_with_its_dek_and_its_place(world: World) -> None:
    shard = manifest_of(Ceremony(world).protect()).shards[0]
    nonce, ciphertext = envelope.encrypt_shard(b"s" * 33, b"d" * 32, shard.binding)
    assert envelope.decrypt_shard(nonce, ciphertext, b"d" * 32, shard.binding) == b"s" * 33
    moved = shard.binding.model_copy(update={"threshold": 2})
    for dek, binding, data in (
        (b"e" * 32, shard.binding, ciphertext),
        (b"d" * 32, moved, ciphertext),
        (b"d" * 32, shard.binding, b""),
    ):
        with pytest.raises(CiphertextInvalid) as refused:
            envelope.decrypt_shard(nonce, data, dek, binding)
        assert refused.value.subject == "ks-1"


def test_derived_values_are_bound_to_their_labels_and_contexts(world: World) -> None:
    first, second = manifest_of(Ceremony(world).protect()).shards[:2]
    key, salt = b"k" * 32, b"s" * 16
    derived = [
        envelope.key_check_value(key, "eu10"),
        envelope.key_check_value(key, "eu11"),
        envelope.dek_check_value(key, first.binding),
        envelope.dek_check_value(key, second.binding),
        envelope.commitment(key, first.binding, salt)[:32],
        envelope.commitment(key, first.binding, b"t" * 16)[:32],
        envelope.commitment(key, second.binding, salt)[:32],
    ]
    assert len(set(derived)) == len(derived)
    assert envelope.equal(derived[0], derived[0])
    assert not envelope.equal(derived[0], derived[1])
