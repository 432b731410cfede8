"""The quorum's word that a bundle may become the ledger: over exactly this file, by custodians, for a while."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.world import NAMES, World, now
from workflows.contracts.trust.canonical import Signed, digest
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.import_approval import (
    BundleHead,
    ImportApproval,
    ImportedMasterKey,
    ImportTerms,
    check_import,
    render_import,
)
from workflows.contracts.trust.roster import ChangeQuorum, Governance, Roster

TERMS = ImportTerms(
    bundle=digest(b"bundle"),
    head=BundleHead(events=123, digest=digest(b"event")),
    created=datetime(2026, 11, 23, 20, 0, tzinfo=UTC),
    master_keys=(
        ImportedMasterKey(name="eu10", kcv="0" * 32, epoch=4),
        ImportedMasterKey(name="us20", kcv="1" * 32, epoch=1),
    ),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = World.make(tmp_path_factory.mktemp("world"))
    governance = (
        Governance(master_key="eu10", custodians=NAMES[:3], quorum=2),
        Governance(master_key="us20", custodians=NAMES[2:], quorum=2),
    )
    fields = made.roster.model_dump() | {"governance": governance, "change": ChangeQuorum(custodians=NAMES, quorum=3)}
    made.roster = Roster.model_validate(fields)
    made.write_roster()
    return made


def approval(world: World, name: str = "alice", **changes: Any) -> Signed:
    identity = world.custodians.get(name, world.stranger)
    fields: dict[str, Any] = {
        "terms": TERMS,
        "roster": world.roster.digest,
        "custodian": identity.fingerprint,
        "issued": now(),
        "expires": now() + timedelta(days=7),
    } | changes
    return identity.sign(ImportApproval(**fields))


def check(world: World, approvals: Sequence[Signed], **quorums: int) -> tuple[str, ...]:
    return check_import(world.chain, TERMS, approvals, quorums, now())


def test_the_quorum_of_every_master_key_is_needed(world: World) -> None:
    names = ("alice", "bob", "dave", "erin")
    assert check(world, [approval(world, name) for name in names]) == names
    # One custodian may be in the quorum of several.
    assert check(world, [approval(world, name) for name in ("carol", "alice", "erin")]) == ("alice", "carol", "erin")
    for missing in names:
        with pytest.raises(ApprovalInvalid, match=r"1 custodians of the governance quorum of (eu10|us20)"):
            check(world, [approval(world, name) for name in names if name != missing])


def test_a_custodian_counts_once(world: World) -> None:
    with pytest.raises(ApprovalInvalid, match="eu10"):
        check(world, [approval(world), approval(world, expires=now() + timedelta(days=1)), approval(world, "dave")])


def test_what_an_active_manifest_demands_is_never_undercut(world: World) -> None:
    approvals = [approval(world, name) for name in ("alice", "bob", "dave", "erin")]
    check(world, approvals, eu10=2, us20=1)
    with pytest.raises(ApprovalInvalid, match="3 are needed"):
        check(world, approvals, eu10=3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"terms": TERMS.model_copy(update={"bundle": digest(b"other")})}, "another bundle"),
        ({"terms": TERMS.model_copy(update={"created": TERMS.created + timedelta(seconds=1)})}, "another bundle"),
        ({"terms": TERMS.model_copy(update={"head": BundleHead(events=1, digest=digest(b""))})}, "another bundle"),
        ({"terms": TERMS.model_copy(update={"master_keys": TERMS.master_keys[:1]})}, "another bundle"),
        ({"roster": digest(b"other")}, "another roster"),
        ({"issued": timedelta(days=-8), "expires": timedelta(days=-1)}, "expired"),
        ({"issued": timedelta(hours=1)}, "future"),
        ({"expires": timedelta(days=31)}, "longer than"),
        ({"custodian": "SHA256:" + "A" * 43}, "not signed by a custodian"),
    ],
    ids=str,
)
def test_an_approval_of_something_else_is_refused(world: World, changes: dict[str, Any], says: str) -> None:
    others = [approval(world, name) for name in ("bob", "carol", "dave")]
    check(world, [approval(world), *others])
    # Times are from now: the names of tests must be the same in every process that collects them.
    changes = {key: now() + value if isinstance(value, timedelta) else value for key, value in changes.items()}
    with pytest.raises(ApprovalInvalid, match=says):
        check(world, [approval(world, **changes), *others])


def test_only_a_custodian_can_approve(world: World) -> None:
    with pytest.raises(ApprovalInvalid, match="not signed by a custodian"):
        check(world, [approval(world, "mallory")])
    stolen = approval(world, "mallory", custodian=world.custodians["alice"].fingerprint)
    with pytest.raises(ApprovalInvalid, match="not signed by a custodian"):
        check(world, [stolen])


def test_the_signature_of_another_kind_of_document_is_no_approval(world: World, tmp_path: Path) -> None:
    document = approval(world).document
    other = world.custodians["alice"].sign_bytes(document.encode(), "masterkey-approval")
    with pytest.raises(ApprovalInvalid):
        check(world, [Signed(document=document, signature=other)])


def test_custodians_are_shown_what_they_sign(world: World) -> None:
    later = TERMS.created + timedelta(days=3, hours=5, minutes=59)
    words = render_import(approval(world, issued=later).document.encode(), world.chain, later)
    for told in (
        "I, alice, WANT this bundle",
        TERMS.bundle,
        TERMS.head.digest,
        "123 events",
        "2026-11-23 20:00:00 UTC, 3 days and 5 hours ago",
        f"eu10, KCV {'0' * 32}, highest epoch 4",
        f"us20, KCV {'1' * 32}, highest epoch 1",
        world.custodians["alice"].fingerprint,
        world.roster.digest,
    ):
        assert told in words
    assert "UNKNOWN" in render_import(approval(world, "mallory").document.encode(), world.chain, later)


def test_nothing_is_shown_that_was_made_under_another_roster_or_is_no_approval(world: World) -> None:
    with pytest.raises(ApprovalInvalid, match="another roster"):
        render_import(approval(world, roster=digest(b"other")).document.encode(), world.chain, now())
    with pytest.raises(ApprovalInvalid):
        render_import(b"{}", world.chain, now())
