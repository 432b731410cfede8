"""`masterkey offline`: keys made once and never overwritten, a page of paper, and mistakes found in what is typed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyrage  # type: ignore[import-untyped]
import pytest

from activities.crypto.age_wrap import key_id
from activities.identity import Identity, generate_identity
from activities.keystores.kinds.age_keys import AgeIdentity, read_identity
from tests import quick_age
from tests.cli.terminal import on_terminal
from tests.commands import masterkey
from workers.cli import roster as commands
from workers.client.paper import COLUMNS, Page, PageInvalid, read_page
from workers.config import Configuration
from workers.output import OPTIONS
from workflows.contracts.trust.chain import parse_roster_file, verify_chain

GENESIS = "sha256:" + "0" * 64
PRINTED = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
ALPHABET = "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"


def never_asked() -> str:
    raise AssertionError("no passphrase is needed here")


def keygen(folder: Path, name: str = "offline-erin") -> dict[str, str]:
    done = masterkey("offline", "keygen", name, "--out", str(folder), "--custodian", "erin", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


def configuration(folder: Path, table: str) -> Path:
    path = folder / "masterkey.toml"
    path.write_text(f'[roster]\nfile = "roster.json"\ngenesis = "{GENESIS}"\n{table}', encoding="utf-8")
    return path


# --- keygen --------------------------------------------------------------------------------------------------


def test_two_keys_are_made_for_their_owner_alone_and_the_secret_one_is_not_shown(tmp_path: Path) -> None:
    done = masterkey("offline", "keygen", "offline-erin", "--out", str(tmp_path / "keys"))
    assert done.returncode == 0
    secret, identity = tmp_path / "keys" / "offline-erin.agekey", tmp_path / "keys" / "offline-erin_ed25519"
    assert [path.stat().st_mode & 0o777 for path in (secret, identity)] == [0o600, 0o600]
    age = read_identity(secret, never_asked)
    assert f'offline = "{age.recipient}"' in done.stdout
    assert f'public_key = "{Identity.load(identity).public_key}"' in done.stdout
    assert "AGE-SECRET-KEY" not in done.stdout + done.stderr
    assert "PRIVATE KEY" not in done.stdout + done.stderr


def test_each_key_is_another_one(tmp_path: Path) -> None:
    one, other = keygen(tmp_path, "a"), keygen(tmp_path, "b")
    assert one["recipient"] != other["recipient"]
    assert one["public_key"] != other["public_key"]


@pytest.mark.parametrize("there", ["k.agekey", "k_ed25519", "k_ed25519.pub"])
def test_no_key_is_ever_overwritten(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    done = masterkey("offline", "keygen", "k", "--out", str(tmp_path))
    assert (done.returncode, sorted(os.listdir(tmp_path))) == (1, [there])
    assert f"{there} exists already; choose another folder or name" in done.stderr
    assert (tmp_path / there).read_text() == "precious"


@pytest.mark.parametrize("name", ["../k", "K", "a b", ""])
def test_a_keystore_has_a_name_of_the_roster(tmp_path: Path, name: str) -> None:
    done = masterkey("offline", "keygen", name, "--out", str(tmp_path / "keys"))
    assert done.returncode == 1
    assert "lower case letters, digits, hyphens" in done.stderr
    assert not (tmp_path / "keys").exists()


def test_what_keygen_prints_for_the_roster_becomes_a_roster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = keygen(tmp_path)
    for name in ("erin", "vault"):
        generate_identity(tmp_path / name)
    (tmp_path / "roster.toml").write_text(
        '[[custodians]]\nname = "erin"\npublic_key_file = "erin.pub"\n'
        '[[strongrooms]]\nname = "vault"\npublic_key_file = "vault.pub"\n'
        '[[governance]]\nmaster_key = "*"\ncustodians = ["erin"]\nquorum = 1\n'
        f'[change]\ncustodians = ["erin"]\nquorum = 1\n{made["roster"]}',
        encoding="utf-8",
    )
    monkeypatch.setattr(OPTIONS, "json", True)
    commands.init(tmp_path / "roster.toml", tmp_path / "roster.json")
    file = parse_roster_file((tmp_path / "roster.json").read_text())
    entry = verify_chain(file, genesis=json_digest(tmp_path)).current.keystore("offline-erin")
    assert entry is not None
    assert (entry.offline, entry.custodians) == (made["recipient"], ("erin",))
    assert entry.offline_key_id == made["key_id"] == key_id(made["recipient"])


def json_digest(folder: Path) -> str:
    from workflows.contracts.trust.roster import Roster

    document = parse_roster_file((folder / "roster.json").read_text()).versions[0].document
    return Roster.parse(document.encode()).digest


def test_what_keygen_prints_for_the_configuration_is_one(tmp_path: Path) -> None:
    made = keygen(tmp_path / "keys")
    terms = Configuration.load(configuration(tmp_path, made["configuration"])).keystore_terms("offline-erin")
    assert terms.settings["recipient"] == made["recipient"]
    assert Path(terms.settings["identity_file"]).samefile(made["identity_file"])
    assert Path(terms.identity).samefile(made["identity"])


def test_the_files_of_an_offline_keystore_are_relative_to_the_configuration(tmp_path: Path) -> None:
    recipient = AgeIdentity.generate().recipient
    table = (
        f'[keystores.k]\ntype = "offline"\nrecipient = "{recipient}"\nidentity = "i"\nstate = "s"\n'
        'identity_file = "key"\npassphrase_file = "word"\n'
    )
    settings = Configuration.load(configuration(tmp_path, table)).keystore_terms("k").settings
    assert (settings["identity_file"], settings["passphrase_file"]) == (str(tmp_path / "key"), str(tmp_path / "word"))


# --- a passphrase, typed on a terminal -------------------------------------------------------------------------


NEW, AGAIN = "New passphrase of the age key:", "The same again:"


def test_a_passphrase_is_typed_twice_and_not_shown(tmp_path: Path) -> None:
    words = ("offline", "keygen", "k", "--out", "keys", "--passphrase")
    code, shown = on_terminal(words, ((NEW, "sesame"), (AGAIN, "sesame")), folder=tmp_path)
    assert code == 0, shown
    assert "sesame" not in shown
    data = (tmp_path / "keys" / "k.agekey").read_bytes()
    assert b"AGE-SECRET-KEY-1" in pyrage.passphrase.decrypt(data, "sesame")


def test_two_different_passphrases_write_nothing(tmp_path: Path) -> None:
    words = ("offline", "keygen", "k", "--out", "keys", "--passphrase")
    code, shown = on_terminal(words, ((NEW, "sesame"), (AGAIN, "sesam")), folder=tmp_path)
    assert code == 1
    assert "the two passphrases differ" in " ".join(shown.split())
    assert not (tmp_path / "keys").exists()


def test_without_a_terminal_no_passphrase_is_taken(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "workers.cli",
            "offline",
            "keygen",
            "k",
            "--out",
            str(tmp_path / "keys"),
            "--passphrase",
        ],
        input="sesame\nsesame\n",
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 1
    assert "there is no terminal to type the passphrase on" in done.stderr
    assert not (tmp_path / "keys").exists()


# --- paper ---------------------------------------------------------------------------------------------------


@pytest.fixture
def identity() -> AgeIdentity:
    """The key that age's own tests use: always the same, because one mistake in a million passes a check."""
    return AgeIdentity.parse("AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX")


def page(identity: AgeIdentity, *, secret: bool = True) -> str:
    return Page("offline-erin", identity.recipient, PRINTED, identity if secret else None).render()


def key_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r"^ +K[1-4] ", line)]


def test_a_page_fits_on_paper_in_plain_ascii(identity: AgeIdentity) -> None:
    for text in (page(identity), page(identity, secret=False)):
        assert max(map(len, text.splitlines())) <= COLUMNS == 72
        assert len(text.splitlines()) <= 60
        assert text.isascii()
        assert text.replace("\n", "").isprintable()


def test_a_page_names_the_recipient_and_its_fingerprint_and_the_key_only_if_asked(identity: AgeIdentity) -> None:
    text = page(identity, secret=False)
    assert identity.recipient in text
    assert identity.key_id.removeprefix("age:") in text
    assert key_lines(text) == []
    assert identity.secret[16:20] not in text
    assert len(key_lines(page(identity))) == 4


def test_a_page_is_read_back(identity: AgeIdentity) -> None:
    text = page(identity)
    for typed in (text, text.lower(), "\n".join(key_lines(text)), "\n".join(reversed(key_lines(text)))):
        assert read_page(typed).secret == identity.secret
    packed = "\r\n".join(line.strip().replace(" ", "") for line in key_lines(text))
    with pytest.raises(PageInvalid):
        read_page(packed.replace("K1", ""))


def test_the_key_can_be_put_together_by_hand_as_the_page_says(identity: AgeIdentity) -> None:
    parts = ["".join(line.split()[1:-1]) for line in key_lines(page(identity))]
    assert "AGE-SECRET-KEY-1" + "".join(parts) == identity.secret


def test_every_mistyped_character_is_found_and_its_line_named(identity: AgeIdentity) -> None:
    lines = key_lines(page(identity))
    tried = 0
    for number, line in enumerate(lines):
        for place, character in enumerate(line):
            if place < line.index("K") + 2 or character == " ":
                continue
            for other in (
                ALPHABET[(ALPHABET.index(character) + 1) % 32],
                ALPHABET[(ALPHABET.index(character) + 16) % 32],
            ):
                typed = [*lines]
                typed[number] = line[:place] + other + line[place + 1 :]
                with pytest.raises(PageInvalid, match=rf"^line K{number + 1} has a mistake$"):
                    read_page("\n".join(typed))
                tried += 1
    assert tried == 2 * (58 + 4 * 4)


def test_lines_that_are_missing_short_double_or_in_anothers_place_are_named(identity: AgeIdentity) -> None:
    one, two, three, four = key_lines(page(identity))
    swapped = two.replace("K2", "K3"), three.replace("K3", "K2")
    for typed, complaint in (
        ([one, three, four], "^line K2 is missing$"),
        ([], "line K1 is missing; line K2 is missing; line K3 is missing; line K4 is missing"),
        ([one, two[:-1], three, four], "^line K2 has 19 characters instead of 20$"),
        ([one, two, three, four + "Q"], "^line K4 has 15 characters instead of 14$"),
        ([one, two, two, three, four], "^line K2 stands twice$"),
        ([one, *swapped, four], "^line K2 has a mistake; line K3 has a mistake$"),
        ([one, two, three, four, four.replace("K4", "K5")], "^there is no line K5$"),
    ):
        with pytest.raises(PageInvalid, match=complaint):
            read_page("\n".join(typed))


def test_characters_that_look_alike_are_understood() -> None:
    while not {"0", "8", "L"} <= set((identity := AgeIdentity.generate()).secret[16:]):
        pass
    lines = [line[: line.index("K") + 2] + line[line.index("K") + 2 :] for line in key_lines(page(identity))]
    typed = [line[:6] + line[6:].replace("0", "O").replace("8", "B").replace("L", "I") for line in lines]
    assert typed != lines
    assert read_page("\n".join(typed)).secret == identity.secret
    assert read_page("\n".join(line[:6] + line[6:].replace("L", "1") for line in lines)).secret == identity.secret


def test_lines_of_two_pages_make_no_key(identity: AgeIdentity) -> None:
    lines, others = key_lines(page(identity)), key_lines(page(AgeIdentity.generate()))
    with pytest.raises(PageInvalid, match="together they are no key"):
        read_page("\n".join([*lines[:2], *others[2:]]))


def test_a_page_of_another_recipient_is_refused(identity: AgeIdentity) -> None:
    text = page(identity).replace(identity.recipient, AgeIdentity.generate().recipient)
    with pytest.raises(PageInvalid, match="names another recipient"):
        read_page(text)


def test_the_commands_print_and_restore_the_same_key(tmp_path: Path) -> None:
    made = keygen(tmp_path / "keys")
    config = str(configuration(tmp_path, made["configuration"]))
    out, restored = tmp_path / "page.txt", tmp_path / "restored"
    without = masterkey("offline", "paper", "offline-erin", "--config", config)
    assert (without.returncode, key_lines(without.stdout)) == (0, [])
    done = masterkey("offline", "paper", "offline-erin", "--with-key", "--out", str(out), "--config", config)
    assert (done.returncode, out.stat().st_mode & 0o777) == (0, 0o600)
    assert not any(line in done.stdout + done.stderr for line in key_lines(out.read_text()))
    again = masterkey("offline", "paper", "offline-erin", "--out", str(out), "--config", config)
    assert (again.returncode, "exists already" in again.stderr) == (1, True)

    read = masterkey("offline", "read", str(out), "--out", str(restored), "--json")
    assert read.returncode == 0
    assert json.loads(read.stdout)["recipient"] == made["recipient"]
    assert restored.read_bytes() == Path(made["identity_file"]).read_bytes()
    assert restored.stat().st_mode & 0o777 == 0o600
    secret = read_identity(restored, never_asked).secret
    assert secret not in read.stdout + read.stderr
    twice = masterkey("offline", "read", str(out), "--out", str(restored))
    assert (twice.returncode, "exists already" in twice.stderr) == (1, True)


def test_a_page_with_a_mistake_writes_no_key(tmp_path: Path, identity: AgeIdentity) -> None:
    typed = tmp_path / "typed"
    typed.write_text("\n".join(key_lines(page(identity))[:3]))
    done = masterkey("offline", "read", str(typed), "--out", str(tmp_path / "restored"))
    assert done.returncode == 1
    assert "line K4 is missing; compare these lines with the paper" in done.stderr
    assert not (tmp_path / "restored").exists()


def test_only_offline_keystores_have_a_page(tmp_path: Path) -> None:
    table = (
        '[keystores.bao]\ntype = "transit"\naddress = "http://127.0.0.1:1"\nkey_name = "k"\n'
        'identity = "i"\nstate = "s"\n'
    )
    done = masterkey("offline", "paper", "bao", "--config", str(configuration(tmp_path, table)))
    assert done.returncode == 1
    assert "is of type transit, not offline" in done.stderr


def test_paper_of_an_encrypted_key_asks_for_its_passphrase(tmp_path: Path, identity: AgeIdentity) -> None:
    (tmp_path / "key").write_bytes(quick_age.encrypt(f"{identity.secret}\n".encode(), "sesame"))
    (tmp_path / "key").chmod(0o600)
    table = (
        f'[keystores.k]\ntype = "offline"\nrecipient = "{identity.recipient}"\nidentity = "i"\nstate = "s"\n'
        'identity_file = "key"\n'
    )
    configuration(tmp_path, table)
    asked = "Passphrase of the age key of k:"
    code, shown = on_terminal(
        ("offline", "paper", "k", "--with-key", "--out", "page"), ((asked, "sesame"),), folder=tmp_path
    )
    assert code == 0, shown
    assert read_page((tmp_path / "page").read_text()).secret == identity.secret
    code, shown = on_terminal(("offline", "paper", "k", "--with-key"), ((asked, "other"),), folder=tmp_path)
    assert code == 1
    assert "the passphrase is another one" in " ".join(shown.split())
