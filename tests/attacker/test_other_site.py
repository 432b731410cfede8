"""A second installation that may be broken: twin keys, impostors in place of real roles, and the roster."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from temporalio import activity, workflow
from temporalio.client import Client

from activities.crypto.hpke import PrivateKey, encrypt_to
from activities.identity import Identity, generate_identity
from tests.attacker.flows import EVERYBODY, QUORUM, Ceremonies
from tests.attacker.orchestrator import Hostile, hostile, impostor
from tests.attacker.people import People, manifest_of
from tests.attacker.test_release import scene_of
from tests.conftest import Installation
from tests.driving.house import House
from tests.driving.site import SharedTemporal, Site
from tests.world import now
from workers import builds
from workers.local.stack import KeystoreSetup
from workflows.contracts import names
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.messages.results import UnsealResult
from workflows.contracts.messages.strongroom import Delivered
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.canonical import digest, encode64, seconds
from workflows.contracts.trust.chain import RosterFile, RosterVersion
from workflows.contracts.trust.errors import AnswerInvalid, ApprovalInvalid, PlanInvalid, RosterInvalid
from workflows.contracts.trust.fields import SUITE
from workflows.contracts.trust.keystore import KeyDescription
from workflows.contracts.trust.plan import Plan, RecipientRequest, Target, TargetShard
from workflows.contracts.trust.roster import Custodian, Roster
from workflows.contracts.trust.service_errors import QuorumUnreachable
from workflows.contracts.trust.session import DekResponse, Delivery, SessionAnnouncement, dek_info, delivery_info
from workflows.contracts.trust.validity import SESSION_LIFETIME


@dataclass
class Place:
    """A running site and whoever is in it."""

    site: Site
    people: People
    ceremonies: Ceremonies
    attacker: Hostile
    client: Client
    mallory: Identity
    stored: StoredProtection

    def without(self, role: str) -> None:
        """Stop a role."""
        self.site.kill(role)

    def again(self, role: str) -> None:
        """Start a role again."""
        self.site.start_role(role)


@pytest.fixture(scope="module")
def site(
    installation: Installation, temporal: SharedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """`twin-a` and `twin-b` are two names for one Transit key; `ghost` has a key of its own."""
    keystores = {}
    for name, key in (("ghost", "wrap-2"), ("twin-a", "wrap-1"), ("twin-b", "wrap-1")):
        address, token = installation.bao.service.endpoint, installation.folder / f"{key}.token"
        table = {"type": "transit", "address": address, "key_name": key, "token_file": str(token)}
        keystores[name] = KeystoreSetup(name, table, backend="OpenBao")
    # A worker for each keystore, so that each can be replaced by an impostor.
    found = Site.start(tmp_path_factory.mktemp("site"), temporal, keystores)
    yield found
    found.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def place(site: Site) -> AsyncIterator[Place]:
    """The site, and a MasterKey sealed under ghost and twin-a."""
    client = await site.connect()
    people = People.of(site)
    ceremonies = Ceremonies(House.of(site, client), people)
    stored = await ceremonies.init("mk-0", "seal", 1, ["ghost", "twin-a"])
    async with hostile(client) as attacker:
        mallory = generate_identity(site.folder / "mallory")
        yield Place(site, people, ceremonies, attacker, client, mallory, stored)


# --- one key under two names ------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "threshold"), [("seal", 1), ("sss", 2)])
async def test_two_names_of_one_kms_key_are_not_two_keystores(place: Place, mode: str, threshold: int) -> None:
    name = {"seal": "mk-1", "sss": "mk-2"}[mode]
    ceremony, handle = await place.ceremonies.start_init(name, mode, threshold, ["twin-a", "twin-b"])
    ended = await place.ceremonies.ended(ceremony, handle)
    assert type(ended.error) is PlanInvalid
    assert "KMS key" in ended.error.message
    assert "stands behind more than one shard" in ended.error.message
    assert '"error":"PlanInvalid"' in ended.bodies("ceremony-failed")[0]


# --- impostors --------------------------------------------------------------------------------------------


@pytest.fixture(scope="class")
def ghost_is_gone(site: Site) -> Iterator[None]:
    """The real worker of ghost is stopped for as long as its impostors are tried."""
    site.kill("keystore-ghost")
    yield
    site.start_role("keystore-ghost")


@pytest.mark.usefixtures("ghost_is_gone")
class TestImpostorsOfAKeystore:
    """Another worker on the task queue of `ghost`."""

    async def test_a_dek_from_an_impostor_on_the_keystores_queue_is_refused_by_the_session(self, place: Place) -> None:
        asked: list[str] = []

        @activity.defn(name=names.UNWRAP_DATA_KEY)
        async def unwrap(request: dict[str, Any]) -> dict[str, Any]:
            # Everything is as the real worker would say it, but for the DEK and the signer.
            session = SessionAnnouncement.parse(request["session"]["document"].encode())
            binding = manifest_of(place.stored).shards[request["index"] - 1].binding
            ciphertext = encrypt_to(
                session.hpke_public_key, b"i" * 32, dek_info(session.digest, binding.context_hash, "release")
            )
            plan = Plan.parse(request["authority"]["plan"].encode())
            response = DekResponse(
                purpose="release",
                master_key=binding.master_key,
                protection=binding.protection,
                index=binding.index,
                keystore=binding.keystore,
                key_id=binding.key_id,
                key_version=binding.key_version,
                context=binding.context_hash,
                wrapped_hash=binding.wrapped_hash,
                session=session.digest,
                authority=plan.digest,
                ciphertext_hash=digest(ciphertext),
                time=now(),
            )
            asked.append(binding.keystore)
            return {
                "response": place.mallory.sign(response).model_dump(),
                "ciphertext": encode64(ciphertext),
                "wrapped_dek": request["wrapped_dek"],
            }

        async with impostor(place.client, names.keystore_queue("ghost"), activities=[unwrap]):
            key, result = await place.ceremonies.unseal(place.stored)
        assert asked == ["ghost"]
        # The other keystore served, and the recipient has checked that it is the right MasterKey.
        assert (len(key), result.served_by, result.failed) == (32, ("twin-a",), ("ghost",))
        events = place.ceremonies.ledger.events(ceremony=result.ceremony)
        failed = [event.body for event in events if event.type == "keystore-failed"]
        assert len(failed) == 1
        assert '"error":"ApprovalInvalid","keystore":"ghost"' in failed[0]
        assert "the masterkey-dek document of ghost is not signed by its worker" in failed[0]

    async def test_an_impostor_describes_no_key(self, place: Place) -> None:
        @activity.defn(name=names.DESCRIBE_KEY)
        async def describe(request: dict[str, Any]) -> dict[str, Any]:
            said = KeyDescription(
                keystore="ghost", kind="transit", key_id="mine", key_version="1", modes=("sss", "seal"), time=now()
            )
            return place.mallory.sign(said).model_dump()

        async with impostor(place.client, names.keystore_queue("ghost"), activities=[describe]):
            ceremony, handle = await place.ceremonies.start_init("mk-3", "seal", 1, ["ghost", "twin-a"])
            ended = await place.ceremonies.ended(ceremony, handle)
        assert type(ended.error) is AnswerInvalid
        assert "the masterkey-key document of ghost is not signed by its worker" in ended.bodies("ceremony-failed")[0]


async def test_an_impostor_of_the_strongroom_gets_no_dek(place: Place) -> None:
    key, asked = PrivateKey(), list[str]()

    @activity.defn(name=names.OPEN_SESSION)
    async def open_session(request: dict[str, Any]) -> dict[str, Any]:
        plan = Plan.parse(request["plan"].encode())
        announcement = SessionAnnouncement(
            session="ee" * 16,
            purpose=request["purpose"],
            suite=SUITE,
            hpke_public_key=key.public_key,
            strongroom=plan.strongroom,
            master_key=plan.master_key,
            ceremony=plan.ceremony,
            attempt=request["attempt"],
            plan=plan.digest,
            source=plan.source.manifest if plan.source else None,
            roster=plan.roster,
            issued=now(),
            expires=now() + SESSION_LIFETIME,
        )
        asked.append(request["purpose"])
        signed = place.mallory.sign(announcement).model_dump()
        return {"announcement": signed, "queue": "impostor-private", "session": "ee" * 16}

    @activity.defn(name=names.HOLD_SESSION)
    async def hold_session(request: dict[str, Any]) -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(0.5)

    place.without("strongroom")
    try:
        async with (
            impostor(place.client, names.strongroom_queue("vault"), activities=[open_session]),
            impostor(place.client, "impostor-private", activities=[hold_session]),
        ):
            request = place.people.wish(place.stored, PrivateKey().public_key)
            handle = await place.ceremonies.start_unseal(request)
            released = await place.ceremonies.ended(request.ceremony, handle)
            ceremony, handle = await place.ceremonies.start_init("mk-4", "seal", 1, ["ghost", "twin-a"])
            await place.ceremonies.approve(ceremony, handle, QUORUM)
            made = await place.ceremonies.ended(ceremony, handle)
    finally:
        place.again("strongroom")
    assert asked[0] == "release"
    assert asked[-1] == "protect"
    for ended in (released, made):
        assert type(ended.error) is AnswerInvalid
        assert "not signed by the strongroom of the roster that it names" in ended.error.message
        assert '"error":"ApprovalInvalid"' in ended.bodies("ceremony-failed")[0]
    assert released.types.count("keystore-failed") == 2


# --- a delivery made up by the orchestrator, against the recipient's real command --------------------------

FORGED: dict[str, Any] = {}
"""What the impostor's workflows answer with; they run in this process, unsandboxed."""


@workflow.defn(name="ReportWorkflow", sandboxed=False)
class LyingReport:
    """Shows the real protection, as the recipient expects it."""

    @workflow.run
    async def run(self, request: Any) -> Any:
        """The real manifest."""
        return {"protections": [{"manifest": FORGED["stored"].manifest.model_dump(), "status": "active"}]}


@workflow.defn(name="UnsealWorkflow", sandboxed=False)
class LyingUnseal:
    """Delivers 32 bytes of the attacker's choice, encrypted to the recipient's real key."""

    @workflow.run
    async def run(self, start: Any) -> Any:
        """A delivery that only the strongroom could have signed."""
        request = RecipientRequest.parse(start["request"]["document"].encode())
        stored: StoredProtection = FORGED["stored"]
        kcv = manifest_of(stored).kcv
        info = delivery_info(request.digest, stored.manifest.digest, kcv)
        ciphertext = encrypt_to(request.hpke_public_key, b"o" * 32, info)
        delivery = Delivery(
            master_key=request.master_key,
            ceremony=request.ceremony,
            request=request.digest,
            manifest=stored.manifest.digest,
            kcv=kcv,
            recipient_key=request.hpke_key,
            strongroom=request.strongroom,
            ciphertext_hash=digest(ciphertext),
            time=seconds(workflow.now()),
        )
        FORGED["used"] = True
        delivered = Delivered(delivery=FORGED["signer"].sign(delivery), ciphertext=encode64(ciphertext))
        return UnsealResult(
            ceremony=request.ceremony,
            master_key=request.master_key,
            delivered=delivered,
            approved_by=("alice", "bob", "carol"),
            served_by=("ghost",),
            failed=(),
        ).model_dump(mode="json")


async def test_the_recipients_command_refuses_a_delivery_that_the_orchestrator_made_up(place: Place) -> None:
    FORGED.update(stored=place.stored, signer=place.mallory)
    place.site.pin({"mk-0": manifest_of(place.stored).kcv})
    command = ["unseal", "mk-0", "--exec", "--", sys.executable, "-c", "print('the program ran')"]
    place.without("orchestrator")
    # Whoever controls Temporal decides to whom it gives the work.
    await builds.promote(place.client, "")
    try:
        async with impostor(place.client, names.ORCHESTRATOR_QUEUE, workflows=[LyingReport, LyingUnseal]):
            child = place.site.background(*command)
            out, err = await asyncio.to_thread(child.communicate, timeout=60)
    finally:
        place.again("orchestrator")
    assert FORGED["used"]
    assert child.returncode == 1
    assert "the program ran" not in out + err
    assert json.loads(out.splitlines()[-1])["error"] == "AnswerInvalid"
    assert "not signed by the strongroom" in err


# --- the roster (last: these leave version 2 behind) ------------------------------------------------------


def write(place: Place, *versions: RosterVersion) -> None:
    """Write the roster file that every role of the site reads."""
    text = RosterFile(versions=versions).model_dump_json()
    place.people.roster_file.write_text(text, encoding="utf-8")


async def refused_everywhere(place: Place, says: str, name: str) -> None:
    """Keystore worker and strongroom, and so a whole ceremony, refuse to work under this roster."""
    plan = scene_of(place.people, place.stored).plan
    with pytest.raises(RosterInvalid, match=says):
        await place.attacker.describe("twin-a")
    with pytest.raises(RosterInvalid, match=says):
        await place.attacker.check(place.stored, 2)
    with pytest.raises(RosterInvalid, match=says):
        await place.attacker.open(plan, "release")
    ceremony, handle = await place.ceremonies.start_init(name, "seal", 1, ["ghost", "twin-a"])
    ended = await place.ceremonies.ended(ceremony, handle)
    assert type(ended.error) is RosterInvalid
    assert '"error":"RosterInvalid"' in ended.bodies("ceremony-failed")[0]


async def test_a_roster_that_its_predecessors_quorum_did_not_sign_is_refused(place: Place) -> None:
    people, first = place.people, RosterVersion(document=place.people.roster.canonical().decode())
    mine = Custodian(name="mallory", public_key=place.mallory.public_key)
    wanted = {"custodians": (*people.roster.custodians, mine)}
    two = people.next_version(["alice", "carol"], **wanted)
    document = two.document.encode()
    own = place.mallory.sign_bytes(document, Roster.TYPE)
    repeated = two.model_copy(update={"signatures": (*two.signatures, two.signatures[0], own)})
    try:
        write(place, first, repeated)
        await refused_everywhere(place, "version 2 is signed by 2 custodians; version 1 demands 3", "mk-5")
        good = people.next_version(["alice", "carol", "dave"])
        for versions, says in (
            ((first, RosterVersion(document=two.document, signatures=good.signatures)), "signed by 0 custodians"),
            ((first, first), "does not continue the chain"),
            ((good,), "does not continue the chain"),
            ((RosterVersion(document=people.roster.model_copy(update=wanted).canonical().decode()),), "is pinned"),
        ):
            write(place, *versions)
            with pytest.raises(RosterInvalid, match=says):
                await place.attacker.describe("twin-a")
        people.roster_file.write_text("no roster", encoding="utf-8")
        with pytest.raises(RosterInvalid, match="not a roster file"):
            await place.attacker.describe("twin-a")
    finally:
        write(place, first)


async def test_a_roster_that_was_rolled_back_is_refused_by_every_keystore_that_saw_the_newer_one(place: Place) -> None:
    people, first = place.people, RosterVersion(document=place.people.roster.canonical().decode())
    old = scene_of(people, place.stored)
    target = people.init_plan(place_target(place), master_key="mk-6", ceremony=new_ceremony_id("mk-6", "init"))
    second = people.next_version(["alice", "bob", "carol"], revoked=(people.custodians["dave"].fingerprint,))
    write(place, first, second)
    people.reread()
    assert people.roster.number == 2
    # Plans and approvals made under version 1 are worth nothing under version 2, whose dave is gone.
    opened = await place.attacker.open(old.plan, "release")
    with pytest.raises(ApprovalInvalid, match="another roster"):
        await place.attacker.unwrap(place.stored, 2, old.authority(), opened.announcement)
    with pytest.raises(ApprovalInvalid, match="another roster"):
        await place.attacker.generate("twin-a", 1, people.authority(target, EVERYBODY), opened.announcement)
    assert len((await place.ceremonies.unseal(place.stored))[0]) == 32
    try:
        write(place, first)
        with pytest.raises(RosterInvalid, match="version 2 was seen before"):
            await place.attacker.unwrap(place.stored, 2, old.authority(), opened.announcement)
        with pytest.raises(RosterInvalid, match="version 2 was seen before"):
            await place.attacker.describe("twin-a")
        # Orchestrator and strongroom keep no state; the keystores that have seen version 2 are enough.
        request = people.wish(place.stored, PrivateKey().public_key)
        ended = await place.ceremonies.ended(request.ceremony, await place.ceremonies.start_unseal(request))
        assert type(ended.error) is QuorumUnreachable
        assert ended.types.count("keystore-failed") == 2
        assert all('"error":"RosterInvalid"' in body for body in ended.bodies("keystore-failed"))
    finally:
        write(place, first, second)


def place_target(place: Place) -> Target:
    """A seal target over the keystores of the site's MasterKey."""
    shards = tuple(
        TargetShard(index=s.binding.index, keystore=s.binding.keystore, key_id=s.binding.key_id, custodians=())
        for s in manifest_of(place.stored).shards
    )
    return Target(purpose="primary", mode="seal", epoch=1, threshold=1, count=2, shards=shards)
