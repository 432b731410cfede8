"""What an error tells people to do next fits what happened, and what travels is what every version decides by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.world import KEYSTORES, World, now
from workflows.calls.failures import as_failure, from_failure
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import (
    AnswerInvalid,
    ApprovalInvalid,
    AuthorityInvalid,
    DocumentInvalid,
    MasterKeyError,
)
from workflows.contracts.trust.keystore import KeyDescription
from workflows.contracts.trust.plan import Approval
from workflows.contracts.trust.service_errors import BY_NAME, narrowest

SIGN_AGAIN = "sign again"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("world"))


def described() -> KeyDescription:
    return KeyDescription(keystore=KEYSTORES[0], kind="memory", key_id="k", key_version="1", modes=("sss",), time=now())


def an_impostors_key(world: World) -> None:
    world.chain.current.open(KeyDescription, world.stranger.sign(described()), of=KEYSTORES[0])


def an_answer_of_another_worker(world: World) -> None:
    signed = world.keystores[KEYSTORES[1]].sign(described())
    world.chain.current.open(KeyDescription, signed, of=KEYSTORES[0])


def an_altered_answer(world: World) -> None:
    signed = world.keystores[KEYSTORES[0]].sign(described())
    altered = Signed(document=signed.document.replace('"k"', '"l"'), signature=signed.signature)
    world.chain.current.open(KeyDescription, altered, of=KEYSTORES[0])


def garbage(world: World) -> None:
    Approval.parse(b"{}")


SITUATIONS: dict[str, tuple[Callable[[World], None], type[MasterKeyError], str, str]] = {
    "somebody else signs in a worker's name": (an_impostors_key, AnswerInvalid, "roster show", KEYSTORES[0]),
    "another worker answers": (an_answer_of_another_worker, AnswerInvalid, "roster show", KEYSTORES[0]),
    "an answer was altered on its way": (an_altered_answer, DocumentInvalid, "get it again", KEYSTORES[0]),
    "what was given is no document": (garbage, DocumentInvalid, "get it again", ""),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_next_step_fits_the_situation(world: World, situation: str) -> None:
    act, kind, advice, subject = SITUATIONS[situation]
    with pytest.raises(MasterKeyError) as refused:
        act(world)
    error = refused.value
    assert (type(error), error.subject) == (kind, subject)
    assert advice in error.next_step
    assert SIGN_AGAIN not in error.next_step.replace("nobody need sign again", "")


@pytest.mark.parametrize("kind", [DocumentInvalid, AnswerInvalid, AuthorityInvalid])
def test_a_newer_class_travels_under_the_name_that_older_versions_decide_by(kind: type[ApprovalInvalid]) -> None:
    failure = as_failure(kind("what", next_step="then", subject="ks-1"))
    assert (failure.type, failure.details[:2]) == ("ApprovalInvalid", ("then", "ks-1"))
    back = from_failure(failure)
    assert (type(back), back.message, back.next_step, back.subject) == (kind, "what", "then", "ks-1")


def test_a_failure_is_no_narrower_than_the_name_under_which_it_travelled() -> None:
    assert narrowest("KeystoreUnavailable", "AnswerInvalid") is BY_NAME["KeystoreUnavailable"]
    assert narrowest("ApprovalInvalid", "Unheard") is ApprovalInvalid


def test_what_travels_under_another_name_is_one_of_its_kind() -> None:
    for kind in BY_NAME.values():
        assert issubclass(kind, BY_NAME[kind.travels_as or kind.__name__])


def test_only_verifying_code_opens_a_signed_document_without_asking_who_may_sign_it() -> None:
    allowed = {
        "workflows/contracts/trust/roster.py",
        "workflows/contracts/trust/authority.py",
        "workflows/contracts/trust/signatures.py",
        "activities/ledger/log/signed.py",
        "activities/ledger/log/describe.py",
        "activities/oneshot/rehearsal.py",
        "workers/client/offline_keystore.py",
    }
    root = Path(__file__).parents[2]
    found = {
        str(path.relative_to(root))
        for room in ("workflows", "activities", "workers")
        for path in (root / room).rglob("*.py")
        if "open_signed(" in path.read_text(encoding="utf-8")
    }
    assert found <= allowed
