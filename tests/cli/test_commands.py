"""The command line as programs and people meet it: exit codes, one JSON object, one line that says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import masterkey
from tests.conftest import Installation
from tests.support import eventually
from workers.cli.app import COMMANDS, hoist
from workers.cli.ceremonies import LATER as LATER_OF_CEREMONY
from workers.cli.lazy import load
from workers.cli.options import mode_of
from workers.cli.worker import LATER as LATER_OF_WORKER
from workers.client.ssh import sign_with_key
from workers.output import shown
from workflows.catalogue import WORKFLOWS
from workflows.contracts.names import WORKFLOW_TYPES


def process(*words: str) -> subprocess.CompletedProcess[str]:
    """The command line as a process of its own, which all others here are not."""
    command = [sys.executable, "-P", "-m", "workers.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL)


def test_options_may_stand_anywhere_but_not_behind_the_dashes() -> None:
    assert hoist(["status", "eu10", "--json", "--config", "a"]) == ["--json", "--config", "a", "status", "eu10"]
    assert hoist(["unseal", "--config=a", "--exec", "--", "cmd", "--json"]) == [
        "--config=a",
        "unseal",
        "--exec",
        "--",
        "cmd",
        "--json",
    ]


def test_the_list_of_commands_says_of_each_what_it_says_of_itself() -> None:
    listed = [*COMMANDS.values(), *LATER_OF_CEREMONY.values(), *LATER_OF_WORKER.values()]
    assert [load(place).help.partition("\n\n")[0] for place, _ in listed] == [words for _, words in listed]


def test_the_list_of_commands_needs_no_command() -> None:
    words = [sys.executable, "-X", "importtime", "-m", "workers.cli", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "workers.cli.app" in imported
    assert not {name.partition(".")[0] for name in imported} & {"temporalio", "sqlalchemy", "cryptography", "pyrage"}
    assert not {name for name in imported if name.startswith("workers.client")}


def test_a_client_knows_every_workflow_by_name_and_imports_none() -> None:
    assert {workflow.__name__ for workflow in WORKFLOWS} == WORKFLOW_TYPES
    words = [sys.executable, "-X", "importtime", "-c", "import workers.client.ceremonies, workers.cli.decide"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"temporalio.worker", "sqlalchemy", "workflows.catalogue", "workflows.init"}


def test_people_say_auto_unseal_and_documents_record_seal() -> None:
    assert [mode_of(word) for word in ("auto-unseal", "seal", "sss", None)] == ["seal", "seal", "sss", None]
    assert [shown(mode) for mode in ("seal", "sss")] == ["auto-unseal", "sss"]


def test_usage_errors_exit_with_2() -> None:
    assert process("frobnicate").returncode == 2
    assert masterkey("unseal", "eu10").returncode == 2


def test_a_refusal_exits_with_1_in_one_line_and_as_json() -> None:
    done = process("status", "--config", "nowhere.toml", "--json")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    answer = json.loads(done.stdout)
    assert (answer["ok"], answer["error"]) == (False, "ConfigurationInvalid")
    assert "name it with --config FILE" in done.stderr


def test_no_temporal_is_said_plainly(installation: Installation) -> None:
    config = str(installation.folder / "client.toml")
    done = masterkey("status", "--config", config, env={"TEMPORAL_ADDRESS": "127.0.0.1:1"})
    assert done.returncode == 1
    assert "cannot connect to Temporal at 127.0.0.1:1: nothing answers there; set TEMPORAL_ADDRESS" in done.stderr


def test_a_statement_can_be_signed_elsewhere(installation: Installation, tmp_path: Path) -> None:
    stack, name = installation.stack, installation.fresh_name()
    running = stack.masterkey("init", name, "--mode", "auto-unseal", "--keystore", "bao-1", "--no-wait")
    key, file = installation.folder / "keys" / "bob", tmp_path / "statement"

    def words() -> dict[str, Any] | None:
        found = stack.masterkey("ceremony", "show", running["ceremony"])
        return found if found["phase"] == "quorum" else None

    eventually(words)
    shown = stack.masterkey("ceremony", "statement", running["ceremony"], "--key", str(key), "--out", str(file))
    assert f"CREATE a new MasterKey named {name}" in shown["words"]
    assert file.read_text() == shown["statement"]
    signature = tmp_path / "statement.sig"
    signature.write_text(sign_with_key(file.read_bytes(), key, "masterkey-approval"))
    given = ["--statement", str(file), "--signature", str(signature)]
    told = stack.masterkey("approve", running["ceremony"], *given)
    assert (told["custodian"], told["state"]) == ("bob", "accepted")
    assert stack.masterkey("approve", running["ceremony"], *given)["state"] == "duplicate"


@pytest.mark.slow
def test_three_rejections_end_a_ceremony_and_name_who_refused(installation: Installation) -> None:
    stack, name = installation.stack, installation.fresh_name()
    child = stack.background("init", name, "--mode", "seal", "--keystore", "bao-1")
    ceremony = eventually(
        lambda: [e["ceremony"] for e in stack.masterkey("ceremony", "list")["ceremonies"] if e["master_key"] == name]
    )[0]
    # Whoever waits is told what is still needed, before it changes.
    assert any("still needed" in line for line in child.stderr or ())
    for custodian in ("alice", "bob", "carol"):
        stack.masterkey("reject", ceremony, "--key", str(installation.folder / "keys" / custodian), "--yes")
    out, err = child.communicate(timeout=120)
    assert child.returncode == 1
    assert json.loads(out)["error"] == "CeremonyEnded"
    assert "refused by alice, bob, carol" in err
    listed = stack.masterkey("ceremony", "list", "--all")["ceremonies"]
    assert [(e["outcome"], e["phase"]) for e in listed if e["ceremony"] == ceremony] == [("refused", "quorum")]
    late = masterkey(
        *("--config", str(installation.folder / "client.toml"), "approve", ceremony, "--yes"),
        *("--key", str(installation.folder / "keys" / "dave")),
        env=stack.environment(),
    )
    assert late.returncode == 1
    assert "is over" in late.stderr


def test_a_recipient_without_a_pinned_check_value_is_refused(installation: Installation) -> None:
    done = masterkey(
        *("--config", str(installation.folder / "client.toml"), "unseal", "mk-199", "--exec", "--", "true"),
        env=installation.stack.environment(),
    )
    assert done.returncode == 1
    assert "no key check value is pinned for mk-199" in done.stderr


@pytest.mark.slow
def test_the_key_can_be_written_to_a_descriptor_of_the_callers(installation: Installation) -> None:
    name = installation.fresh_name()
    installation.init(name, "seal", count=1)
    reading, writing = os.pipe()
    with subprocess.Popen(
        [*installation.stack.command("unseal", name, "--fd", str(writing))],
        pass_fds=(writing,),
        env={**os.environ, **installation.stack.environment()},
        stdout=subprocess.PIPE,
    ) as child:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            assert len(pipe.read()) == 32
        assert child.wait(30) == 0


@pytest.mark.slow
def test_the_exit_code_of_the_receiving_program_is_passed_on(installation: Installation) -> None:
    name = installation.fresh_name()
    installation.init(name, "seal", count=1)
    command = installation.stack.command("unseal", name, "--exec", "--", "sh", "-c", "exit 7")
    done = subprocess.run(
        command, env={**os.environ, **installation.stack.environment()}, check=False, capture_output=True
    )
    assert done.returncode == 7


@pytest.mark.parametrize(
    "words", [("init", "Bad Name", "--mode", "sss", "--keystore", "a"), ("init", "x", "--mode", "y", "--keystore", "a")]
)
def test_bad_arguments_are_refused_before_anything_starts(words: tuple[str, ...]) -> None:
    done = masterkey(*words)
    assert done.returncode == 1
    assert "see `masterkey init --help`" in done.stderr
