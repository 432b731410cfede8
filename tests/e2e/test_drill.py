"""Drills: every shard is proven without opening one, and what does not open is named."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import Installation
from tests.support import eventually


def drill(installation: Installation, name: str) -> tuple[int, dict[str, Any]]:
    child = installation.stack.background("drill", name)
    out, err = child.communicate(timeout=120)
    assert out, err
    return child.returncode, json.loads(out)


def test_a_drill_proves_every_shard_and_shows_in_status(installation: Installation) -> None:
    name = installation.fresh_name()
    installation.init(name)
    never = installation.stack.masterkey("status", name)
    assert never["drills"] == []
    code, result = drill(installation, name)
    assert (code, result["healthy"], result["spare"]) == (0, True, 2)
    assert [shard["opens"] for shard in result["protections"][0]["shards"]] == [True] * 5
    assert installation.stack.masterkey("status", name)["drills"][0]["ceremony"] == result["ceremony"]
    events = installation.ledger.events(name, result["ceremony"])
    proven = [json.loads(event.body) for event in events if event.type == "data-key-proven"]
    assert sorted(event["keystore"] for event in proven) == [f"bao-{index}" for index in range(1, 6)]
    assert all("BEGIN SSH SIGNATURE" in event["signature"] for event in proven)


@pytest.mark.slow
def test_a_drill_notices_an_unlogged_change_in_a_keystore(installation: Installation) -> None:
    name = installation.fresh_name()
    installation.init(name)
    # Somebody rotates the key and forbids its old version: nothing fails until the key is needed, but a drill.
    installation.bao.ask("POST", "transit/keys/wrap-5/rotate", {})
    installation.bao.ask("POST", "transit/keys/wrap-5/config", {"min_decryption_version": 2})
    try:
        code, result = drill(installation, name)
    finally:
        installation.bao.ask("POST", "transit/keys/wrap-5/config", {"min_decryption_version": 1})
    assert (code, result["healthy"], result["spare"]) == (1, False, 1)
    gauges = requests.get(f"http://127.0.0.1:{installation.stack.metrics_port}/metrics", timeout=5).text
    assert f'masterkey_shards_at_risk{{master_key="{name}"' in gauges
    last = result["protections"][0]["shards"][4]
    assert (last["keystore"], last["opens"]) == ("bao-5", False)
    assert last["error"] in ("KeyNotFound", "KeyDisabled", "KeystoreAccessDenied")
    assert drill(installation, name)[1]["healthy"] is True


@pytest.mark.slow
def test_a_drill_notices_an_altered_ciphertext_and_a_lost_majority(installation: Installation) -> None:
    name = installation.fresh_name()
    made = installation.init(name, threshold=2, count=2)
    ledger = installation.folder / "masterkey.db"
    select = "SELECT protection FROM protections WHERE digest = ?"
    with sqlite3.connect(ledger) as database:
        [[protection]] = database.execute(select, (made["manifest"],)).fetchall()
        place = f"FROM shards WHERE shard_index = 1 AND protection = '{protection}'"
        [[before]] = database.execute(f"SELECT ciphertext {place}").fetchall()
    rewrite_ciphertext(ledger, protection, f"AAAA{before[4:]}")
    try:
        code, result = drill(installation, name)
    finally:
        # Other tests export this ledger.
        rewrite_ciphertext(ledger, protection, before)
    assert (code, result["spare"]) == (1, -1)
    assert result["protections"][0]["shards"][0]["error"] == "CiphertextInvalid"


def rewrite_ciphertext(ledger: Path, protection: str, ciphertext: str) -> None:
    """Change the first shard of a protection, as whoever controls the database can."""
    with sqlite3.connect(ledger) as database:
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for trigger, _ in triggers:
            database.execute(f"DROP TRIGGER {trigger}")
        values = (ciphertext, protection)
        changed = database.execute("UPDATE shards SET ciphertext = ? WHERE shard_index = 1 AND protection = ?", values)
        assert changed.rowcount == 1
        for _, sql in triggers:
            database.execute(sql)


def test_a_drill_of_an_unknown_masterkey_is_refused(installation: Installation) -> None:
    child = installation.stack.background("drill", "nothing")
    out, _ = child.communicate(timeout=120)
    assert child.returncode == 1
    assert json.loads(out)["error"] == "NotKnown"


@pytest.mark.slow
def test_drills_run_on_a_schedule(installation: Installation) -> None:
    name = installation.fresh_name()
    installation.init(name, "seal", count=1)
    installation.stack.masterkey("drill", name, "--every", "24")
    try:
        found = eventually(lambda: installation.stack.masterkey("status", name)["drills"])
        assert found[0]["healthy"] is True
    finally:
        installation.stack.masterkey("drill", name, "--unschedule")
    assert isinstance(installation.stack.masterkey("drill", name, "--unschedule"), dict)
