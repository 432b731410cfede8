"""Text from outside: whatever is sent is one kind of error, one printable line, and no other name or key id."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tests.world import World
from workers.output import plain
from workflows.contracts.trust.canonical import Name
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.fields import CeremonyId, KeyId
from workflows.contracts.trust.keystore import StateStatement
from workflows.contracts.trust.plan import Approval, Plan, RecipientRequest
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.service_errors import CeremonyEnded
from workflows.contracts.trust.stop import Ended, Stop

WARM_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHrU8Pax4FsaDG+8vsXmjVC5Ic5f+U85/LWyiuV9s+9P"
"""A public key whose private half was thrown away."""
KINDS = (Approval, Plan, Manifest, RecipientRequest, Roster, Stop, StateStatement, Ended)
LOOKALIKES = [
    "",
    "EU10",
    "eu10\n",
    "eu10 ",
    "\u0435u10",
    "eu10\u202e",
    "eu\u200b10",
    "-eu10",
    "e" * 64,
    "eu10\x00",
    "../eu10",
]


@pytest.fixture(scope="module")
def approval(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A good approval as JSON, to be spoilt."""
    world = World.make(tmp_path_factory.mktemp("world"))
    content: dict[str, Any] = json.loads(world.approval("alice", world.init_plan(world.target())).document)
    return content


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes_are_refused_as_one_kind_of_error(data: bytes) -> None:
    for kind in KINDS:
        with pytest.raises(ApprovalInvalid) as refused:
            kind.parse(data)
        assert refused.value.diagnostics.isprintable()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(max_size=30)
    | st.datetimes().map(lambda time: time.strftime("%Y-%m-%dT%H:%M:%S") + "+14:00")
    | st.sampled_from(["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(value=VALUES, place=st.integers(0, 10_000))
def test_any_value_in_any_place_of_an_approval_is_refused_or_understood(
    approval: dict[str, Any], value: Any, place: int
) -> None:
    # A signal handler that raises anything else hangs its ceremony for ever.
    spoilt = json.loads(json.dumps(approval))
    objects: list[dict[str, Any]] = [spoilt]
    for found in objects:
        objects += [item for item in found.values() if isinstance(item, dict)]
        objects += [
            item for items in found.values() if isinstance(items, list) for item in items if isinstance(item, dict)
        ]
    chosen = objects[place % len(objects)]
    key = sorted(chosen)[place // len(objects) % len(chosen)]
    chosen[key] = value
    text = json.dumps(spoilt, sort_keys=True, separators=(",", ":"))
    said = complaint(text)
    assert said.isprintable()
    assert len(said) <= 2000


def complaint(text: str) -> str:
    """What is wrong with an approval; empty if nothing is."""
    try:
        Approval.parse(text.encode())
    except ApprovalInvalid as error:
        return error.message
    return ""


@pytest.mark.parametrize("number", [2**53, 2**60, 10**400])
def test_a_number_that_canonical_json_does_not_know_is_refused_and_not_raised(number: int) -> None:
    roster = {
        "change": {"custodians": ["alice"], "quorum": 1},
        "custodians": [{"name": "alice", "public_key": WARM_KEY}],
        "governance": [],
        "issued": "2026-11-23T20:00:00Z",
        "keystores": [],
        "number": number,
        "previous": None,
        "recipients": [],
        "revoked": [],
        "strongrooms": [],
        "type": "masterkey-roster",
        "version": 1,
    }
    assert Roster.parse(text_of({**roster, "number": 1})).number == 1
    with pytest.raises(ApprovalInvalid):
        Roster.parse(text_of(roster))


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00Z"])
def test_a_time_that_has_no_utc_is_refused_and_not_raised(approval: dict[str, Any], time: str) -> None:
    with pytest.raises(ApprovalInvalid):
        Approval.parse(text_of({**approval, "issued": time}))


def text_of(content: dict[str, Any]) -> bytes:
    """JSON as canonical as it can be, also where RFC 8785 has no form for a number."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_name_that_looks_like_another_is_no_name(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(name)
    with pytest.raises(ValidationError):
        TypeAdapter(CeremonyId).validate_python(f"{name}.init.0123456789ab")


@pytest.mark.parametrize("key_id", ["", "a b", "a\nb", "a\x1b[2Jb", "a\u202eb", "\u0430", "a\tb", "a" * 1025])
def test_a_key_id_hides_nothing_from_whoever_signs_it(key_id: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(KeyId).validate_python(key_id)
    for real in (
        "arn:aws:kms:eu-central-1:111122223333:key/mrk-1234",
        "https://masterkey.vault.azure.net/keys/wrap",
        "projects/p/locations/europe-west6/keyRings/r/cryptoKeys/k",
        "https://[::1]:8200/team/transit/keys/masterkey",
    ):
        assert TypeAdapter(KeyId).validate_python(real) == real


def test_an_error_is_one_printable_line_whatever_it_is_about() -> None:
    error = CeremonyEnded("a\x00b\nc\x1b[2Jd\u202ee" + "x" * 5000, next_step="\r\n", subject="k\x07s")
    assert error.message.isprintable()
    assert len(error.message) == 2000
    assert error.diagnostics.isprintable()
    assert error.subject == "k s"
    assert str(error) == error.message


def test_a_terminal_is_told_only_what_can_be_seen() -> None:
    assert plain("one\ntwo \u2713") == "one\ntwo \u2713"
    assert plain("a\x1b[2K\rb\u202ec\x9bd") == "a?[2K?b?c?d"
