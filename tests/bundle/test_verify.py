"""A bundle verifies, or one thing in it was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from activities.ledger.bundle import format as bundle_format
from activities.ledger.bundle.verify import verify
from tests.bundle.conftest import Lived
from tests.bundle.life import NAME, QUORUM, Life, world_keystores
from tests.bundle.tampering import altered, events_of, leaves, other, replaced, rewritten, with_body
from tests.world import NAMES, World, now
from workflows.contracts.messages.ledger import Event
from workflows.contracts.trust.canonical import canonical_json, digest
from workflows.contracts.trust.roster import ChangeQuorum, Governance
from workflows.contracts.trust.service_errors import BundleInvalid


def refused(lived: Lived, data: bytes, match: str | None = None) -> BundleInvalid:
    with pytest.raises(BundleInvalid, match=match) as caught:
        lived.verify(data)
    return caught.value


def test_a_whole_life_verifies_and_says_what_is_in_it(lived: Lived) -> None:
    found = lived.verify()
    [entry] = found.master_keys
    told = [(p.epoch, p.purpose, p.status, p.mode, p.threshold, p.count) for p in entry.protections]
    assert told == [
        (1, "primary", "destroyed", "sss", 3, 5),
        (2, "primary", "retired", "sss", 2, 3),
        (3, "emergency", "destroyed", "seal", 1, 2),
        (4, "primary", "active", "sss", 2, 3),
    ]
    assert (entry.name, entry.epoch, entry.stops, found.warnings) == (NAME, 4, 1, ())
    assert found.chain.current.number == 2
    assert found.terms.bundle == digest(lived.data)
    head = lived.life.ledger.verify_chain()
    assert (found.terms.head.events, found.terms.head.digest) == head
    assert found.terms.created == lived.life.ledger.events(after=head.events - 1)[0].at


def test_a_bundle_is_the_one_canonical_form_of_what_it_says(lived: Lived) -> None:
    assert canonical_json(json.loads(lived.data)) == lived.data
    # So what tests alter is refused for what they altered, and not for its form.
    assert altered(lived.data, ("version",), lambda same: same) == lived.data
    for form in (lived.data + b"\n", json.dumps(json.loads(lived.data)).encode(), lived.data.replace(b"{", b"{ ", 1)):
        refused(lived, form, "canonical")
    twice = lived.data[:-1] + b',"version":1}'
    refused(lived, twice, "canonical")


@pytest.mark.parametrize("junk", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"a":' * 50_000])
def test_what_is_no_bundle_is_refused_as_one(lived: Lived, junk: bytes) -> None:
    refused(lived, junk, "masterkey-bundle")


def test_a_bundle_of_another_version_or_type_is_refused(lived: Lived) -> None:
    refused(lived, altered(lived.data, ("version",), lambda _: 0), "version")
    refused(lived, altered(lived.data, ("version",), lambda _: 2), "has format 2")
    refused(lived, altered(lived.data, ("type",), lambda _: "masterkey-manifest"), "type")


def test_a_bundle_over_the_limit_is_refused_before_it_is_read(lived: Lived, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_format, "LIMIT", len(lived.data) - 1)
    refused(lived, lived.data, "bytes are allowed|allowed")
    monkeypatch.setattr(bundle_format, "LIMIT", len(lived.data))
    lived.verify()


def test_a_bundle_of_another_installation_is_refused(lived: Lived) -> None:
    with pytest.raises(BundleInvalid, match="roster: the first roster version"):
        verify(lived.data, genesis=digest(b"another"))


def test_a_bundle_with_a_rolled_back_roster_is_refused(lived: Lived) -> None:
    verify(lived.data, genesis=lived.world.roster.digest, minimum_version=2)
    with pytest.raises(BundleInvalid, match="roster: the roster ends at version 2"):
        verify(lived.data, genesis=lived.world.roster.digest, minimum_version=3)
    without = rewritten(lived.data, lambda whole: whole["roster"].pop())
    with pytest.raises(BundleInvalid):
        verify(without, genesis=lived.world.roster.digest, minimum_version=2)


# --- one value ---


def test_no_value_can_be_taken_away_or_get_a_neighbour(lived: Lived) -> None:
    whole = json.loads(lived.data)
    for path in [(), ("head",), ("roster", 0), ("roster", 1), ("protections", 1), ("events", 0), ("master_keys", 0)]:
        inner: Any = whole
        for step in path:
            inner = inner[step]
        for name in inner:
            less = {key: value for key, value in inner.items() if key != name}
            refused(lived, replaced(lived.data, path, less))
        refused(lived, replaced(lived.data, path, {**inner, "zz": None}))


@pytest.mark.slow
def test_no_value_at_all_can_be_changed(lived: Lived) -> None:
    paths = list(leaves(json.loads(lived.data)))
    assert len(paths) > 900
    for path in paths:
        refused(lived, altered(lived.data, path))


def test_no_signature_and_no_base64_outside_of_the_event_log_can_be_written_otherwise(lived: Lived) -> None:
    written = {"signature", "signatures", "wrapped_dek", "nonce", "ciphertext"}
    paths = [path for path in leaves(json.loads(lived.data)) if path[0] != "events" and written & set(path)]
    assert len(paths) > 15
    for path in paths:
        refused(lived, altered(lived.data, path, lambda text: f"{text}\n"))


@pytest.mark.parametrize("section", ["roster", "master_keys", "protections", "events"])
def test_no_entry_can_be_removed_doubled_or_moved(lived: Lived, section: str) -> None:
    entries = json.loads(lived.data)[section]
    for place in range(0, len(entries), 7 if section == "events" else 1):
        refused(lived, replaced(lived.data, (section,), entries[:place] + entries[place + 1 :]))
        refused(lived, replaced(lived.data, (section,), entries[: place + 1] + entries[place:]))
    if len(entries) > 1:
        refused(lived, replaced(lived.data, (section,), [entries[1], entries[0], *entries[2:]]))


@pytest.mark.parametrize("column", ["wrapped_dek", "nonce", "ciphertext", "keystore", "key_id"])
def test_shards_cannot_be_swapped(lived: Lived, column: str) -> None:
    whole = json.loads(lived.data)
    shards = whole["protections"][-1]["shards"]
    if shards[0][column] == shards[1][column]:
        pytest.skip("there is nothing to swap")
    shards[0][column], shards[1][column] = shards[1][column], shards[0][column]
    refused(lived, canonical_json(whole), "shard 1")


def test_nonce_and_ciphertext_cannot_be_cut_elsewhere(lived: Lived) -> None:
    from workflows.contracts.trust.canonical import decode64, encode64

    whole = json.loads(lived.data)
    shard = whole["protections"][-1]["shards"][0]
    joined = decode64(shard["nonce"]) + decode64(shard["ciphertext"])
    shard["nonce"], shard["ciphertext"] = encode64(joined[:13]), encode64(joined[13:])
    refused(lived, canonical_json(whole), "ciphertext")


def test_a_destroyed_protection_gets_no_shards_and_another_loses_none(lived: Lived) -> None:
    whole = json.loads(lived.data)
    shards = whole["protections"][-1]["shards"]
    refused(lived, altered(lived.data, ("protections", 0, "shards"), lambda _: shards), "it has 3 shards, not 0")
    refused(lived, altered(lived.data, ("protections", 3, "shards"), lambda _: []), "it has 0 shards, not 3")


# --- with the hash chain computed anew ---


def test_computing_everything_anew_is_no_alteration(lived: Lived) -> None:
    assert rewritten(lived.data, lambda whole: None) == lived.data


@pytest.mark.parametrize("type_", ["approval-recorded", "rejection-recorded", "data-key-proven", "stop-ordered"])
@pytest.mark.parametrize("field", ["document", "signature"])
def test_nothing_that_was_signed_can_be_changed_even_with_all_digests_anew(
    lived: Lived, type_: str, field: str
) -> None:
    places = events_of(lived.data, type_)
    assert places
    for place in places:

        def change(body: dict[str, Any]) -> None:
            text = body[field]
            middle = len(text) // 2
            body[field] = text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :]

        refused(lived, with_body(lived.data, place, change), r"^(event|stop) ")


def test_a_signature_of_somebody_else_does_not_count_even_with_all_digests_anew(lived: Lived) -> None:
    for type_ in ("approval-recorded", "data-key-proven", "stop-ordered"):
        place = events_of(lived.data, type_)[0]

        def sign_again(body: dict[str, Any], type_: str = type_) -> None:
            text = body["document"].encode()
            body["signature"] = lived.world.stranger.sign_bytes(text, json.loads(text)["type"])

        error = refused(lived, with_body(lived.data, place, sign_again))
        assert "is not signed by" in error.message


def without(*types: str, after: int = 0) -> Callable[[dict[str, Any]], None]:
    def change(whole: dict[str, Any]) -> None:
        kept = [e for n, e in enumerate(whole["events"]) if e["type"] not in types or n < after]
        assert len(kept) < len(whole["events"])
        whole["events"] = kept

    return change


@pytest.mark.parametrize(
    ("types", "says"),
    [
        (("approval-recorded",), "approval sha256:.* is not in the event log"),
        (("ceremony-opened",), "was not opened"),
        (("protection-staged",), "what was not staged"),
        (("protection-committed",), "event"),
        (("protection-retired",), "was not retired"),
        (("protection-destroyed",), "status"),
        (("stop-ordered",), ""),
        (("stops-lifted",), ""),
    ],
)
def test_a_step_cannot_be_left_out_even_with_all_digests_anew(lived: Lived, types: tuple[str, ...], says: str) -> None:
    data = rewritten(lived.data, without(*types))
    if not says:
        # Nothing that is signed contradicts it: only a head that was noted elsewhere tells, and for a stop the
        # keystores, which remember it. Neither opens anything.
        assert lived.verify(data).master_keys[0].stops == (2 if types == ("stops-lifted",) else 0)
    else:
        refused(lived, data, says)


def test_an_order_that_too_few_approved_is_refused(life: Life) -> None:
    first = life.init()
    life.reshard(first, life.world.target_over(world_keystores(2), "seal", 1, purpose="emergency"))
    life.order("retire", first, approvers=QUORUM[:2])
    with pytest.raises(BundleInvalid, match="no quorum had ordered it"):
        verify(life.bundle(), genesis=life.world.roster.digest)


def test_a_lift_of_another_stop_than_was_approved_is_refused(life: Life) -> None:
    life.init()
    stops = [life.stop(name).digest for name in ("erin", "dave")]
    life.order("lift", stops[:1])
    data = life.bundle()
    verify(data, genesis=life.world.roster.digest)
    [place] = events_of(data, "stops-lifted")
    more = with_body(data, place, lambda body: body.update(stops=sorted(stops)))
    with pytest.raises(BundleInvalid, match="no quorum had ordered it"):
        verify(more, genesis=life.world.roster.digest)


def test_approvals_that_were_never_in_force_together_are_no_quorum(life: Life) -> None:
    life.init()
    stop = life.stop()
    ceremony = life.id_of("lift")
    life.begin(ceremony)
    plan = life.order_plan("lift", [stop.digest], ceremony)
    life.plan(plan)
    issued = [now() - timedelta(hours=hours) for hours in (9, 6, 3)]
    plan = plan.model_copy(update={"created": issued[0]})
    approvals = tuple(
        life.world.approval(name, plan, issued=at, expires=at + timedelta(hours=1))
        for name, at in zip(QUORUM, issued, strict=True)
    )
    authority = life.world.authority(plan, ()).model_copy(update={"approvals": approvals})
    life.record_approvals(ceremony, authority)
    life.ledger.lift_stops(ceremony, (stop.digest,))
    with pytest.raises(BundleInvalid, match="no quorum had ordered it"):
        verify(life.bundle(), genesis=life.world.roster.digest)


@pytest.mark.slow
def test_no_event_of_a_ceremony_is_about_another_masterkey(lived: Lived) -> None:
    # Whoever looks for what happened to one would not find it.
    whole = json.loads(lived.data)
    for number, event in enumerate(whole["events"]):
        if event["ceremony"]:

            def move(found: dict[str, Any], number: int = number) -> None:
                found["events"][number]["master_key"] = "us20"

            refused(lived, rewritten(lived.data, move))


def test_what_is_replaced_is_kept_for_exactly_as_long_as_was_approved(lived: Lived) -> None:
    for place in events_of(lived.data, "protection-committed"):
        body = json.loads(json.loads(lived.data)["events"][place]["body"])
        other = "2026-01-01T00:00:00Z" if body["destroy_after"] is None else None

        def follow(whole: dict[str, Any], body: dict[str, Any] = body, other: str | None = other) -> None:
            for entry in whole["protections"]:
                if digest(entry["manifest"].encode()) == body["retired"] and entry["status"] == "retired":
                    entry["destroy_after"] = other

        def put(body: dict[str, Any], other: str | None = other) -> None:
            body["destroy_after"] = other

        refused(lived, rewritten(with_body(lived.data, place, put), follow))


def test_a_document_that_belongs_elsewhere_proves_nothing(lived: Lived) -> None:
    approval, other = events_of(lived.data, "approval-recorded")[0], events_of(lived.data, "approval-recorded")[-1]
    events = json.loads(lived.data)["events"]
    taken = json.loads(events[other]["body"])
    changed = with_body(lived.data, approval, lambda body: body.update(taken))
    refused(lived, changed, "another ceremony")


def test_a_request_that_does_not_verify_is_a_doubt(lived: Lived) -> None:
    # It is recorded as it came: whoever sends nonsense must not make the bundle worthless.
    unseals = [
        place
        for place in events_of(lived.data, "ceremony-opened")
        if json.loads(json.loads(lived.data)["events"][place]["body"])["request"]
    ]
    assert unseals

    def forge(body: dict[str, Any]) -> None:
        body["request"]["document"] = body["request"]["document"].replace("unseal", "unsea1")

    assert lived.verify().warnings == ()
    [warning] = lived.verify(with_body(lived.data, unseals[0], forge)).warnings
    assert "signature that does not verify" in warning


@pytest.mark.parametrize(
    "document", ['{"type":"masterkey-approval","x":"\ud800"}', "\ud800", "[" * 100_000, "9" * 5000, "{}", ""], ids=len
)
def test_a_document_that_cannot_be_read_is_refused_in_one_line(lived: Lived, document: str) -> None:
    def put(whole: dict[str, Any]) -> None:
        event = whole["events"][events_of(lived.data, "approval-recorded")[0]]
        body = json.loads(event["body"])
        event["body"] = json.dumps({**body, "document": document})

    refused(lived, rewritten(lived.data, put))


def test_a_manifest_of_another_strongroom_is_refused(lived: Lived) -> None:
    document = json.loads(lived.data)["protections"][-1]["manifest"]
    forged = lived.world.stranger.sign_bytes(document.encode(), "masterkey-manifest")
    refused(lived, altered(lived.data, ("protections", 3, "signature"), lambda _: forged), "strongroom")


def test_the_ledgers_own_events_are_the_only_ones_that_count(lived: Lived) -> None:
    def disguise(whole: dict[str, Any]) -> None:
        for event in whole["events"]:
            if event["type"] == "protection-committed":
                event["key"] = event["key"].removeprefix("ledger:")

    refused(lived, rewritten(lived.data, disguise))


def test_an_event_of_the_ledger_that_nobody_knows_is_refused(lived: Lived) -> None:
    def add(whole: dict[str, Any]) -> None:
        whole["events"].append({**whole["events"][-1], "key": "ledger:new", "type": "something-new"})

    refused(lived, rewritten(lived.data, add), "knows no event")


# --- time passes ---


def test_what_a_custodian_approved_stands_after_they_have_left(life: Life) -> None:
    first = life.init()
    life.stop("alice")
    world, left = life.world, NAMES[1:]
    roster = world.roster
    version = world.next_version(
        NAMES[:3],
        custodians=roster.custodians[1:],
        keystores=tuple(
            k.model_copy(update={"custodians": tuple(n for n in k.custodians if n in left)}) for k in roster.keystores
        ),
        governance=(Governance(master_key="*", custodians=left, quorum=2),),
        change=ChangeQuorum(custodians=left, quorum=2),
    )
    world.write_roster(version)
    found = verify(life.bundle(), genesis=roster.digest)
    assert found.chain.current.custodian("alice") is None
    assert list(found.manifests) == [first.manifest.digest]


def revoke_the_strongroom(world: World) -> None:
    version = world.next_version(NAMES[:3], revoked=(world.strongroom.fingerprint,))
    world.write_roster(version)


def test_what_a_strongroom_signed_that_is_revoked_now_does_not_serve(life: Life) -> None:
    life.init()
    revoke_the_strongroom(life.world)
    with pytest.raises(BundleInvalid, match="not signed by a strongroom"):
        verify(life.bundle(), genesis=life.world.roster.digest)


def test_a_delivery_that_does_not_verify_is_a_warning_and_no_fault(life: Life) -> None:
    first = life.init()
    unseal = life.unseal(first)
    assert verify(life.bundle(), genesis=life.world.roster.digest).warnings == ()
    life.drill(first)
    junk = Event(key="again", type="masterkey-delivered", body={"delivery": "{}", "signature": "none"})
    life.ledger.append(unseal, junk.key, junk.type, dict(junk.body), NAME)
    [warning] = verify(life.bundle(), genesis=life.world.roster.digest).warnings
    assert "masterkey-delivered" in warning


def test_other_values_are_others() -> None:
    values: list[Any] = [True, 1, "a", "0", "", None, []]
    assert all(other(value) != value for value in values)
