"""`masterkey bundle`: from one ledger to another, with files between, and no orchestrator running."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from activities.ledger.store.ledger import Ledger
from tests.bundle.conftest import begin_life
from tests.bundle.life import NAME, Life
from tests.cli.terminal import on_terminal
from tests.commands import masterkey
from workers.cli.app import app
from workers.local.process import free_port
from workflows.contracts.trust.canonical import Signed, digest
from workflows.contracts.trust.errors import ApprovalInvalid, ConfigurationInvalid, MasterKeyError
from workflows.contracts.trust.import_approval import ImportApproval
from workflows.contracts.trust.service_errors import BundleInvalid, NotKnown
from workflows.contracts.trust.signatures import open_signed


@dataclass
class Host:
    """A folder with a configuration, and the command line in it; nobody answers for Temporal."""

    folder: Path
    life: Life

    def configure(self, *, roster: Path | None = None, database: str = "ledger.db", bundle: str = "") -> None:
        genesis = self.life.world.roster.digest
        file = roster or self.life.world.roster_file
        (self.folder / "masterkey.toml").write_text(
            f'[roster]\nfile = "{file}"\ngenesis = "{genesis}"\n[ledger]\nurl = "sqlite:///{database}"\n{bundle}',
            encoding="utf-8",
        )

    def good(self, *words: str) -> dict[str, Any]:
        """What a command answers."""
        done = masterkey("bundle", *words, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def bad(self, *words: str) -> MasterKeyError:
        """How a command is refused."""
        refused = CliRunner().invoke(app, ["--json", "bundle", *words]).exception
        assert isinstance(refused, MasterKeyError)
        return refused

    def export(self) -> None:
        """Write `out.json` without the command line."""
        (self.folder / "out.json").write_bytes(self.life.bundle())

    def key(self, name: str) -> str:
        return str(self.life.world.folder / "custodians" / name)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEMPORAL_ADDRESS", f"127.0.0.1:{free_port()}")
    life = begin_life(tmp_path)
    life.init()
    made = Host(tmp_path, life)
    made.configure()
    return made


def empty_ledger(host: Host) -> Ledger:
    made = Ledger(f"sqlite:///{host.folder / 'other.db'}")
    made.upgrade()
    return made


def test_a_bundle_goes_from_one_ledger_to_an_empty_one_with_the_quorum_behind_it(host: Host) -> None:
    wrote = host.good("export", "out.json")
    data = (host.folder / "out.json").read_bytes()
    assert (wrote["places"], wrote["digest"]) == (["out.json"], digest(data))
    told = host.good("verify", "out.json")
    assert (told["bundle"], told["events"], told["warnings"]) == (wrote["digest"], wrote["events"], [])
    [entry] = told["master_keys"]
    assert (entry["name"], entry["epoch"], entry["protections"][0]["status"]) == (NAME, 1, "active")

    other = empty_ledger(host)
    restored = host.folder / "restored.json"
    host.configure(roster=restored, database="other.db")
    refused = host.bad("import", "out.json")
    assert (type(refused), "3 are needed" in refused.message) == (ApprovalInvalid, True)
    approvals = []
    for name in ("alice", "bob", "carol"):
        signed = host.good("approve", "out.json", "--key", host.key(name), "--yes")
        assert f"I, {name}, WANT this bundle" in signed["words"]
        approvals += ["--approval", signed["approval"]]
    done = host.good("import", "out.json", *approvals)
    assert (done["added"], done["approved_by"]) == (wrote["events"], ["alice", "bob", "carol"])
    assert done["keystores_asked"] is False
    assert other.protections(NAME) == host.life.ledger.protections(NAME)
    assert json.loads(restored.read_text(encoding="utf-8"))["versions"]
    assert host.good("import", "out.json")["added"] == 0


def test_an_approval_is_signed_by_ssh_keygen_over_the_terms_of_the_bundle(host: Host) -> None:
    host.export()
    out = host.folder / "mine"
    host.good("approve", "out.json", "--key", host.key("bob"), "--out", str(out), "--days", "90", "--yes")
    approval, signer = open_signed(ImportApproval, Signed.model_validate_json(out.read_bytes()))
    assert signer == host.life.world.custodians["bob"].fingerprint
    assert approval.terms.bundle == digest((host.folder / "out.json").read_bytes())
    assert (approval.expires - approval.issued).days == 30


def test_nobody_signs_unasked(host: Host) -> None:
    host.export()
    refused = host.bad("approve", "out.json", "--key", host.key("bob"))
    assert "--yes" in refused.next_step
    words = ["bundle", "approve", "out.json", "--key", host.key("bob"), "--out", "mine"]
    code, shown = on_terminal(words, [(r"\[y/N\]:", "n")], folder=host.folder)
    assert (code, "not signed" in shown) == (1, True)
    assert "WANT this bundle" in shown
    assert not (host.folder / "mine").exists()
    code, _ = on_terminal(words, [(r"\[y/N\]:", "y")], folder=host.folder)
    assert code == 0
    assert (host.folder / "mine").exists()


def test_who_is_no_custodian_cannot_approve(host: Host) -> None:
    host.export()
    stranger = str(host.life.world.folder / "stranger")
    assert type(host.bad("approve", "out.json", "--key", stranger, "--yes")) is ApprovalInvalid


def test_an_export_goes_to_the_configured_places(host: Host) -> None:
    refused = host.bad("export")
    assert (type(refused), "[bundle]" in refused.next_step) == (ConfigurationInvalid, True)
    host.configure(bundle='[bundle]\ndirectory = "bundles"\nkeep = 2\n')
    wrote = host.good("export")
    [file] = (host.folder / "bundles").iterdir()
    assert wrote["places"] == [str(file)]
    assert host.good("verify", str(file))["bundle"] == wrote["digest"]


@pytest.mark.parametrize(
    "section",
    ['s3 = "http://bucket"', 's3 = "s3://"', "keep = 0", 'directory = "x"\nfolder = "y"'],
)
def test_a_place_that_cannot_be_is_a_wrong_configuration(host: Host, section: str) -> None:
    host.configure(bundle=f"[bundle]\n{section}\n")
    assert type(host.bad("export")) is ConfigurationInvalid


def test_an_altered_bundle_is_refused_and_nothing_else_happens(host: Host) -> None:
    host.export()
    file = host.folder / "out.json"
    file.write_bytes(file.read_bytes().replace(b'"threshold":2', b'"threshold":3', 1).replace(b"alice", b"mallo"))
    before = host.life.ledger.verify_chain()
    for words in (("verify", "out.json"), ("import", "out.json"), ("approve", "out.json", "--key", host.key("bob"))):
        assert type(host.bad(*words)) is BundleInvalid
    assert host.life.ledger.verify_chain() == before


@pytest.mark.parametrize("words", [("verify",), ("import",)])
def test_a_file_that_is_not_there_or_is_something_else_is_said_to_be_so(host: Host, words: tuple[str, ...]) -> None:
    assert type(host.bad(*words, "nowhere.json")) is NotKnown
    assert type(host.bad(*words, "masterkey.toml")) is BundleInvalid


def test_a_file_that_is_no_approval_is_said_to_be_none(host: Host) -> None:
    host.export()
    empty_ledger(host)
    host.configure(database="other.db")
    assert type(host.bad("import", "out.json", "--approval", "masterkey.toml")) is ApprovalInvalid
    assert type(host.bad("import", "out.json", "--approval", "nowhere")) is NotKnown


def test_people_are_told_in_words(host: Host) -> None:
    host.export()
    done = masterkey("bundle", "verify", "out.json")
    assert done.returncode == 0
    assert "out.json verifies; the digest of its bundle is sha256:" in done.stdout
    assert "epoch 1 active primary: sss 2 of 3" in done.stdout
