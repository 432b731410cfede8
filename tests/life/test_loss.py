"""The database, Temporal, or both are lost: a bundle brings the ledger back, and MasterKeys are released again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Installation
from tests.driving.site import Site
from tests.life.test_recover import QUORUM, keystores
from tests.life.test_reshard import change, unseal
from tests.life.test_stop import stop

pytestmark = pytest.mark.timeout(600)

APPROVERS = ("alice", "bob", "carol")


def newest(installation: Installation) -> Path:
    """The newest bundle, written by itself after the last commit."""
    return sorted((installation.folder / "bundles").glob("*.json"))[-1]


def lose(installation: Installation, *, database: bool = False, temporal: bool = False) -> None:
    """Everything of the orchestrator's side is lost, and begun anew; keystore workers and strongroom are restarted."""
    site = installation.stack
    assert isinstance(site, Site)
    assert site.server is not None
    site.kill(*site.roles())
    if temporal:
        # A namespace that nobody has used has no history, as a new server has none.
        site.namespace = site.server.take()
    if database:
        for file in installation.folder.glob("masterkey.db*"):
            file.unlink()
        site.upgrade_ledger()
    site.start_roles()


def approvals(installation: Installation, bundle: Path, who: tuple[str, ...] = APPROVERS) -> list[str]:
    """The quorum's approvals of a bundle, as words of the command line."""
    words = []
    for name in who:
        told = installation.stack.masterkey("bundle", "approve", str(bundle), "--key", key(installation, name), "--yes")
        words += ["--approval", str(told["approval"])]
    return words


def key(installation: Installation, name: str) -> str:
    return str(installation.folder / "keys" / name)


def bring_back(installation: Installation, bundle: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Import a bundle; the exit code and the answer."""
    child = installation.stack.background("bundle", "import", str(bundle), *words, config="orchestrator")
    out, err = child.communicate(timeout=90)
    assert out, err
    return child.returncode, json.loads(out)


@pytest.mark.slow
def test_the_database_is_lost_and_comes_back_from_the_bundle_that_was_written_at_the_last_commit(
    losing: Installation,
) -> None:
    name = losing.fresh_name()
    made = losing.init(name)
    bundle = newest(losing)
    assert losing.stack.masterkey("bundle", "verify", str(bundle))["ok"] is True
    head = losing.stack.masterkey("status", name)["head"]
    lose(losing, database=True)
    code, told = bring_back(losing, bundle)
    assert (code, told["error"]) == (1, "ApprovalInvalid")
    code, told = bring_back(losing, bundle, *approvals(losing, bundle, APPROVERS[:2]))
    assert (code, told["error"]) == (1, "ApprovalInvalid")
    code, told = bring_back(losing, bundle, *approvals(losing, bundle))
    assert (code, told["keystores_asked"]) == (0, True), told
    assert sorted(told["approved_by"]) == list(APPROVERS)
    assert losing.stack.masterkey("status", name)["head"] != head
    assert f"32 {made['kcv']}" in unseal(losing, name, ["carol", "dave", "erin"])[1]
    # Again is harmless.
    assert bring_back(losing, bundle)[1]["added"] == 0


@pytest.mark.slow
def test_temporal_and_its_histories_are_lost_and_nothing_else_is(losing: Installation) -> None:
    name = losing.fresh_name()
    made = losing.init(name, "seal", count=2)
    lose(losing, temporal=True)
    assert f"32 {made['kcv']}" in unseal(losing, name, [])[1]
    assert losing.stack.masterkey("drill", name)["healthy"] is True


@pytest.mark.slow
def test_both_are_lost(losing: Installation) -> None:
    name = losing.fresh_name()
    made = losing.init(name)
    bundle = newest(losing)
    lose(losing, database=True, temporal=True)
    assert bring_back(losing, bundle, *approvals(losing, bundle))[0] == 0
    result = change(losing, "reshard", name, QUORUM, "--threshold", "2", *keystores(1, 2, 3))
    assert result["kcv"] == made["kcv"]
    assert f"32 {made['kcv']}" in unseal(losing, name, QUORUM)[1]


@pytest.mark.slow
def test_a_bundle_from_before_a_reshard_or_a_stop_is_noticed_by_what_the_keystores_remember(
    losing: Installation,
) -> None:
    name = losing.fresh_name()
    losing.init(name)
    old = newest(losing)
    change(losing, "reshard", name, QUORUM, "--threshold", "2", *keystores(1, 2, 3, 4, 5))
    new = newest(losing)
    lose(losing, database=True, temporal=True)
    code, told = bring_back(losing, old, *approvals(losing, old))
    assert (code, told["error"]) == (1, "BundleInvalid")
    assert bring_back(losing, new, *approvals(losing, new))[0] == 0
    # A stop that the ledger forgot is remembered where it counts.
    assert stop(losing, name)[0] == 0
    lose(losing, database=True, temporal=True)
    # The bundle of before it: nothing but the keystores knows of the stop.
    assert bring_back(losing, new, *approvals(losing, new))[0] == 0
    child = losing.stack.background("unseal", name, "--deadline-hours", "0.005", "--exec", "--", "true")
    losing.approve(_started(child), QUORUM)
    out, _ = child.communicate(timeout=120)
    assert json.loads(out)["error"] == "Stopped"
    # And the quorum can lift it all the same.
    lifted = change(losing, "seal", name, QUORUM, "--lift")
    assert len(lifted["stops"]) == 1
    unseal(losing, name, QUORUM)


def _started(child: Any) -> str:
    for line in child.stderr:
        if "was started" in line:
            return str(line.split()[1])
    raise AssertionError("no ceremony was started")
