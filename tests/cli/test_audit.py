"""`masterkey audit`: what an auditor types, and what they are told when something was altered."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.bundle.conftest import Lived
from tests.conftest import Installation
from tests.support import eventually
from workers.cli.app import app
from workers.local.stack import CUSTODIANS
from workflows.contracts.trust.errors import ConfigurationInvalid, MasterKeyError
from workflows.contracts.trust.service_errors import BundleInvalid, LedgerCorrupt, NotKnown

CEREMONY = "eu10.init.000000000001"


@pytest.fixture
def desk(lived: Lived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An auditor's folder: the pinned roster, a ledger, and its bundle."""
    monkeypatch.chdir(tmp_path)
    genesis = lived.world.roster.digest
    source = lived.life.ledger.file
    assert source is not None
    with sqlite3.connect(source) as old, sqlite3.connect(tmp_path / "ledger.db") as new:
        old.backup(new)
    roster = f'[roster]\nfile = "{lived.world.roster_file}"\ngenesis = "{genesis}"\n'
    (tmp_path / "masterkey.toml").write_text(f'{roster}[ledger]\nurl = "sqlite:///ledger.db"\n', encoding="utf-8")
    (tmp_path / "offline.toml").write_text(roster, encoding="utf-8")
    (tmp_path / "bundle.json").write_bytes(lived.data)
    return tmp_path


def good(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["--json", "audit", *words])
    assert done.exit_code == 0, done.exception
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def bad(*words: str) -> MasterKeyError:
    refused = CliRunner().invoke(app, ["--json", "audit", *words]).exception
    assert isinstance(refused, MasterKeyError)
    return refused


def rewrite(ledger: Path, *statements: str) -> None:
    """Change a ledger as whoever controls its database can."""
    with sqlite3.connect(ledger) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            database.execute(statement)


def test_the_log_says_what_happened_and_who_signed_it(desk: Path) -> None:
    everything = good("log")
    assert everything["shown"] == everything["matching"] == len(everything["events"]) > 90
    one = good("log", "--ceremony", CEREMONY)
    told = [(event["words"], event["signed_by"]) for event in one["events"]]
    assert [who for words, [who] in (entry for entry in told if entry[0].startswith("approves"))] == [
        "alice",
        "bob",
        "carol",
    ]
    assert told[-1][0].startswith("ended: done")
    assert good("log", "--bundle", "bundle.json", "--ceremony", CEREMONY)["events"] == one["events"]
    assert good("log", "eu10", "--limit", "3")["events"] == everything["events"][-3:]


def test_the_log_in_words_fits_a_terminal_and_says_what_is_not_shown(desk: Path) -> None:
    done = CliRunner().invoke(app, ["audit", "log", "--limit", "2"])
    assert done.exit_code == 0
    assert "older ones are not shown: raise --limit" in done.stdout
    assert "chain verified, head sha256:" in done.stdout


def test_a_log_that_says_nothing_of_it_is_no_empty_table(desk: Path) -> None:
    assert isinstance(bad("log", "us99"), NotKnown)
    assert isinstance(bad("log", "--ceremony", "eu10.init.ffffffffffff"), NotKnown)


def test_the_ledger_and_its_bundle_verify_and_go_on_from_a_head_that_was_noted(desk: Path) -> None:
    noted = good("log")["events"][9]
    for words in ((), ("--bundle", "bundle.json")):
        found = good("verify", *words, "--head", noted["digest"])
        assert found["noted"] == {noted["digest"]: 10}
        assert [key["name"] for key in found["master_keys"]] == ["eu10"]
    assert CliRunner().invoke(app, ["audit", "verify"]).exit_code == 0


def test_a_log_that_does_not_go_on_from_what_was_noted_is_refused(desk: Path) -> None:
    error = bad("verify", "--head", "sha256:" + "1" * 64)
    assert isinstance(error, BundleInvalid)
    assert "rewritten" in error.message


def test_an_altered_event_is_refused_by_every_command(desk: Path) -> None:
    rewrite(desk / "ledger.db", "UPDATE events SET body = replace(body, 'approve', 'reject') WHERE seq = 4")
    for words in (("log",), ("verify",)):
        error = bad(*words)
        assert isinstance(error, LedgerCorrupt)
        assert "event 4" in error.message


def test_an_altered_row_is_refused(desk: Path) -> None:
    rewrite(desk / "ledger.db", "UPDATE protections SET status = 'retired' WHERE status = 'destroyed'")
    assert isinstance(bad("verify"), LedgerCorrupt)


def test_who_has_neither_ledger_nor_bundle_is_told_what_to_name(desk: Path) -> None:
    for words in (("log",), ("verify",)):
        refused = CliRunner().invoke(app, ["--config", "offline.toml", "audit", *words]).exception
        assert isinstance(refused, ConfigurationInvalid)
    assert (
        CliRunner().invoke(app, ["--config", "offline.toml", "audit", "log", "--bundle", "bundle.json"]).exit_code == 0
    )
    assert CliRunner().invoke(app, ["audit", "replay"]).exit_code == 2


# --- on a running installation -------------------------------------------------------------------------------


def replay(installation: Installation, *words: str, config: str = "orchestrator") -> tuple[int, dict[str, Any], str]:
    child = installation.stack.background("audit", "replay", *words, config=config)
    out, err = child.communicate(timeout=120)
    return child.returncode, json.loads(out), err


@pytest.mark.slow
def test_a_ceremony_is_replayed_compared_with_its_log_and_kept(installation: Installation, tmp_path: Path) -> None:
    name = installation.fresh_name()
    ceremony = installation.init(name, threshold=2, count=3)["ceremony"]
    code, found, _ = replay(installation, ceremony, "--out", str(tmp_path / "kept"))
    assert (code, found["agrees"]) == (0, True)
    assert found["log"]["approved_by"] == {ceremony: list(CUSTODIANS[:3])}
    [file] = found["kept"]
    # Offline, from the file and a bundle, on a machine with nothing but the pinned roster.
    bundle = str(tmp_path / "bundle.json")
    installation.stack.masterkey("bundle", "export", bundle, config="orchestrator")
    env_less = {"PATH": "/usr/bin:/bin"}
    command = installation.stack.command("audit", "replay", "--history", file, "--bundle", bundle, config="client")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env_less, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["agrees"] is True
    # Without a log it says so, and compares with the code alone.
    code, found, _ = replay(installation, "--history", file, config="client")
    assert (code, found["agrees"], found["log"]) == (0, True, None)
    # Somebody rewrites the history.
    altered = Path(file).read_text(encoding="utf-8").replace('"initialInterval": "1s"', '"initialInterval": "2s"')
    Path(file).write_text(altered, encoding="utf-8")
    code, found, _ = replay(installation, "--history", file, "--bundle", bundle, config="client")
    assert (code, found["agrees"]) == (1, False)
    assert "first retry is 2.0, the code says 1.0" in found["runs"][0]["differences"][0]


def test_a_ceremony_that_runs_or_is_not_known_is_refused(installation: Installation) -> None:
    name = installation.fresh_name()
    words = [word for index in (1, 2) for word in ("--keystore", f"bao-{index}")]
    ceremony = installation.stack.masterkey("init", name, "--mode", "seal", *words, "--no-wait")["ceremony"]

    def refused() -> tuple[int, dict[str, Any], str] | None:
        # Temporal lists a workflow a moment after it has started.
        told = replay(installation, ceremony)
        return told if told[1]["error"] != "NotKnown" else None

    code, found, said = eventually(refused)
    assert (code, found["error"]) == (1, "CeremonyEnded")
    assert "replay it once it has ended" in said
    code, found, _ = replay(installation, "eu10.init.ffffffffffff")
    assert (code, found["error"]) == (1, "NotKnown")
