"""Workers refuse to start when something is wrong: which file, which key, what was expected, what to do."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from activities.identity import generate_identity
from tests.conftest import Installation
from workers import roles
from workers.config import Configuration
from workflows.contracts import names
from workflows.contracts.trust.errors import ConfigurationInvalid, RosterInvalid


@pytest.fixture
def folder(installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the installation's configurations, in which the roles can be started."""
    for file in installation.folder.glob("*.toml"):
        text = file.read_text(encoding="utf-8")
        for relative in ("keys/", "roster.json", "masterkey.db", "state/"):
            text = text.replace(f'"{relative}', f'"{installation.folder}/{relative}')
            text = text.replace(f'"sqlite:///{relative}', f'"sqlite:///{installation.folder}/{relative}')
        # The port for metrics is taken by the running worker.
        text = re.sub(r'\[metrics\]\nlisten = "[^"]*"', "", text)
        (tmp_path / file.name).write_text(text, encoding="utf-8")
    for variable, value in installation.stack.environment().items():
        monkeypatch.setenv(variable, value)
    return tmp_path


def edit(folder: Path, role: str, *changes: tuple[str, str]) -> Path:
    """Change a role's configuration."""
    path = folder / f"{role}.toml"
    text = path.read_text(encoding="utf-8")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path.write_text(text, encoding="utf-8")
    return path


async def start(role: str, path: Path) -> None:
    """Start a role in this process; it must refuse at once."""
    configuration = Configuration.load(path)
    run: Callable[[], object] = {
        "orchestrator": lambda: roles.run_orchestrator(configuration),
        "strongroom": lambda: roles.run_strongroom(configuration),
        "keystores": lambda: roles.run_keystores(configuration, ["bao-1"]),
    }[role]
    await asyncio.wait_for(run(), 20)  # type: ignore[arg-type]


async def refusal(role: str, path: Path) -> str:
    """Why a role refuses to start, and what to do."""
    with pytest.raises((ConfigurationInvalid, RosterInvalid)) as refused:
        await start(role, path)
    return refused.value.diagnostics


async def test_without_the_search_attributes_the_orchestrator_says_how_to_register_them(
    folder: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = RegisterNamespaceRequest(namespace="bare")
    request.workflow_execution_retention_period.FromTimedelta(timedelta(days=1))
    monkeypatch.setenv("TEMPORAL_NAMESPACE", "bare")
    said = ""
    for _ in range(100):
        try:
            await client.workflow_service.register_namespace(request)
        except RPCError as error:
            # A connection that lay idle for long may drop a call.
            if error.status not in (RPCStatusCode.ALREADY_EXISTS, RPCStatusCode.CANCELLED):
                raise
        try:
            said = await refusal("orchestrator", folder / "orchestrator.toml")
            break
        except RPCError:
            # The server takes a moment to know a new namespace.
            await asyncio.sleep(0.2)
    assert "namespace bare lacks the search attributes" in said
    assert "temporal operator search-attribute create" in said
    for key in names.SEARCH_ATTRIBUTES:
        assert f"--name {key.name} --type Keyword" in said


async def test_no_temporal_is_said_with_its_address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    for role in ("orchestrator", "strongroom", "keystores"):
        said = await refusal(role, folder / f"{role}.toml")
        assert "127.0.0.1:1" in said
        assert "TEMPORAL_ADDRESS" in said


@pytest.mark.parametrize("role", ["orchestrator", "strongroom", "keystores"])
async def test_another_roster_than_the_pinned_one_is_refused(
    folder: Path, role: str, installation: Installation
) -> None:
    path = edit(folder, role, (installation.stack.genesis, "sha256:" + "0" * 64))
    said = await refusal(role, path)
    assert installation.stack.genesis in said
    assert "is pinned" in said


@pytest.mark.parametrize("role", ["orchestrator", "strongroom", "keystores"])
async def test_a_roster_that_was_altered_is_refused(folder: Path, role: str, installation: Installation) -> None:
    roster = json.loads((installation.folder / "roster.json").read_text(encoding="utf-8"))
    document = roster["versions"][0]["document"].replace('"minimum_threshold":2', '"minimum_threshold":3')
    assert document != roster["versions"][0]["document"]
    roster["versions"][0]["document"] = document
    (folder / "roster.json").write_text(json.dumps(roster), encoding="utf-8")
    path = edit(folder, role, (f"{installation.folder}/roster.json", "roster.json"))
    assert "is pinned" in await refusal(role, path)


@pytest.mark.parametrize("role", ["orchestrator", "strongroom", "keystores"])
async def test_a_roster_that_was_rolled_back_is_refused(folder: Path, role: str) -> None:
    path = edit(folder, role, ("minimum_version = 1", "minimum_version = 2"))
    said = await refusal(role, path)
    assert "version 1, but version 2 was seen before" in said


@pytest.mark.parametrize("role", ["orchestrator", "strongroom", "keystores"])
async def test_a_missing_roster_is_named(folder: Path, role: str, installation: Installation) -> None:
    path = edit(folder, role, (f"{installation.folder}/roster.json", "nowhere.json"))
    said = await refusal(role, path)
    assert "nowhere.json" in said
    assert "No such file" in said


async def test_a_strongroom_that_is_not_in_the_roster_is_refused(folder: Path) -> None:
    generate_identity(folder / "stranger")
    path = edit(folder, "strongroom")
    text = path.read_text(encoding="utf-8")
    before = next(line for line in text.splitlines() if line.startswith("identity"))
    said = await refusal("strongroom", edit(folder, "strongroom", (before, 'identity = "stranger"')))
    assert "is no strongroom's in the roster" in said
    assert "strongroom.toml" in said


async def test_a_keystore_worker_with_anothers_identity_is_refused(folder: Path, installation: Installation) -> None:
    path = edit(folder, "keystores", (f"{installation.folder}/keys/bao-1", f"{installation.folder}/keys/bao-2"))
    said = await refusal("keystores", path)
    assert "[keystores.bao-1]" in said
    assert "is not the one that the roster gives bao-1" in said


async def test_a_keystore_that_is_not_configured_is_refused_with_those_that_are(folder: Path) -> None:
    with pytest.raises(ConfigurationInvalid, match=r"\[keystores.bao-9\] is missing \(there are: bao-1, bao-2"):
        await roles.run_keystores(Configuration.load(folder / "keystores.toml"), ["bao-9"])


@pytest.mark.parametrize(("role", "key"), [("strongroom", "strongroom"), ("keystores", "bao-1")])
async def test_an_identity_that_others_can_read_or_that_is_missing_is_refused(
    folder: Path, role: str, key: str, installation: Installation
) -> None:
    path = edit(folder, role, (f"{installation.folder}/keys/{key}", "identity"))
    said = await refusal(role, path)
    assert "identity does not exist" in said
    assert "ssh-keygen -t ed25519" in said
    for suffix in ("", ".pub"):
        source = installation.folder / "keys" / f"{key}{suffix}"
        (folder / f"identity{suffix}").write_bytes(source.read_bytes())
    (folder / "identity").chmod(0o644)
    said = await refusal(role, path)
    assert "can be read by others" in said
    assert "chmod 600" in said


async def test_a_ledger_that_was_not_upgraded_is_refused(folder: Path, installation: Installation) -> None:
    path = edit(folder, "orchestrator", (f"sqlite:///{installation.folder}/masterkey.db", "sqlite:///fresh.db"))
    said = await refusal("orchestrator", path)
    assert "masterkey ledger upgrade" in said


async def test_an_orchestrator_without_a_ledger_section_is_refused(folder: Path) -> None:
    said = await refusal("orchestrator", folder / "strongroom.toml")
    assert "[ledger] is missing" in said


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("[ledger]", "[ledgre]", "ledgre: Extra inputs are not permitted"),
        ("url =", "uri =", "ledger.url: Field required"),
        ("minimum_version = 1", 'minimum_version = "one"', "roster.minimum_version: Input should be a valid integer"),
        ("minimum_version = 1", "minimum_version = 0", "roster.minimum_version: Input should be greater than or equal"),
        ("minimum_version = 1", "minimum_version = ", "is not TOML"),
        ("sha256:", "md5:", "roster.genesis: String should match pattern"),
    ],
)
def test_a_wrong_configuration_ends_the_command_with_file_key_and_what_was_expected(
    folder: Path, before: str, after: str, expected: str
) -> None:
    path = edit(folder, "orchestrator", (before, after))
    done = subprocess.run(
        [sys.executable, "-m", "workers.cli", "worker", "orchestrator", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert str(path) in line
    assert expected in line
    assert "Traceback" not in done.stderr
