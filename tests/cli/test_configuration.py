"""Configuration: wrong is refused with the file, the key and what was expected; trust comes from the file only."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.config import Configuration
from workflows.contracts.trust.errors import ConfigurationInvalid

GENESIS = "sha256:" + "ab" * 32
ROSTER = f'[roster]\nfile = "roster.json"\ngenesis = "{GENESIS}"\n'


def load(folder: Path, text: str) -> Configuration:
    path = folder / "masterkey.toml"
    path.write_text(text, encoding="utf-8")
    return Configuration.load(path)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    configuration = load(tmp_path, ROSTER + '[ledger]\nurl = "sqlite:///db/masterkey.db"\n')
    assert configuration.roster_source().file == tmp_path / "roster.json"
    assert configuration.ledger_url() == f"sqlite:///{tmp_path}/db/masterkey.db"


def test_values_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTERKEY_LEDGER__URL", "postgresql+psycopg://db/masterkey")
    configuration = load(tmp_path, ROSTER + '[ledger]\nurl = "sqlite:///masterkey.db"\n')
    assert configuration.ledger_url() == "postgresql+psycopg://db/masterkey"


@pytest.mark.parametrize(
    "variable", ["MASTERKEY_ROSTER__GENESIS", "MASTERKEY_ROSTER", "MASTERKEY_RECIPIENT__KCV__EU10"]
)
def test_what_is_pinned_never_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, GENESIS)
    with pytest.raises(ConfigurationInvalid, match=f"{variable} is set, but trust is pinned"):
        load(tmp_path, ROSTER)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("roster = ", "is not TOML"),
        ("", "roster: Field required"),
        ('[roster]\nfile = "r"\ngenesis = "sha256:12"\n', "roster.genesis: String should match"),
        ('[roster]\nfile = "r"\n', "roster.genesis: Field required"),
        (ROSTER + "[ledger]\nuri = 'x'\n", "ledger.url: Field required"),
        (ROSTER + "[ledger]\nurl = 'x'\nuser = 'y'\n", "ledger.user: Extra inputs are not permitted"),
        (ROSTER + "[strongrom]\nidentity = 'x'\n", "strongrom: Extra inputs are not permitted"),
        (ROSTER + "[keystores.a]\ntype = 'transit'\nstate = 's'\n", "keystores.a.identity: Field required"),
        (ROSTER + "[keystores.A]\ntype = 'transit'\nstate = 's'\nidentity = 'i'\n", r"keystores\.A"),
    ],
)
def test_a_wrong_file_says_which_key_and_what_was_expected(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=complaint) as refused:
        load(tmp_path, text)
    assert "masterkey.toml" in refused.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationInvalid, match=r"cannot read the configuration .*nowhere.toml"):
        Configuration.load(tmp_path / "nowhere.toml")


def test_a_role_without_its_section_is_refused(tmp_path: Path) -> None:
    configuration = load(tmp_path, ROSTER)
    for need, section in (
        (configuration.ledger_url, "ledger"),
        (configuration.need_strongroom, "strongroom"),
        (configuration.need_recipient, "recipient"),
        (lambda: configuration.keystore_terms("aws-fra"), "keystores.aws-fra"),
    ):
        with pytest.raises(ConfigurationInvalid, match=section):
            need()


def test_a_wrong_key_of_a_keystore_is_named(tmp_path: Path) -> None:
    table = "[keystores.bao]\ntype = 'transit'\nidentity = 'i'\nstate = 's'\naddress = 'http://127.0.0.1:1'\n"
    with pytest.raises(ConfigurationInvalid, match=r"\[keystores.bao\].*key_name: Field required"):
        load(tmp_path, ROSTER + table).keystore_terms("bao")


def test_the_example_configuration_is_valid() -> None:
    configuration = Configuration.load(Path("deploy/masterkey.example.toml"))
    for name in configuration.keystores:
        assert configuration.keystore_terms(name).name == name
