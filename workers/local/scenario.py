"""The steps of the demo's scenarios, each a command of the product on the embedded stack."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from activities.oneshot.installed import python
from workers.local.components import SPARE, component_keystores
from workers.local.process import ServiceFailed
from workers.local.stack import CUSTODIANS, Stack
from workers.output import say

SSS, SEAL = "eu10", "eu20"
"""The MasterKeys of the demo, by mode."""
_STARTED = re.compile(r"ceremony (\S+) was started")


@dataclass
class Scenario:
    """What one part of the demo did; times in seconds."""

    master_key: str
    threshold: int
    shards: int
    init_seconds: float
    unseal_seconds: float = 0.0
    keystores_down: tuple[str, ...] = ()
    approved_by: tuple[str, ...] = ()
    served_by: tuple[str, ...] = ()
    kcv: str = ""
    kcv_matches: bool = False


@dataclass
class Recovery:
    """What the recovery in the second scenario did; times in seconds."""

    deleted: str
    drill: str = ""
    noticed: bool = False
    changes: tuple[str, ...] = ()
    opened_by: tuple[str, ...] = ()
    replaced_by: str = ""
    seconds: float = 0.0
    kcv_matches: bool = False


class Demo:
    """The demo's steps over one stack."""

    def __init__(self, folder: Path, outside: Path) -> None:
        self.stack = Stack(folder)
        self._outside = outside
        self._pinned: dict[str, str] = {}
        self._receivers: dict[str, subprocess.Popen[str]] = {}

    # --- setting the stage -------------------------------------------------------------------------------

    def bring_up(self) -> str:
        """Start everything; returns the Temporal server's version."""
        bring_up(self.stack)
        return temporal_version()

    def lose(self, name: str) -> None:
        """Stop a keystore's service permanently."""
        service = self.stack.keystores[name].service
        if service is None:
            raise ServiceFailed(f"{name} has no service of its own that could be stopped")
        service.kill()

    # --- ceremonies --------------------------------------------------------------------------------------

    def init(self, scenario: Scenario, *words: str, show_statement: bool = False) -> None:
        """Create a MasterKey with three approvals, and pin its KCV as a recipient does."""
        started = time.monotonic()
        child = self.stack.background("init", scenario.master_key, *words)
        ceremony = self._ceremony_of(child)
        if show_statement:
            self._show_statement(ceremony)
        self._approve(ceremony, CUSTODIANS[:3])
        scenario.kcv = str(_answer(child, f"init {scenario.master_key}")["kcv"])
        scenario.init_seconds = time.monotonic() - started
        self._pinned[scenario.master_key] = scenario.kcv
        self.stack.pin(self._pinned)

    def drill(self, name: str) -> tuple[bool, str]:
        """Let every keystore prove its part; whether all did, and what does not open."""
        drilled = _answer(self.stack.background("drill", name), f"drill {name}", codes=(0, 1))
        shards = [shard for one in drilled["protections"] for shard in one["shards"]]
        closed = [f"{shard['keystore']}: {shard['error']}" for shard in shards if not shard["opens"]]
        return bool(drilled["healthy"]), "; ".join(closed)

    def recover(self, scenario: Scenario, recovery: Recovery, approvers: tuple[str, ...]) -> None:
        """Disaster recovery, with these approvals; it says what it does as it happens."""
        started = time.monotonic()
        child = self.stack.background("recover", scenario.master_key, "--replace", SPARE)
        ceremony = self._ceremony_of(child)
        self._approve(ceremony, approvers)
        recovered = _answer(child, f"recover {scenario.master_key}")
        recovery.seconds = time.monotonic() - started
        recovery.changes, recovery.opened_by = tuple(recovered["changes"]), tuple(recovered["opened_by"])
        recovery.kcv_matches = recovered["kcv"] == scenario.kcv
        shards = self.stack.masterkey("status", scenario.master_key)["protections"][-1]["shards"]
        recovery.replaced_by = ", ".join(shard["keystore"] for shard in shards if shard["keystore"] == SPARE)

    def unseal(self, scenario: Scenario, approvers: tuple[str, ...] = ()) -> None:
        """Become the recipient; the program that receives the key waits to search for it later."""
        name, said = scenario.master_key, self._outside / f"{scenario.master_key}.kcv"
        started = time.monotonic()
        child = self.stack.background(
            "unseal",
            name,
            "--exec",
            "--",
            *python("workers.local.leaks", name),
            str(self.stack.folder),
            str(said),
            str(self._outside / "go"),
            str(self._outside / f"{name}.found"),
        )
        self._receivers[name] = child
        if approvers:
            self._approve(self._ceremony_of(child), approvers)
        _wait(said.exists, child, "the MasterKey did not arrive")
        scenario.unseal_seconds = time.monotonic() - started
        received = json.loads(said.read_text(encoding="utf-8"))
        scenario.kcv_matches = received == {"kcv": scenario.kcv, "bytes": 32}

    def search(self, scenarios: dict[str, Scenario]) -> dict[str, int]:
        """Let the receivers search for what they received, and add up what they looked at and found."""
        temporal = [self.stack.temporal] if self.stack.temporal else []
        pids = [
            process.pid
            for service in [*self.stack.services.values(), *temporal]
            if service.running()
            for process in _family(service.process.pid)
        ]
        (self._outside / "go.new").write_text(json.dumps(pids), encoding="utf-8")
        (self._outside / "go.new").replace(self._outside / "go")
        total: dict[str, int] = {}
        for name, child in self._receivers.items():
            unsealed = _answer(child, f"unseal {name}")
            scenarios[name].approved_by = tuple(unsealed["approved_by"])
            scenarios[name].served_by = tuple(unsealed["served_by"])
            found: dict[str, int] = json.loads((self._outside / f"{name}.found").read_text(encoding="utf-8"))
            for key, value in found.items():
                # Both looked at the same places; what they found adds up.
                total[key] = total.get(key, 0) + value if key == "found" else max(total.get(key, 0), value)
        return total

    def _approve(self, ceremony: str, custodians: tuple[str, ...]) -> None:
        for name in custodians:
            key = str(self.stack.folder / "keys" / name)
            outcome = self.stack.masterkey("approve", ceremony, "--key", key, "--yes")
            say(f"    {name} approves; still needed: {outcome['needed'] or 'nothing'}")

    def _show_statement(self, ceremony: str) -> None:
        key = str(self.stack.folder / "keys" / CUSTODIANS[0])
        words = self.stack.masterkey("ceremony", "statement", ceremony, "--key", key)["words"]
        say("  what a custodian reads before signing, rendered from the bytes that are signed:")
        for line in str(words).splitlines():
            say(f"    | {line}")

    def _ceremony_of(self, child: subprocess.Popen[str]) -> str:
        """The id that a waiting command prints when it has started a ceremony."""
        said = []
        for line in child.stderr or ():
            said.append(line)
            if found := _STARTED.search(line):
                return found[1]
        raise ServiceFailed(f"no ceremony was started: {''.join(said)[-600:]}")


def bring_up(stack: Stack, *, port: int | None = None, ui: bool = False) -> None:
    """Start everything, with a roster that enrols the recipient for the demo's MasterKeys."""
    stack.start_temporal(port=port, ui=ui)
    stack.keystores.update(component_keystores(stack.folder))
    stack.make_keys()
    stack.make_roster(master_keys=(SSS, SEAL))
    stack.write_configurations()
    stack.upgrade_ledger()
    stack.start_roles()


def temporal_version() -> str:
    """What `temporal --version` says."""
    program = Path(sys.executable).parent / "temporal"
    found = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True)  # noqa: S603
    return found.stdout.strip()


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _answer(child: subprocess.Popen[str], what: str, *, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """What a command has answered, once it has ended; raises ServiceFailed with its own words if it failed."""
    out, err = child.communicate(timeout=120)
    if child.returncode not in codes or not out:
        raise ServiceFailed(f"{what}: {err.strip()[-600:]}")
    answer: dict[str, Any] = json.loads(out)
    return answer


def _wait(found: Callable[[], bool], child: subprocess.Popen[str], otherwise: str) -> None:
    deadline = time.monotonic() + 90
    while not found():
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            raise ServiceFailed(f"{otherwise}: {child.communicate()[1].strip()[-600:]}")
        time.sleep(0.02)
