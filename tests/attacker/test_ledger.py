"""The ledger in the attacker's hands: rows altered, swapped, gone, or replaced, under the real workflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from activities.crypto.hpke import PrivateKey
from activities.identity import Identity, generate_identity
from tests.attacker.flows import EVERYBODY, QUORUM, Ceremonies, Ended
from tests.attacker.orchestrator import altered_ledger
from tests.attacker.people import People, manifest_of
from tests.attacker.test_release import forged
from tests.conftest import Installation
from workers.client import ceremonies as ceremony_client
from workers.client import upkeep
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.messages.report import ReportRequest
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.canonical import decode64, encode64
from workflows.contracts.trust.errors import ApprovalInvalid, CiphertextInvalid, ManifestInvalid
from workflows.contracts.trust.service_errors import CeremonyEnded, LedgerConflict, LedgerCorrupt, NotKnown


@pytest.fixture(scope="module")
def mallory(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """The attacker's own key."""
    return generate_identity(Path(tmp_path_factory.mktemp("mallory")) / "key")


@pytest.fixture(scope="module")
def database(installation: Installation) -> Path:
    """The orchestrator's database file."""
    return installation.folder / "masterkey.db"


def flipped(text: str) -> str:
    """The same base64 with one bit of the last byte changed."""
    data = decode64(text)
    return encode64(data[:-1] + bytes([data[-1] ^ 1]))


def change_shard(stored: StoredProtection, index: int, field: str, value: str) -> tuple[str, tuple[Any, ...]]:
    """A statement that changes one field of one row."""
    where = (manifest_of(stored).protection, index)
    return f"UPDATE shards SET {field} = ? WHERE protection = ? AND shard_index = ?", (value, *where)  # noqa: S608


def replace_manifest(stored: StoredProtection, other: StoredProtection) -> tuple[str, tuple[Any, ...]]:
    """A statement that puts another manifest in a protection's place."""
    signed = other.manifest
    return (
        "UPDATE protections SET manifest = ?, signature = ?, digest = ? WHERE digest = ?",
        (signed.document, signed.signature, signed.digest, stored.manifest.digest),
    )


async def ended_unseal(ceremonies: Ceremonies, people: People, stored: StoredProtection) -> Ended:
    """An unseal, asked for by the recipient, that fails by itself."""
    request = people.wish(stored, PrivateKey().public_key)
    return await ceremonies.ended(request.ceremony, await ceremonies.start_unseal(request))


@pytest.mark.parametrize("field", ["wrapped_dek", "nonce", "ciphertext"])
async def test_a_protection_of_altered_rows_releases_nothing(
    ceremonies: Ceremonies, people: People, seal: StoredProtection, database: Path, field: str
) -> None:
    rows = [change_shard(seal, row.index, field, flipped(getattr(row, field))) for row in seal.shards]
    with altered_ledger(database, *rows):
        ended = await ended_unseal(ceremonies, people, seal)
    assert type(ended.error) is CiphertextInvalid
    assert ended.types.count("shard-quarantined") == 2
    assert '"error":"CiphertextInvalid"' in ended.bodies("ceremony-failed")[0]


async def test_an_altered_row_is_quarantined_and_others_serve(
    ceremonies: Ceremonies, people: People, sss: StoredProtection, database: Path
) -> None:
    expected, _ = await ceremonies.unseal(sss, QUORUM)
    with altered_ledger(database, change_shard(sss, 1, "ciphertext", flipped(sss.shards[0].ciphertext))):
        received, result = await ceremonies.unseal(sss, EVERYBODY[:4])
    assert received == expected
    assert result.served_by == ("bao-2", "bao-3", "bao-4")
    assert result.failed == ("bao-1",)
    events = ceremonies.ledger.events(ceremony=result.ceremony)
    quarantined = [event.body for event in events if event.type == "shard-quarantined"]
    assert ['"keystore":"bao-1"' in body for body in quarantined] == [True]


async def test_swapped_rows_release_nothing(
    ceremonies: Ceremonies, people: People, seal: StoredProtection, database: Path
) -> None:
    one, two = seal.shards
    swaps = [
        change_shard(seal, place.index, field, getattr(other, field))
        for place, other in ((one, two), (two, one))
        for field in ("wrapped_dek", "nonce", "ciphertext", "key_version")
    ]
    with altered_ledger(database, *swaps):
        ended = await ended_unseal(ceremonies, people, seal)
    assert type(ended.error) is CiphertextInvalid
    assert ended.types.count("shard-quarantined") == 2


async def test_rows_of_another_masterkey_release_nothing(
    ceremonies: Ceremonies, people: People, seal: StoredProtection, sss: StoredProtection, database: Path
) -> None:
    swaps = [
        change_shard(seal, row.index, field, getattr(row, field))
        for row in sss.shards[:2]
        for field in ("wrapped_dek", "nonce", "ciphertext")
    ]
    with altered_ledger(database, *swaps):
        ended = await ended_unseal(ceremonies, people, seal)
    assert type(ended.error) is CiphertextInvalid
    assert ended.types.count("shard-quarantined") == 2


async def test_a_protection_with_a_missing_row_is_corrupt(
    ceremonies: Ceremonies, people: People, seal: StoredProtection, database: Path
) -> None:
    gone = ("DELETE FROM shards WHERE protection = ? AND shard_index = 2", (manifest_of(seal).protection,))
    with altered_ledger(database, gone):
        ended = await ended_unseal(ceremonies, people, seal)
    assert type(ended.error) is LedgerCorrupt
    assert '"error":"LedgerCorrupt"' in ended.bodies("ceremony-failed")[0]


async def test_a_threshold_lowered_in_the_ledger_changes_nothing(
    ceremonies: Ceremonies, people: People, sss: StoredProtection, database: Path
) -> None:
    lowered = ("UPDATE protections SET threshold = 2 WHERE digest = ?", (sss.manifest.digest,))
    with altered_ledger(database, lowered):
        request = people.wish(sss, PrivateKey().public_key)
        handle = await ceremonies.start_unseal(request)
        plan = await ceremonies.approve(request.ceremony, handle, ["alice", "bob"])
        status = await ceremony_client.status(ceremonies.client, request.ceremony)
        assert (status.phase, status.approved_by) == ("quorum", ("alice", "bob"))
        assert plan.source is not None
        assert plan.source.threshold == 3
        await ceremonies.refuse(request.ceremony, plan)
        ended = await ceremonies.ended(request.ceremony, handle)
    assert type(ended.error) is CeremonyEnded
    assert ended.types.count("rejection-recorded") == 3


async def test_a_manifest_with_a_lowered_threshold_is_refused_even_if_custodians_approve_it(
    ceremonies: Ceremonies, people: People, sss: StoredProtection, database: Path, mallory: Identity
) -> None:
    other = forged(sss, mallory, threshold=2, governance_quorum=3)
    with altered_ledger(database, replace_manifest(sss, other)):
        request = people.wish(other, PrivateKey().public_key)
        handle = await ceremonies.start_unseal(request)
        await ceremonies.approve(request.ceremony, handle, EVERYBODY[:4])
        ended = await ceremonies.ended(request.ceremony, handle)
    assert type(ended.error) is ManifestInvalid
    assert ended.types.count("keystore-failed") == 4
    assert all('"error":"ManifestInvalid"' in body for body in ended.bodies("keystore-failed"))


async def test_an_sss_protection_presented_as_seal_is_refused_by_every_keystore(
    ceremonies: Ceremonies, people: People, sss: StoredProtection, database: Path, mallory: Identity
) -> None:
    shards = [{**shard.model_dump(), "custodians": ()} for shard in manifest_of(sss).shards]
    other = forged(sss, mallory, mode="seal", threshold=1, shards=shards)
    with altered_ledger(database, replace_manifest(sss, other)):
        ended = await ended_unseal(ceremonies, people, other)
    assert type(ended.error) is ManifestInvalid
    assert ended.types.count("keystore-failed") == 5


async def test_a_manifest_that_the_strongroom_did_not_sign_is_refused_by_every_keystore(
    ceremonies: Ceremonies, people: People, seal: StoredProtection, database: Path, mallory: Identity
) -> None:
    for other in (forged(seal, mallory), forged(seal, mallory, kcv="00" * 16), forged(seal, people.recipient, epoch=9)):
        # The same text with another signature keeps its digest.
        with altered_ledger(database, replace_manifest(seal, other)):
            ended = await ended_unseal(ceremonies, people, other)
        assert type(ended.error) is ManifestInvalid
        assert ended.types.count("keystore-failed") == 2
        assert '"error":"ManifestInvalid"' in ended.bodies("ceremony-failed")[0]


async def test_a_manifest_that_the_recipient_did_not_ask_for_is_refused_by_the_workflow(
    ceremonies: Ceremonies, people: People, seal: StoredProtection, database: Path, mallory: Identity
) -> None:
    with altered_ledger(database, replace_manifest(seal, forged(seal, mallory, kcv="00" * 16))):
        ended = await ended_unseal(ceremonies, people, seal)
    assert type(ended.error) is NotKnown
    text = forged(seal, mallory, kcv="00" * 16).manifest.document
    altered = ("UPDATE protections SET manifest = ? WHERE digest = ?", (text, seal.manifest.digest))
    with altered_ledger(database, altered):
        ended = await ended_unseal(ceremonies, people, seal)
    assert type(ended.error) is LedgerCorrupt


async def test_a_request_for_one_masterkey_does_not_open_another(
    ceremonies: Ceremonies, people: People, seal: StoredProtection, sss: StoredProtection
) -> None:
    other = manifest_of(sss).master_key
    for ceremony, error in ((new_ceremony_id(other, "unseal"), (ApprovalInvalid, NotKnown)), (None, LedgerConflict)):
        request = people.wish(seal, PrivateKey().public_key, **({"ceremony": ceremony} if ceremony else {}))
        handle = await ceremonies.start_unseal(request, master_key=other)
        ended = await ceremonies.ended(request.ceremony, handle)
        assert isinstance(ended.error, error)


async def test_an_altered_event_is_noticed(ceremonies: Ceremonies, seal: StoredProtection, database: Path) -> None:
    ceremony = manifest_of(seal).ceremony
    altered = (
        "UPDATE events SET body = replace(body, 'alice', 'mallo') WHERE ceremony = ? AND type = 'approval-recorded'",
        (ceremony,),
    )
    with altered_ledger(database, altered), pytest.raises(LedgerCorrupt):
        await upkeep.report(ceremonies.client, ReportRequest(kind="status"))
    found = await upkeep.report(ceremonies.client, ReportRequest(kind="status"))
    assert found.events > 0
