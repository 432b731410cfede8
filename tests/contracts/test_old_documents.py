"""Documents that were signed before they got another field: the same bytes, the same digest, the same signature.

The texts were written by the code before `later()` was there. A signed manifest, approval or roster must stay valid for
as long as what it protects.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.world import World
from workflows.contracts.trust.canonical import Document, canonical_json
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.plan import Plan, Target
from workflows.contracts.trust.roster import KeystoreWorker, Roster

PLAN = (
    '{"action":"init","ceremony":"eu10.init.0123456789ab","created":"2026-01-02T03:04:05Z",'
    '"expires":"2026-01-05T03:04:05Z","governance_quorum":2,"master_key":"eu10","recipient":null,'
    '"roster":"sha256:1111111111111111111111111111111111111111111111111111111111111111","source":null,'
    '"strongroom":"SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","target":{"count":2,"epoch":1,"mode":"sss",'
    '"purpose":"primary","shards":[{"custodians":["alice"],"index":1,"key_id":"k1","keystore":"ks-1"},'
    '{"custodians":["bob"],"index":2,"key_id":"k2","keystore":"ks-2"}],"threshold":2},"type":"masterkey-plan",'
    '"version":1}'
)
ROSTER = (
    '{"change":{"custodians":["alice"],"quorum":1},"custodians":[{"name":"alice","public_key":"ssh-ed25519 '
    'AAAAC3NzaC1lZDI1NTE5AAAAIHrU8Pax4FsaDG+8vsXmjVC5Ic5f+U85/LWyiuV9s+9P"}],"governance":[{"custodians":["alice"],'
    '"master_key":"*","minimum_threshold":2,"quorum":1}],"issued":"2026-01-02T03:04:05Z","keystores":[{"custodians":'
    '["alice"],"name":"ks-1","public_key":"ssh-ed25519 '
    'AAAAC3NzaC1lZDI1NTE5AAAAIFMAPcfVUIa0IqzDlixup7aG8szTLUzwsGee6+ITbFpj"}],"number":1,"previous":null,'
    '"recipients":[],"revoked":[],"strongrooms":[],"type":"masterkey-roster","version":1}'
)
OLD: dict[str, tuple[type[Document], str, str]] = {
    "plan": (Plan, PLAN, "sha256:dda2f794c921e1ba9032743b09216212f9fd589c4d8e49e74b1b04b42c96c6aa"),
    "roster": (Roster, ROSTER, "sha256:dc59570379552a2084a31d0c1d1c2c37e392c294e48355b07ea5242a5993616a"),
}


@pytest.mark.parametrize(("kind", "text", "digest"), OLD.values(), ids=OLD)
def test_an_old_document_has_the_bytes_and_the_digest_that_it_had(kind: type[Document], text: str, digest: str) -> None:
    document = kind.parse(text.encode())
    assert document.canonical().decode() == text
    assert document.digest == digest


def test_the_fields_that_came_later_are_these() -> None:
    # A field that is added to a document must be added here, and so be tried; a plain default would change digests.
    came_later = {
        (kind.__name__, name)
        for kind in (Plan, Target, KeystoreWorker)
        for name, field in kind.model_fields.items()
        if field.exclude_if is not None
    }
    assert came_later == set(LATER)


LATER: dict[tuple[str, str], tuple[type[Document], str, list[Any], Any]] = {
    ("Plan", "stops"): (Plan, PLAN, [], ["sha256:" + "7" * 64]),
    ("Target", "predecessor"): (Plan, PLAN, ["target"], "sha256:" + "7" * 64),
    ("Target", "retention_hours"): (Plan, PLAN, ["target"], 24),
    ("KeystoreWorker", "offline"): (Roster, ROSTER, ["keystores", 0], "age1" + "q" * 58),
}


@pytest.mark.parametrize(("name", "where"), [(name, where) for (_, name), where in LATER.items()])
def test_a_later_field_is_bound_where_it_is_set_and_may_not_be_written_as_nothing(
    name: str, where: tuple[type[Document], str, list[Any], Any]
) -> None:
    kind, text, path, value = where
    before = kind.parse(text.encode())

    def with_field(given: Any) -> bytes:
        content = json.loads(text)
        inner = content
        for step in path:
            inner = inner[step]
        inner[name] = given
        return canonical_json(content)

    document = kind.parse(with_field(value))
    assert document.canonical() == with_field(value)
    assert document.digest != before.digest
    # One document has one form: `null` would be another text for the same plan.
    with pytest.raises(ApprovalInvalid, match="canonical form"):
        kind.parse(with_field(None))


def test_stops_of_nothing_are_not_the_same_as_no_stops() -> None:
    content = {**json.loads(PLAN), "stops": []}
    assert Plan.parse(canonical_json(content)).digest != Plan.parse(PLAN.encode()).digest


def test_an_approval_of_an_old_plan_verifies(tmp_path: Any) -> None:
    world = World.make(tmp_path)
    signed = world.approval("alice", Plan.parse(PLAN.encode()))
    assert json.loads(signed.document)["plan"] == json.loads(PLAN)
