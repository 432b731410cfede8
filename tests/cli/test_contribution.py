"""A custodian's side of a ceremony: nothing is given unseen, unasked or unverified, and everything that is asked is."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from activities.crypto.hpke import PrivateKey
from activities.keystores import datakey
from activities.keystores.context import KeystoreTerms
from activities.keystores.kinds.age_keys import AgeIdentity
from activities.strongroom import session
from activities.strongroom.datakeys import Session
from tests.keystores.test_offline import OfflineCeremony, OfflineKey
from tests.world import NAMES, UNSEAL, World, now
from workers.client import contribute as contribution
from workers.client.contribute import Contributor
from workers.client.offline_keystore import OfflineKeystore
from workflows.contracts.messages.keystore import CheckDataKey, UnwrapDataKey
from workflows.contracts.messages.protection import DekAnswer
from workflows.contracts.messages.requests import Contribution, Wanted
from workflows.contracts.messages.status import CeremonyStatus
from workflows.contracts.messages.strongroom import Release
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import (
    ApprovalInvalid,
    CiphertextInvalid,
    ConfigurationInvalid,
    MasterKeyError,
    RosterInvalid,
    SessionLost,
)
from workflows.contracts.trust.keystore import CheckResponse
from workflows.contracts.trust.plan import Plan, TargetShard
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.service_errors import CeremonyEnded
from workflows.contracts.trust.signatures import open_signed

PRESENT = Contribution(keystore="ks-5", present=True)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contribution, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(contribution, "GRACE_SECONDS", 0.1)


class DeskKeys:
    """The custodian's keys, used by the product's own code in this process."""

    name = "ks-5"

    def __init__(self, ceremony: OfflineCeremony) -> None:
        self._ceremony = ceremony
        self.proven = 0

    async def prove_keys(self) -> None:
        self._ceremony.key.describe()
        self.proven += 1

    async def check(self, request: CheckDataKey) -> Signed:
        return Signed.model_validate(datakey.check(self._ceremony.desk(), request, now()))

    async def unwrap(self, request: UnwrapDataKey) -> DekAnswer:
        return datakey.unwrap(self._ceremony.desk(), request, now())


@dataclass
class Scripted:
    """A ceremony that does what a test says: `wants` is asked anew at every look.

    Attributes:
        wants: phase, plan and wishes, given what has arrived so far.
        refuse: an error for a contribution, or none.
        given: what arrived.
    """

    wants: Callable[[list[Contribution]], tuple[str, Plan | None, Wanted]]
    refuse: Callable[[Contribution], MasterKeyError | None] = lambda given: None
    given: list[Contribution] = field(default_factory=list)
    looks: int = 0

    async def look(self) -> tuple[CeremonyStatus, Wanted]:
        self.looks += 1
        phase, plan, wanted = self.wants(self.given)
        text = plan.canonical().decode() if plan else None
        status = CeremonyStatus(
            ceremony=UNSEAL, action="unseal", master_key="eu10", phase=phase, plan=text, detail="so it is"
        )
        return status, wanted

    async def contribute(self, given: Contribution) -> None:
        if error := self.refuse(given):
            raise error
        self.given.append(given)

    @property
    def deks(self) -> list[DekAnswer]:
        return [one.dek for one in self.given if one.dek is not None]


@dataclass
class Custodian:
    """A contributor under test, and what it said and asked."""

    ceremony: OfflineCeremony
    script: Scripted
    agrees: Callable[[Plan | None], bool] = lambda plan: True
    check_only: bool = False
    shown: list[Plan | None] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keys = DeskKeys(self.ceremony)
        self.contributor = Contributor(
            UNSEAL, self.script, self.keys, self._agree, self.told.append, check_only=self.check_only
        )

    def _agree(self, plan: Plan | None) -> None:
        self.shown.append(plan)
        if not self.agrees(plan):
            raise ApprovalInvalid("not contributed")


@dataclass
class Open:
    """An unseal with an open session: the plan, the session, and what it asks the custodian for."""

    plan: Plan
    session: Session
    authority: Authority
    request: UnwrapDataKey
    key: PrivateKey


class Unseal(OfflineCeremony):
    """An offline ceremony whose unseal is at hand."""

    def __init__(self, world: World, key: OfflineKey) -> None:
        super().__init__(world, key)
        self.stored = self.protect_offline()

    def begin(self, approvers: tuple[str, ...] = NAMES[2:]) -> Open:
        key = PrivateKey()
        self.asked = self.world.request(self.stored, key.public_key)
        plan = self.world.unseal_plan(self.stored, self.asked)
        authority = self.world.authority(plan, approvers, self.world.recipient.sign(self.asked))
        return self.again(Open(plan, None, authority, None, key))  # type: ignore[arg-type]

    def again(self, before: Open) -> Open:
        """Another session for the same plan."""
        opened = self.open(before.plan, "release")
        request = self.unwrap_request(self.stored, before.authority, self.announce(opened))
        return Open(before.plan, opened, before.authority, request, before.key)

    def release(self, opened: Open, answer: DekAnswer) -> bytes:
        deks = [self.unwrap(self.stored, i, opened.authority, opened.request.session) for i in (3, 4)]
        work = Release(session="ab" * 16, authority=opened.authority, protection=self.stored, deks=(*deks, answer))
        return self.receive(session.release(opened.session, work, now()), self.asked, opened.key, self.stored)


@pytest.fixture
def unseal(tmp_path: Path) -> Unseal:
    return Unseal(World.make(tmp_path), OfflineKey(tmp_path))


def releasing(opened: Open) -> Callable[[list[Contribution]], tuple[str, Plan | None, Wanted]]:
    """Waits for the custodian, then asks for the data key, then is done."""

    def wants(given: list[Contribution]) -> tuple[str, Plan | None, Wanted]:
        if any(one.dek for one in given):
            return "done", opened.plan, Wanted()
        asked = (opened.request,) if any(one.present for one in given) else ()
        return "waiting", opened.plan, Wanted(keystores=("ks-5",), unwraps=asked)

    return wants


async def test_a_custodian_says_that_they_are_there_and_their_data_key_opens_the_masterkey(unseal: Unseal) -> None:
    opened = unseal.begin()
    custodian = Custodian(unseal, Scripted(releasing(opened)))
    await custodian.contributor.run()
    assert custodian.script.given[0] == PRESENT
    assert [bool(one.dek) for one in custodian.script.given] == [False, True]
    assert custodian.contributor.contributed == ["data-key of shard 5"]
    assert unseal.release(opened, custodian.script.deks[0]) == unseal.unseal(unseal.stored)[0]


async def test_the_plan_is_shown_once_and_the_keys_are_proven_before_anything_is_sent(unseal: Unseal) -> None:
    opened = unseal.begin()
    custodian = Custodian(unseal, Scripted(releasing(opened)))
    seen: list[tuple[int, int]] = []
    custodian.script.refuse = lambda given: seen.append((len(custodian.shown), custodian.keys.proven))
    await custodian.contributor.run()
    assert seen == [(1, 1), (1, 1)]
    assert custodian.shown == [opened.plan]


async def test_who_does_not_agree_sends_nothing(unseal: Unseal) -> None:
    custodian = Custodian(unseal, Scripted(releasing(unseal.begin())), agrees=lambda plan: False)
    with pytest.raises(ApprovalInvalid, match="not contributed"):
        await custodian.contributor.run()
    assert (custodian.script.given, custodian.keys.proven) == ([], 0)


async def test_a_data_key_for_another_plan_than_the_one_shown_is_asked_about_anew(unseal: Unseal) -> None:
    # The orchestrator shows one plan, which was approved too, and asks for the data key under another.
    shown, meant = unseal.begin(), unseal.begin()
    assert shown.plan.digest != meant.plan.digest

    def wants(given: list[Contribution]) -> tuple[str, Plan | None, Wanted]:
        return "releasing", shown.plan, Wanted(keystores=("ks-5",), unwraps=(meant.request,) if given else ())

    custodian = Custodian(unseal, Scripted(wants), agrees=lambda plan: plan == shown.plan)
    with pytest.raises(ApprovalInvalid, match="not contributed"):
        await custodian.contributor.run()
    assert custodian.shown == [shown.plan, meant.plan]
    assert custodian.script.given == [PRESENT]


async def test_a_plan_of_another_ceremony_is_refused_unseen(unseal: Unseal) -> None:
    plan = unseal.begin().plan.model_copy(update={"ceremony": "eu10.unseal.ffffffffffff"})
    custodian = Custodian(unseal, Scripted(lambda given: ("waiting", plan, Wanted(keystores=("ks-5",)))))
    with pytest.raises(ApprovalInvalid, match="of another ceremony"):
        await custodian.contributor.run()
    assert (custodian.shown, custodian.script.given) == ([], [])


async def test_what_the_keystore_refuses_is_not_sent(unseal: Unseal) -> None:
    opened = unseal.begin(NAMES[:3])
    custodian = Custodian(unseal, Scripted(releasing(opened)))
    with pytest.raises(ApprovalInvalid, match="none of the custodians of ks-5 approved"):
        await custodian.contributor.run()
    assert custodian.script.given == [PRESENT]


async def test_a_proof_is_given_without_a_plan_and_without_presence(unseal: Unseal) -> None:
    request = unseal.check_request(unseal.stored)

    def wants(given: list[Contribution]) -> tuple[str, Plan | None, Wanted]:
        return "drilling", None, Wanted() if given else Wanted(keystores=("ks-5",), checks=(request,))

    custodian = Custodian(unseal, Scripted(wants))
    await custodian.contributor.run()
    (given,) = custodian.script.given
    assert given.check is not None
    proof, signer = open_signed(CheckResponse, given.check)
    assert (proof.nonce, signer) == (request.nonce, unseal.world.keystores["ks-5"].fingerprint)
    assert (custodian.shown, custodian.contributor.contributed) == ([None], ["check of shard 5"])
    assert custodian.told[-1] == "contributed; nothing more is asked of you"


async def test_when_a_session_is_lost_the_next_one_is_answered_too(unseal: Unseal) -> None:
    first = unseal.begin()
    second = unseal.again(first)

    def wants(given: list[Contribution]) -> tuple[str, Plan | None, Wanted]:
        deks = sum(one.dek is not None for one in given)
        asked = [(first.request,), (second.request,), ()][deks]
        return ("done" if deks == 2 else "releasing"), first.plan, Wanted(keystores=("ks-5",), unwraps=asked)

    custodian = Custodian(unseal, Scripted(wants))
    await custodian.contributor.run()
    assert len(custodian.script.deks) == 2
    assert unseal.release(second, custodian.script.deks[1])


async def test_the_same_request_is_answered_once(unseal: Unseal) -> None:
    opened = unseal.begin()
    script = Scripted(lambda given: ("", None, Wanted()))

    def wants(given: list[Contribution]) -> tuple[str, Plan | None, Wanted]:
        # It goes on asking, as a ceremony does whose state a query sees late.
        phase = "done" if script.looks > 20 else "releasing"
        return phase, opened.plan, Wanted(keystores=("ks-5",), unwraps=(opened.request,))

    script.wants = wants
    await Custodian(unseal, script).contributor.run()
    assert len(script.deks) == 1


async def test_an_answer_that_comes_too_late_is_no_failure(unseal: Unseal) -> None:
    first = unseal.begin()
    second = unseal.again(first)
    asked = [first.request]

    def refuse(given: Contribution) -> MasterKeyError | None:
        if given.dek is not None and asked[0] is first.request:
            asked[0] = second.request
            return ApprovalInvalid("its session is gone")
        return None

    def wants(given: list[Contribution]) -> tuple[str, Plan | None, Wanted]:
        done = any(one.dek for one in given)
        return ("done" if done else "releasing"), first.plan, Wanted(keystores=("ks-5",), unwraps=(asked[0],))

    custodian = Custodian(unseal, Scripted(wants, refuse))
    await custodian.contributor.run()
    assert any("its session is gone" in line for line in custodian.told)
    assert unseal.release(second, custodian.script.deks[0])


async def test_an_answer_that_is_refused_while_it_is_asked_for_is_a_failure(unseal: Unseal) -> None:
    opened = unseal.begin()
    script = Scripted(releasing(opened), lambda given: ApprovalInvalid("no such key") if given.dek else None)
    with pytest.raises(ApprovalInvalid, match="no such key"):
        await Custodian(unseal, script).contributor.run()
    assert script.deks == []


async def test_what_may_pass_is_tried_three_times(unseal: Unseal) -> None:
    opened, tries = unseal.begin(), list[int]()

    def refuse(given: Contribution) -> MasterKeyError | None:
        if given.dek is None:
            return None
        tries.append(1)
        return SessionLost("gone")

    with pytest.raises(SessionLost):
        await Custodian(unseal, Scripted(releasing(opened), refuse)).contributor.run()
    assert len(tries) == 3


async def test_with_check_only_neither_presence_nor_a_data_key_is_given(unseal: Unseal) -> None:
    opened, request = unseal.begin(), unseal.check_request(unseal.stored)

    def wants(given: list[Contribution]) -> tuple[str, Plan | None, Wanted]:
        checks = () if given else (request,)
        return "releasing", opened.plan, Wanted(keystores=("ks-5",), checks=checks, unwraps=(opened.request,))

    custodian = Custodian(unseal, Scripted(wants), check_only=True)
    await custodian.contributor.run()
    assert custodian.contributor.contributed == ["check of shard 5"]
    assert [(one.present, one.dek) for one in custodian.script.given] == [(False, None)]


async def test_what_other_keystores_are_asked_for_is_left_alone(unseal: Unseal) -> None:
    opened, script = unseal.begin(), Scripted(lambda given: ("", None, Wanted()))
    others = Wanted(
        keystores=("ks-4",),
        unwraps=(opened.request.model_copy(update={"keystore": "ks-4"}),),
        checks=(unseal.check_request(unseal.stored).model_copy(update={"keystore": "ks-4"}),),
    )
    script.wants = lambda given: ("done" if script.looks > 10 else "waiting", opened.plan, others)
    custodian = Custodian(unseal, script)
    await custodian.contributor.run()
    assert (script.given, custodian.shown) == ([], [])


@pytest.mark.parametrize("phase", ["refused", "failed", "expired"])
async def test_a_ceremony_that_ends_otherwise_is_a_failure_with_its_reason(unseal: Unseal, phase: str) -> None:
    custodian = Custodian(unseal, Scripted(lambda given: (phase, None, Wanted())))
    with pytest.raises(CeremonyEnded, match=rf"is over \({phase}\): so it is"):
        await custodian.contributor.run()


async def test_presence_is_repeated_more_and_more_rarely(unseal: Unseal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contribution, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(contribution, "LONGEST_PAUSE", 0.4)
    opened, started, times = unseal.begin(), time.monotonic(), list[float]()

    def wants(given: list[Contribution]) -> tuple[str, Plan | None, Wanted]:
        over = time.monotonic() - started > 1.8
        return ("done" if over else "waiting"), opened.plan, Wanted(keystores=("ks-5",))

    script = Scripted(wants, lambda given: times.append(time.monotonic() - started))
    custodian = Custodian(unseal, script)
    custodian.contributor._pause = 0.1
    await custodian.contributor.run()
    assert set(map(repr, script.given)) == {repr(PRESENT)}
    # At 0, 0.1, 0.3, 0.7, 1.1, 1.5: each costs the ceremony history.
    assert 3 <= len(times) <= 6
    assert times[1] - times[0] < times[-1] - times[-2]


async def test_presence_that_came_too_late_is_no_failure(unseal: Unseal) -> None:
    opened, late = unseal.begin(), list[int]()

    def wants(given: list[Contribution]) -> tuple[str, Plan | None, Wanted]:
        return ("done", None, Wanted()) if late else ("waiting", opened.plan, Wanted(keystores=("ks-5",)))

    def refuse(given: Contribution) -> MasterKeyError | None:
        late.append(1)
        return ApprovalInvalid("this ceremony wants nothing of ks-5")

    await Custodian(unseal, Scripted(wants, refuse)).contributor.run()


async def test_after_the_old_data_key_the_proof_of_the_new_shard_is_waited_for(unseal: Unseal) -> None:
    # A reshard: between the two steps nothing is asked for, longer than the grace.
    opened, script = unseal.begin(), Scripted(lambda given: ("", None, Wanted()))
    place = TargetShard(index=1, keystore="ks-5", key_id=unseal.key_id, custodians=("erin",))
    target = unseal.world.target().model_copy(update={"shards": (place,)})
    plan = opened.plan.model_copy(update={"target": target})
    request, gave = unseal.check_request(unseal.stored), list[float]()

    def wants(given: list[Contribution]) -> tuple[str, Plan | None, Wanted]:
        if any(one.check for one in given):
            return "committing", plan, Wanted()
        if not any(one.dek for one in given):
            return "reconstructing", plan, Wanted(keystores=("ks-5",), unwraps=(opened.request,))
        gave.append(time.monotonic())
        asked = gave[-1] - gave[0] > 0.5
        return "proving", plan, Wanted(keystores=("ks-5",), checks=(request,)) if asked else Wanted()

    script.wants = wants
    custodian = Custodian(unseal, script)
    await custodian.contributor.run()
    assert custodian.contributor.contributed == ["data-key of shard 5", "check of shard 5"]


# --- the keys, in one-shot processes -----------------------------------------------------------------------


def terms(unseal: Unseal, **changes: str) -> KeystoreTerms:
    world, key = unseal.world, unseal.key
    settings = {"type": "offline", "recipient": key.age.recipient, "identity_file": str(key.file)}
    return KeystoreTerms(
        name="ks-5",
        settings={name: changes.get(name, value) for name, value in settings.items()},
        identity=changes.get("identity", str(world.folder / "keystores" / "ks-5")),
        state=str(world.folder / "state" / "custodian"),
        roster_file=str(world.roster_file),
        roster_genesis=world.roster.digest,
        roster_minimum=1,
        modes=("sss",),
    )


@pytest.fixture
def custody(unseal: Unseal) -> Callable[..., OfflineKeystore]:
    return lambda **changes: OfflineKeystore(terms(unseal, **changes), unseal.world.chain)


async def test_a_one_shot_process_proves_and_unwraps(unseal: Unseal, custody: Callable[..., OfflineKeystore]) -> None:
    opened, keys = unseal.begin(), custody()
    try:
        await keys.prove_keys()
        proof = open_signed(CheckResponse, await keys.check(unseal.check_request(unseal.stored)))[0]
        assert (proof.keystore, proof.matches) == ("ks-5", True)
        answer = await keys.unwrap(opened.request)
        assert unseal.release(opened, answer) == unseal.unseal(unseal.stored)[0]
    finally:
        await keys.close()


async def test_a_one_shot_process_refuses_by_itself(unseal: Unseal, custody: Callable[..., OfflineKeystore]) -> None:
    keys = custody()
    try:
        with pytest.raises(ApprovalInvalid, match="none of the custodians of ks-5 approved"):
            await keys.unwrap(unseal.begin(NAMES[:3]).request)
        stale = unseal.check_request(unseal.stored).model_copy(update={"wrapped_dek": "AAAA"})
        with pytest.raises(CiphertextInvalid, match="altered or swapped"):
            await keys.check(stale)
        unseal.world.write_roster(unseal.world.next_version(NAMES[:1]))
        with pytest.raises(RosterInvalid):
            await keys.check(unseal.check_request(unseal.stored))
    finally:
        await keys.close()


async def test_a_custodian_with_other_keys_than_the_rosters_is_told_before_anything_is_sent(
    unseal: Unseal, custody: Callable[..., OfflineKeystore], tmp_path: Path
) -> None:
    other = OfflineKey(tmp_path, "other")
    for changes, complaint in (
        ({"identity": str(unseal.world.folder / "stranger")}, "names another identity key for ks-5"),
        ({"identity_file": str(other.file)}, f"is the key of {other.age.recipient}"),
        ({"identity_file": str(tmp_path / "nowhere")}, "cannot read the age identity"),
    ):
        keys = custody(**changes)
        try:
            with pytest.raises(ConfigurationInvalid, match=complaint):
                await keys.prove_keys()
        finally:
            await keys.close()


def test_a_configuration_that_is_not_the_rosters_is_refused_at_once(unseal: Unseal) -> None:
    chain = unseal.world.chain
    for found, complaint in (
        (terms(unseal, recipient=AgeIdentity.generate().recipient), "recipient is not the one that the roster names"),
        (terms(unseal, type="transit"), "its worker answers for it"),
        (terms(unseal).model_copy(update={"name": "ks-4"}), "names no offline keystore ks-4"),
        (terms(unseal).model_copy(update={"name": "ks-9"}), "names no offline keystore ks-9"),
    ):
        with pytest.raises(ConfigurationInvalid, match=complaint):
            OfflineKeystore(found, chain)


def test_the_terminal_is_given_back_with_its_echo() -> None:
    # As when a one-shot process is ended while somebody types a passphrase.
    script = (
        "import fcntl, termios\n"
        "from workers.client.offline_keystore import terminal_kept\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "try:\n"
        "    with terminal_kept():\n"
        "        silent = termios.tcgetattr(0)\n"
        "        silent[3] &= ~termios.ECHO\n"
        "        termios.tcsetattr(0, termios.TCSANOW, silent)\n"
        "        raise KeyboardInterrupt\n"
        "except KeyboardInterrupt:\n"
        "    print('echo' if termios.tcgetattr(0)[3] & termios.ECHO else 'silence')\n"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", script], stdin=theirs, capture_output=True, text=True, start_new_session=True, check=True
    )
    os.close(theirs)
    os.close(ours)
    assert done.stdout == "echo\n"
