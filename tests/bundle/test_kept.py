"""A bundle of every released format: this version verifies it and makes a ledger from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from activities.ledger.bundle.format import FORMAT
from activities.ledger.bundle.import_ import import_bundle
from activities.ledger.bundle.verify import verify
from activities.ledger.store.ledger import Ledger
from tests.bundle.life import NAME
from tests.bundle.tampering import replaced
from tests.ledger.conftest import Shared
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.import_approval import ImportApproval
from workflows.contracts.trust.service_errors import BundleInvalid

KEPT = Path(__file__).parent.parent / "data" / "bundle"
FORMATS = sorted(KEPT.iterdir(), key=lambda folder: int(folder.name))


@pytest.fixture(params=FORMATS, ids=lambda folder: folder.name)
def kept(request: pytest.FixtureRequest) -> tuple[bytes, dict[str, Any]]:
    """A bundle, and what was noted of it elsewhere."""
    folder: Path = request.param
    return (folder / "bundle.json").read_bytes(), json.loads((folder / "noted.json").read_text(encoding="utf-8"))


def test_there_is_a_bundle_of_every_format_that_was_ever_written() -> None:
    assert [folder.name for folder in FORMATS] == [str(number) for number in range(1, FORMAT + 1)]


def test_it_verifies_as_what_it_was(kept: tuple[bytes, dict[str, Any]]) -> None:
    data, noted = kept
    verified = verify(data, genesis=noted["genesis"])
    assert (verified.terms.bundle, verified.warnings) == (noted["digest"], ())
    [entry] = verified.master_keys
    assert [(one.epoch, one.status) for one in entry.protections] == [(1, "retired"), (2, "active"), (3, "destroyed")]


def test_a_ledger_is_made_from_it_by_the_quorum_of_its_day(
    kept: tuple[bytes, dict[str, Any]], ledger: Ledger, shared: Shared
) -> None:
    data, noted = kept
    signed = [Signed.model_validate(approval) for approval in noted["approvals"]]
    shared.clock.now = max(ImportApproval.parse(one.document.encode()).issued for one in signed)
    done = import_bundle(ledger, verify(data, genesis=noted["genesis"]), approvals=signed)
    assert (done.added, len(done.approved_by)) == (json.loads(data)["head"]["events"], 3)
    assert [(p.epoch, p.status) for p in ledger.protections(NAME)] == [(1, "retired"), (2, "active"), (3, "destroyed")]
    assert ledger.verify_chain().events == done.added + 1


def test_a_bundle_of_a_newer_format_is_refused_with_the_version_that_is_needed() -> None:
    data = (FORMATS[-1] / "bundle.json").read_bytes()
    newer = replaced(replaced(data, ("version",), FORMAT + 1), ("head",), {"of": "another form"})
    with pytest.raises(
        BundleInvalid, match=f"has format {FORMAT + 1}, and this program reads format {FORMAT}"
    ) as caught:
        verify(newer, genesis="sha256:" + "0" * 64)
    assert "the version of masterkey that wrote the bundle, or a later one" in caught.value.next_step
