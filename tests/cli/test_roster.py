"""`masterkey roster`: made once, changed only by the custodians' signatures, verified from the pinned digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from activities.identity import generate_identity
from workers.cli import roster as commands
from workers.output import OPTIONS
from workflows.contracts.trust.errors import ConfigurationInvalid, RosterInvalid

PEOPLE = ("alice", "bob", "carol")


def describe(folder: Path, *, recipients: str = "", quorum: int = 2) -> Path:
    people = "".join(f'[[custodians]]\nname = "{n}"\npublic_key_file = "{n}.pub"\n' for n in PEOPLE)
    path = folder / "roster.toml"
    path.write_text(
        f'{people}[[strongrooms]]\nname = "vault"\npublic_key_file = "vault.pub"\n'
        f'[[governance]]\nmaster_key = "*"\ncustodians = ["alice", "bob", "carol"]\nquorum = {quorum}\n'
        f'[change]\ncustodians = ["alice", "bob", "carol"]\nquorum = 2\n{recipients}',
        encoding="utf-8",
    )
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    for name in (*PEOPLE, "vault", "app", "stranger"):
        generate_identity(tmp_path / name)
    monkeypatch.setattr(OPTIONS, "json", True)
    monkeypatch.setattr(OPTIONS, "config", tmp_path / "masterkey.toml")
    commands.init(describe(tmp_path), tmp_path / "roster.json")
    genesis = json.loads(capsys.readouterr().out)["digest"]
    (tmp_path / "masterkey.toml").write_text(f'[roster]\nfile = "roster.json"\ngenesis = "{genesis}"\n')
    return tmp_path


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


RECIPIENT = '[[recipients]]\nname = "app"\npublic_key_file = "app.pub"\nmaster_keys = ["eu10"]\n'


def test_a_change_counts_once_enough_custodians_have_signed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.propose(describe(folder, recipients=RECIPIENT))
    assert told(capsys)["number"] == 2
    commands.sign(folder / "alice", yes=True)
    assert told(capsys)["in_force"] is False
    commands.show()
    assert told(capsys)["roster"]["number"] == 1
    commands.sign(folder / "bob", yes=True)
    assert told(capsys)["in_force"] is True
    commands.show()
    assert told(capsys)["roster"]["recipients"][0]["name"] == "app"
    commands.verify()
    assert [version["number"] for version in told(capsys)["versions"]] == [1, 2]


def test_signing_twice_or_as_a_stranger_does_not_count(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.propose(describe(folder, recipients=RECIPIENT))
    commands.sign(folder / "alice", yes=True)
    for name in ("alice", "stranger"):
        with pytest.raises(RosterInvalid, match="does not count"):
            commands.sign(folder / name, yes=True)


def test_another_genesis_or_a_rolled_back_file_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = folder / "masterkey.toml"
    good = config.read_text()
    config.write_text(good.split("sha256:")[0] + "sha256:" + "0" * 64 + '"\n')
    with pytest.raises(RosterInvalid, match="is pinned"):
        commands.verify()
    config.write_text(good + "minimum_version = 2\n")
    with pytest.raises(RosterInvalid, match="version 2 was seen before"):
        commands.verify()


def test_a_roster_is_never_overwritten(folder: Path) -> None:
    with pytest.raises(ConfigurationInvalid, match="exists already"):
        commands.init(describe(folder), folder / "roster.json")


def test_nothing_to_sign_is_said(folder: Path) -> None:
    with pytest.raises(RosterInvalid, match="no new roster version is proposed"):
        commands.sign(folder / "alice", yes=True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("quorum = 2\n[change]", "quorum = 4\n[change]"), "asks for 4 of 3"),
        (('"carol"]\nquorum', '"mallory"]\nquorum'), "not custodians"),
        (('name = "bob"', 'name = "alice"'), "stands twice"),
        (('"bob.pub"', '"alice.pub"'), "same key stands twice"),
        (('"bob.pub"', '"nobody.pub"'), "cannot read"),
        (('public_key_file = "bob.pub"', 'public_key = "ssh-ed25519 AAAA"'), "not an OpenSSH public key"),
        (('public_key_file = "bob.pub"', 'public_key = "ecdsa-sha2-nistp256 AAAA"'), "are not accepted"),
        (('name = "bob"', 'name = "bob"\ncolour = "blue"'), "custodians.1.colour"),
        (("[[custodians]]", "[[custodians"), "is not TOML"),
    ],
)
def test_a_wrong_description_says_what_is_wrong(folder: Path, change: tuple[str, str], complaint: str) -> None:
    path = describe(folder)
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(ConfigurationInvalid, match=complaint):
        commands.propose(path)
