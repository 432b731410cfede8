"""What is stored and what is signed is bound: change any field, and it does not open or does not verify."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from activities.crypto import envelope
from activities.crypto.context import context_bytes
from activities.crypto.hpke import PrivateKey, encrypt_to
from activities.keystores import memory as orders
from tests.strongroom.test_reshard import Resharding
from tests.strongroom.test_session import Ceremony, manifest_of
from tests.world import KEYSTORES, NAMES, MemoryKeystore, World, now
from workflows.contracts.messages.keystore import StopServing
from workflows.contracts.trust.canonical import Document, Signed, canonical_json, digest
from workflows.contracts.trust.errors import ApprovalInvalid, CiphertextInvalid
from workflows.contracts.trust.import_approval import ImportApproval
from workflows.contracts.trust.keystore import CheckResponse, KeyDescription, StateStatement
from workflows.contracts.trust.plan import Approval, Plan, RecipientRequest
from workflows.contracts.trust.protection import KeystoreContext, Manifest, ShardBinding
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.session import DekResponse, Delivery, SessionAnnouncement, dek_info, delivery_info
from workflows.contracts.trust.signatures import open_signed
from workflows.contracts.trust.stop import Ended, Stop

OTHER: dict[str, Any] = {
    "purpose": "emergency",
    "master_key": "eu11",
    "protection": "another",
    "epoch": 2,
    "ceremony": "eu10.init.ffffffffffff",
    "mode": "seal",
    "threshold": 2,
    "count": 6,
    "index": 2,
    "x": 2,
    "keystore": "ks-2",
    "key_id": "memory:ks-2",
    "key_version": "2",
    "wrapped_hash": "sha256:" + "0" * 64,
}


@pytest.fixture(scope="module")
def ceremony(tmp_path_factory: pytest.TempPathFactory) -> Resharding:
    return Resharding(World.make(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def binding(ceremony: Ceremony) -> ShardBinding:
    return manifest_of(ceremony.protect()).shards[0].binding


def test_the_list_of_fields_is_whole() -> None:
    # A field that is added to the binding must be added here, and so be tried.
    assert set(OTHER) | {"version"} == set(ShardBinding.model_fields)


@pytest.mark.parametrize("field", OTHER)
def test_a_shard_does_not_open_with_another(binding: ShardBinding, field: str) -> None:
    nonce, ciphertext = envelope.encrypt_shard(b"s" * 33, b"d" * 32, binding)
    moved = binding.model_copy(update={field: OTHER[field]})
    with pytest.raises(CiphertextInvalid):
        envelope.decrypt_shard(nonce, ciphertext, b"d" * 32, moved)
    # Nor do the values derived from the keys stay the same, which tell what is corrupt.
    assert envelope.dek_check_value(b"d" * 32, moved) != envelope.dek_check_value(b"d" * 32, binding)
    salt = b"0" * 16
    assert envelope.commitment(b"s", moved, salt) != envelope.commitment(b"s", binding, salt)


@pytest.mark.parametrize("field", sorted(set(KeystoreContext.model_fields) - {"version"}))
def test_a_keystore_does_not_unwrap_with_another(binding: ShardBinding, field: str) -> None:
    keystore = MemoryKeystore("ks-1")
    wrapped = keystore.wrap(b"d" * 32, binding.fields())
    moved = binding.model_copy(update={field: OTHER[field]})
    assert moved.context_hash != binding.context_hash
    with pytest.raises(CiphertextInvalid):
        keystore.unwrap(wrapped.wrapped, moved.fields(), wrapped.key)


def test_every_value_of_a_context_is_text_and_none_is_left_out(binding: ShardBinding) -> None:
    fields = binding.fields()
    assert len(fields) == len(KeystoreContext.model_fields)
    assert all(isinstance(value, str) and value for value in fields.values())
    # AWS KMS allows 8,192 characters for an encryption context.
    assert len(context_bytes(fields)) < 8192


@pytest.mark.parametrize(("place", "other"), [(0, "sha256:other"), (1, "sha256:other"), (2, "release"), (2, "reshard")])
def test_a_dek_on_its_way_is_bound_to_session_context_and_purpose(place: int, other: str) -> None:
    key = PrivateKey()
    said: list[Any] = ["sha256:session", "sha256:context", "protect"]
    ciphertext = encrypt_to(key.public_key, b"d" * 32, dek_info(*said))
    said[place] = other
    with pytest.raises(CiphertextInvalid):
        key.open(ciphertext, dek_info(*said))


@pytest.mark.parametrize("place", range(3))
def test_a_delivery_is_bound_to_request_manifest_and_check_value(place: int) -> None:
    key = PrivateKey()
    said = ["sha256:request", "sha256:manifest", "kcv"]
    ciphertext = encrypt_to(key.public_key, b"k" * 32, delivery_info(*said))
    said[place] = "other"
    with pytest.raises(CiphertextInvalid):
        key.open(ciphertext, delivery_info(*said))


# --- signed documents ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def documents(ceremony: Resharding) -> dict[str, tuple[type[Document], Signed]]:
    """One signed document of every type, as the roles made them."""
    world = ceremony.world
    stored = ceremony.protect()
    key = PrivateKey()
    request = world.request(stored, key.public_key)
    plan = world.unseal_plan(stored, request)
    signed_request = world.recipient.sign(request)
    authority = world.authority(plan, NAMES[:3], signed_request)
    announced = ceremony.announce(ceremony.open(plan, "release"))
    _, delivered = ceremony.unseal(stored)
    shared = {"keystore": "ks-1", "key_id": "k", "key_version": "1", "time": now()}
    description = KeyDescription(kind="memory", modes=("sss",), **shared)
    checked = CheckResponse(
        manifest=stored.manifest.digest, master_key="eu10", index=1, nonce="0" * 32, matches=True, **shared
    )
    resharded = world.reshard_plan(stored, world.target_over(KEYSTORES[:3], retention_hours=24))
    made = ceremony.reshard(stored, world.target_over(KEYSTORES[:3]))
    stop = world.stop("alice")
    desk = world.desk("ks-4")
    desk.state.note_commit(manifest_of(stored))
    ended = Ended(
        master_key="eu10",
        ceremony=plan.ceremony,
        stop=stop.digest,
        recipient=world.recipient.fingerprint,
        time=now(),
    )
    return {
        "approval": (Approval, world.approval("alice", plan)),
        "approval of a reshard": (Approval, world.approval("alice", resharded)),
        "approval of a lift": (Approval, world.approval("alice", world.order_plan("lift", [stop.digest]))),
        "approval of a retirement": (Approval, world.approval("alice", world.order_plan("retire", stored))),
        "manifest of a reshard": (Manifest, made.manifest),
        "stop": (Stop, stop),
        "state": (StateStatement, orders.stop_serving(desk, StopServing(keystore="ks-4", stop=stop), now())),
        "ended": (Ended, world.recipient.sign(ended)),
        "request": (RecipientRequest, signed_request),
        "session": (SessionAnnouncement, announced),
        "dek": (DekResponse, ceremony.unwrap(stored, 1, authority, announced).response),
        "delivery": (Delivery, delivered.delivery),
        "manifest": (Manifest, stored.manifest),
        "check": (CheckResponse, world.keystores["ks-1"].sign(checked)),
        "key": (KeyDescription, world.keystores["ks-1"].sign(description)),
    }


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value that holds no other."""
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list) and value:
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*path, index))]
    return [path]


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("1" if value[-1:] == "0" else "0") if value else "x"
    return "x" if value is None else None


NAMES_OF_DOCUMENTS = [
    "approval",
    "approval of a reshard",
    "approval of a lift",
    "approval of a retirement",
    "request",
    "session",
    "dek",
    "delivery",
    "manifest",
    "manifest of a reshard",
    "check",
    "key",
    "stop",
    "state",
    "ended",
]


def test_every_kind_of_signed_document_is_tried(documents: dict[str, tuple[type[Document], Signed]]) -> None:
    assert set(documents) == set(NAMES_OF_DOCUMENTS)
    signed = {kind for kind in Document.__subclasses__() if kind.__module__.startswith("workflows.contracts.trust.")}
    # A plan is signed as a part of an approval; the roster and approvals to import have tests of their own.
    assert {kind for kind, _ in documents.values()} == signed - {Plan, Roster, ImportApproval}
    assert len({kind.TYPE for kind in Document.__subclasses__()}) == len(Document.__subclasses__())


@pytest.mark.parametrize("name", NAMES_OF_DOCUMENTS)
def test_no_field_of_a_signed_document_can_be_changed(
    documents: dict[str, tuple[type[Document], Signed]], name: str
) -> None:
    kind, signed = documents[name]
    document, _ = open_signed(kind, signed)
    content = json.loads(signed.document)
    places = leaves(content)
    assert len(places) >= len(kind.model_fields) - 1
    for path in places:
        altered = json.loads(signed.document)
        inner = altered
        for step in path[:-1]:
            inner = inner[step]
        before = inner[path[-1]]
        inner[path[-1]] = changed(before)
        assert inner[path[-1]] != before
        text = canonical_json(altered).decode()
        with pytest.raises(ApprovalInvalid):
            open_signed(kind, signed.model_copy(update={"document": text}))
    assert document.digest == signed.digest


@pytest.mark.parametrize("name", ["approval", "request", "delivery", "manifest", "check", "stop", "state", "ended"])
def test_a_signature_of_one_type_is_none_of_another(
    documents: dict[str, tuple[type[Document], Signed]], name: str
) -> None:
    for kind, _ in documents.values():
        if kind is not documents[name][0]:
            with pytest.raises(ApprovalInvalid):
                open_signed(kind, documents[name][1])


def test_only_canonical_bytes_are_parsed(
    documents: dict[str, tuple[type[Document], Signed]], ceremony: Ceremony
) -> None:
    kind, signed = documents["request"]
    content = json.loads(signed.document)
    for text in (
        json.dumps(content),
        signed.document + "\n",
        signed.document[:-1] + ',"extra":1}',
        canonical_json({**content, "version": 2}).decode(),
        canonical_json({key: value for key, value in content.items() if key != "nonce"}).decode(),
        canonical_json({**content, "expires": content["expires"].replace("Z", "+00:00")}).decode(),
        "{}",
        "[]",
        "nothing",
        "[" * 100_000,
    ):
        data = text.encode()
        forged = Signed(document=text, signature=ceremony.world.recipient.sign_bytes(data, kind.TYPE))
        with pytest.raises(ApprovalInvalid):
            open_signed(kind, forged)


def test_a_number_without_a_canonical_form_is_refused_and_not_raised(ceremony: Ceremony) -> None:
    # A signal handler that raised anything else would hang the workflow for ever.
    plan = ceremony.world.init_plan(ceremony.world.target())
    content = json.loads(ceremony.world.approval("alice", plan).document)
    for number in (2**53, 10**30, -1, 0):
        content["plan"]["target"]["epoch"] = number
        text = json.dumps(content, separators=(",", ":"), sort_keys=True)
        signature = ceremony.world.stranger.sign_bytes(text.encode(), Approval.TYPE)
        with pytest.raises(ApprovalInvalid):
            open_signed(Approval, Signed(document=text, signature=signature))


def test_an_approval_carries_the_digest_of_its_own_plan(ceremony: Ceremony) -> None:
    world = ceremony.world
    plan, other = world.init_plan(world.target()), world.init_plan(world.target(threshold=4))
    with pytest.raises(ValueError, match="not that of the plan"):
        world.approval("alice", plan, plan_digest=other.digest)


def test_times_are_whole_seconds_with_their_zone(ceremony: Ceremony) -> None:
    plan = ceremony.world.init_plan(ceremony.world.target())
    for wrong in (now().replace(tzinfo=None), now() + timedelta(milliseconds=1)):
        with pytest.raises(ValueError, match="whole seconds"):
            ceremony.world.approval("alice", plan, issued=wrong)


def test_digests_are_over_the_bytes_that_are_signed(documents: dict[str, tuple[type[Document], Signed]]) -> None:
    for kind, signed in documents.values():
        assert open_signed(kind, signed)[0].digest == digest(signed.document.encode())
