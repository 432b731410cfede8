"""All clouds, the database and Temporal are gone: a bundle, an HSM, a custodian's own key, and a laptop are left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.commands import QuickStack
from tests.e2e.test_main_job import READ_AND_DERIVE
from tests.support import eventually
from workers.local.components import component_keystores
from workers.local.stack import COMMAND, Stack, to_toml

pytestmark = pytest.mark.timeout(600)

PAPER = "paper-erin"
CLOUDS = ("aws-fra", "azure-ams", "gcp-zrh")
NAME = "eu10"


@dataclass
class Wreck:
    """What is left: keys, roster, HSM, the newest bundle; and a second OpenBao to recover into."""

    stack: Stack
    kcv: str = ""

    @property
    def folder(self) -> Path:
        return self.stack.folder

    def key(self, name: str) -> str:
        return str(self.folder / "keys" / name)

    def environment(self, temporal: str) -> dict[str, str]:
        own = {variable: value for one in self.stack.keystores.values() for variable, value in one.env.items()}
        return {**os.environ, **own, "TEMPORAL_ADDRESS": temporal}

    def run(self, config: str, temporal: str, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, "--json", "--config", str(self.folder / f"{config}.toml"), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=self.environment(temporal),
        )


@pytest.fixture(scope="module")
def wreck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wreck]:
    """An installation over AWS, Azure, Google, an HSM and a custodian's key; then almost everything is lost."""
    folder = tmp_path_factory.mktemp("glass")
    stack = QuickStack(folder)
    found = Wreck(stack)
    try:
        stack.start_temporal()
        stack.keystores.update(component_keystores(folder))
        stack.make_keys()
        stack.make_roster(master_keys=(NAME,))
        made = stack.masterkey("offline", "keygen", PAPER, "--out", str(folder / "erins"), "--custodian", "erin")
        stack.write_configurations()
        description = folder / "roster.toml"
        description.write_text(description.read_text() + "\n" + made["roster"])
        stack.masterkey("roster", "propose", str(description))
        for name in ("alice", "bob", "carol"):
            stack.masterkey("roster", "sign", "--key", found.key(name), "--yes")
        roster = {"file": "roster.json", "genesis": stack.genesis, "minimum_version": 2}
        (folder / "erin.toml").write_text(to_toml({"roster": roster}) + "\n\n" + made["configuration"])
        stack.upgrade_ledger()
        stack.start_roles()
        words = [word for name in (*CLOUDS, "hsm-fra", PAPER) for word in ("--keystore", name)]
        ceremony = stack.masterkey("init", NAME, "--mode", "sss", "--threshold", "2", *words, "--no-wait")["ceremony"]
        for name in ("alice", "bob", "carol"):
            stack.masterkey("approve", ceremony, "--key", found.key(name), "--yes")
        stack.masterkey("contribute", ceremony, "--keystore", PAPER, "--yes", config="erin")
        eventually(lambda: stack.masterkey("ceremony", "show", ceremony)["phase"] == "done", 60)
        found.kcv = stack.masterkey("status", NAME)["protections"][0]["kcv"]
        stack.pin({NAME: found.kcv})
        bundle = sorted((folder / "bundles").glob("*.json"))[-1]
        shutil.copy(bundle, folder / "the-bundle.json")
        # The clouds, the database, Temporal, every worker, and what the keystore workers remembered.
        for service in stack.services.values():
            service.kill()
        for name in CLOUDS:
            emulated = stack.keystores[name].service
            assert emulated is not None
            emulated.kill()
        assert stack.temporal is not None
        stack.temporal.kill()
        for path in ("temporal", "bundles", "state"):
            shutil.rmtree(folder / path)
        for file in folder.glob("masterkey.db*"):
            file.unlink()
        yield found
    finally:
        stack.stop()


def laptop(wreck: Wreck) -> None:
    """The one configuration that a laptop is given."""
    tables: dict[str, Any] = {
        name: {"identity": f"keys/{name}", "state": f"laptop-state/{name}", **wreck.stack.keystores[name].table}
        for name in ("hsm-fra", "bao-fra", "bao-zrh")
    }
    wreck.stack.write_configuration("laptop", {"strongroom": {"identity": "keys/strongroom"}, "keystores": tables})


@pytest.mark.slow
def test_nothing_but_the_bundle_an_hsm_and_a_custodians_own_key_brings_the_masterkey_back(wreck: Wreck) -> None:
    laptop(wreck)
    bundle = wreck.folder / "the-bundle.json"
    words: list[str] = []
    for name in ("bob", "carol", "dave"):
        child = wreck.run("client", "127.0.0.1:1", "bundle", "approve", str(bundle), "--key", wreck.key(name), "--yes")
        words += ["--approval", json.loads(child.communicate(timeout=120)[0])["approval"]]
    glass = wreck.folder / "glass"
    replacements = [word for name in ("bao-fra", "bao-zrh") for word in ("--replace", name)]
    common = ("recover", NAME, "--from-bundle", str(bundle), "--embedded", "--folder", str(glass), *replacements)
    refused = wreck.run("laptop", "127.0.0.1:1", *common, *words[:4])
    assert json.loads(refused.communicate(timeout=120)[0])["error"] == "BreakGlassFailed"
    assert refused.returncode == 1
    child = wreck.run("laptop", "127.0.0.1:1", *common, *words)
    said: list[str] = []
    threading.Thread(target=lambda: said.extend(child.stderr or ()), daemon=True).start()

    def told(mark: str) -> str | None:
        assert child.poll() is None or any(mark in line for line in said), "".join(said)
        return next((line for line in said if mark in line), None)

    temporal = eventually(lambda: told("up: Temporal at"), 60).split()[3].rstrip(",")
    ceremony = eventually(lambda: told("was started"), 60).split()[1]
    eventually(lambda: told("recover eu10: quorum"), 90)
    for name in ("bob", "dave", "erin"):
        approved = wreck.run("client", temporal, "approve", ceremony, "--key", wreck.key(name), "--yes")
        _, err = approved.communicate(timeout=120)
        assert approved.returncode == 0, err
    contribution = wreck.run("erin", temporal, "contribute", ceremony, "--keystore", PAPER, "--yes")
    _, err = contribution.communicate(timeout=120)
    assert contribution.returncode == 0, err
    assert child.wait(timeout=120) == 0, "".join(said)
    result = json.loads(child.stdout.read()) if child.stdout else {}
    assert result["kcv"] == wreck.kcv
    assert sorted(result["opened_by"]) == ["hsm-fra", PAPER]
    assert {one["keystore"]: one["state"] for one in result["health"]}["aws-fra"] == "unreachable"
    assert any("import the newest bundle" in line for line in said)
    # What came of it goes on elsewhere: a new orchestrator, a new Temporal, the keystores that are left.
    stack = wreck.stack
    stack.start_temporal()
    stack.upgrade_ledger()
    for role in ("orchestrator", "strongroom", "keystore-hsm-fra", "keystore-bao-fra", "keystore-bao-zrh"):
        stack.start_role(role)
    newest = sorted((glass / "bundles").glob("*.json"))[-1]
    words = []
    for name in ("bob", "carol", "dave"):
        told_ = stack.masterkey("bundle", "approve", str(newest), "--key", wreck.key(name), "--yes")
        words += ["--approval", told_["approval"]]
    stack.masterkey("bundle", "import", str(newest), *words, config="orchestrator")
    unsealing = stack.background("unseal", NAME, "--exec", "--", sys.executable, "-c", READ_AND_DERIVE, NAME)
    for line in unsealing.stderr or ():
        if "was started" in line:
            ceremony = line.split()[1]
            break
    for name in ("alice", "bob", "dave"):
        stack.masterkey("approve", ceremony, "--key", wreck.key(name), "--yes")
    _, err = unsealing.communicate(timeout=120)
    assert f"32 {wreck.kcv}" in err
