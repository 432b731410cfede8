"""`masterkey demo`, the tour of the main job on real components, and `masterkey dev`, the stack kept up."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from workers.cli.output import OPTIONS, answer, say
from workers.embedded.components import SPARE, component_keystores, delete_bao_key
from workers.embedded.process import ServiceFailed
from workers.embedded.stack import CUSTODIANS, Stack

_SSS, _SEAL = "eu10", "eu20"
_LOST = ("aws-fra", "gcp-zrh")
_SEALED_IN = ("azure-ams", "bao-fra")
_STARTED = re.compile(r"ceremony (\S+) was started")


@dataclass
class Act:
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
    """What the second act did; times in seconds."""

    deleted: str
    drill: str = ""
    noticed: bool = False
    changes: tuple[str, ...] = ()
    opened_by: tuple[str, ...] = ()
    replaced_by: str = ""
    seconds: float = 0.0
    kcv_matches: bool = False


class Tour:
    """The demo's steps over one stack."""

    def __init__(self, folder: Path, outside: Path) -> None:
        self.stack = Stack(folder)
        self._outside = outside
        self._pinned: dict[str, str] = {}
        self._receivers: dict[str, subprocess.Popen[str]] = {}

    # --- setting the stage -------------------------------------------------------------------------------

    def bring_up(self) -> str:
        """Start everything; returns the Temporal server's version."""
        stack = self.stack
        stack.start_temporal()
        stack.keystores.update(component_keystores(stack.folder))
        stack.make_keys()
        stack.make_roster(master_keys=(_SSS, _SEAL))
        stack.write_configurations()
        stack.upgrade_ledger()
        stack.start_roles()
        return temporal_version()

    def lose(self, name: str) -> None:
        """Stop a keystore's service for good."""
        service = self.stack.keystores[name].service
        if service is None:
            raise ServiceFailed(f"{name} has no service of its own that could be stopped")
        service.kill()

    # --- ceremonies --------------------------------------------------------------------------------------

    def init(self, act: Act, *words: str, show_statement: bool = False) -> None:
        """Create a MasterKey with three approvals, and pin its KCV as a recipient does."""
        started = time.monotonic()
        child = self.stack.background("init", act.master_key, *words)
        ceremony = self._ceremony_of(child)
        if show_statement:
            self._show_statement(ceremony)
        self._approve(ceremony, CUSTODIANS[:3])
        out, err = child.communicate(timeout=90)
        if child.returncode != 0:
            raise ServiceFailed(f"init {act.master_key}: {err.strip()[-600:]}")
        act.init_seconds = time.monotonic() - started
        act.kcv = str(json.loads(out)["kcv"])
        self._pinned[act.master_key] = act.kcv
        self.stack.pin(self._pinned)

    def drill(self, name: str) -> tuple[bool, str]:
        """Let every keystore prove its part; whether all did, and what does not open."""
        child = self.stack.background("drill", name)
        out, err = child.communicate(timeout=90)
        if not out:
            raise ServiceFailed(f"drill {name}: {err.strip()[-600:]}")
        told = json.loads(out)
        shards = [shard for one in told["protections"] for shard in one["shards"]]
        closed = [f"{shard['keystore']}: {shard['error']}" for shard in shards if not shard["opens"]]
        return bool(told["healthy"]), "; ".join(closed)

    def recover(self, act: Act, recovery: Recovery, approvers: tuple[str, ...]) -> None:
        """Disaster recovery, with these approvals; what it does is told as it happens."""
        started = time.monotonic()
        child = self.stack.background("recover", act.master_key, "--replace", SPARE)
        ceremony = self._ceremony_of(child)
        self._approve(ceremony, approvers)
        out, err = child.communicate(timeout=90)
        if child.returncode != 0:
            raise ServiceFailed(f"recover {act.master_key}: {err.strip()[-600:]}")
        recovery.seconds = time.monotonic() - started
        told = json.loads(out)
        recovery.changes, recovery.opened_by = tuple(told["changes"]), tuple(told["opened_by"])
        recovery.kcv_matches = told["kcv"] == act.kcv
        shards = self.stack.masterkey("status", act.master_key)["protections"][-1]["shards"]
        recovery.replaced_by = ", ".join(shard["keystore"] for shard in shards if shard["keystore"] == SPARE)

    def unseal(self, act: Act, approvers: tuple[str, ...] = ()) -> None:
        """Become the recipient; the program that receives the key waits to search for it later."""
        name, said = act.master_key, self._outside / f"{act.master_key}.kcv"
        started = time.monotonic()
        child = self.stack.background(
            "unseal",
            name,
            "--exec",
            "--",
            sys.executable,
            "-m",
            "workers.embedded.leaks",
            name,
            str(self.stack.folder),
            str(said),
            str(self._outside / "go"),
            str(self._outside / f"{name}.found"),
        )
        self._receivers[name] = child
        if approvers:
            self._approve(self._ceremony_of(child), approvers)
        _wait(said.exists, child, "the MasterKey did not arrive")
        act.unseal_seconds = time.monotonic() - started
        received = json.loads(said.read_text(encoding="utf-8"))
        act.kcv_matches = received == {"kcv": act.kcv, "bytes": 32}

    def search(self, acts: dict[str, Act]) -> dict[str, int]:
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
            out, err = child.communicate(timeout=120)
            if child.returncode != 0:
                raise ServiceFailed(f"unseal {name}: {err.strip()[-400:]}")
            told = json.loads(out)
            acts[name].approved_by = tuple(told["approved_by"])
            acts[name].served_by = tuple(told["served_by"])
            found: dict[str, int] = json.loads((self._outside / f"{name}.found").read_text(encoding="utf-8"))
            for key, value in found.items():
                # Both looked at the same places; what they found adds up.
                total[key] = total.get(key, 0) + value if key == "found" else max(total.get(key, 0), value)
        return total

    def _approve(self, ceremony: str, custodians: tuple[str, ...]) -> None:
        for name in custodians:
            key = str(self.stack.folder / "keys" / name)
            told = self.stack.masterkey("approve", ceremony, "--key", key, "--yes")
            say(f"    {name} approves; still needed: {told['needed'] or 'nothing'}")

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


def run_demo(keep: Path | None) -> None:
    """The whole tour; raises ServiceFailed if any part of it does not hold."""
    started = time.monotonic()
    with _folder(keep) as folder, tempfile.TemporaryDirectory(prefix="masterkey-outside-") as outside:
        tour = Tour(folder, Path(outside))
        try:
            say("OpenKCM MasterKey: bringing up Temporal, a ledger, six keystores and eight workers ...")
            version = tour.bring_up()
            say(f"  up after {time.monotonic() - started:.1f} s, each role in a process of its own\n")
            sss = Act(_SSS, 3, 5, 0.0, keystores_down=_LOST)
            say(f"1. {_SSS}: Shamir 3 of 5, every shard encrypted through another keystore")
            five = [name for name in tour.stack.keystores if name != SPARE]
            keystores = [word for name in five for word in ("--keystore", name)]
            tour.init(sss, "--mode", "sss", "--threshold", "3", *keystores, show_statement=True)
            say(f"  created in {sss.init_seconds:.1f} s; key check value {sss.kcv}")
            for name in _LOST:
                tour.lose(name)
            say(f"  {' and '.join(_LOST)} are gone for good; the recipient asks for the key")
            tour.unseal(sss, CUSTODIANS[1:2] + CUSTODIANS[3:])
            say(f"  the same MasterKey is back after {sss.unseal_seconds:.1f} s: {_yes(sss.kcv_matches)}\n")
            seal = Act(_SEAL, 1, 2, 0.0, keystores_down=_SEALED_IN[:1])
            say(f"2. {_SEAL}: seal over {' and '.join(_SEALED_IN)}, either of which suffices")
            keystores = [word for name in _SEALED_IN for word in ("--keystore", name)]
            tour.init(seal, "--mode", "seal", *keystores)
            say(f"  created in {seal.init_seconds:.1f} s; key check value {seal.kcv}")
            recovery = Recovery(_SEALED_IN[1])
            delete_bao_key(tour.stack.folder, tour.stack.keystores)
            say(f"  somebody deletes the KMS key of {recovery.deleted} for good; nobody is told")
            healthy, recovery.drill = tour.drill(_SEAL)
            recovery.noticed = not healthy
            say(f"  the daily drill notices: {recovery.drill}")
            say(f"  masterkey recover {_SEAL}: assess, propose, ask the quorum, reconstruct, prove, commit")
            tour.recover(seal, recovery, CUSTODIANS[:3])
            for line in recovery.changes:
                say(f"    {line}")
            say(f"  recovered in {recovery.seconds:.1f} s, opened by {', '.join(recovery.opened_by)}")
            tour.lose(_SEALED_IN[0])
            say(f"  now {_SEALED_IN[0]} goes down too; an enrolled recipient asks, and no human is needed")
            tour.unseal(seal)
            say(f"  the same MasterKey is back after {seal.unseal_seconds:.1f} s: {_yes(seal.kcv_matches)}\n")
            say("3. searching for both MasterKeys in histories, ledger, databases, logs and every worker's memory")
            looked = tour.search({_SSS: sss, _SEAL: seal})
        finally:
            tour.stack.stop()
        left = [process.pid for process in psutil.Process().children(recursive=True) if process.is_running()]
        data: dict[str, Any] = {
            "seconds": round(time.monotonic() - started, 1),
            "temporal_server": version,
            "keystores": [
                {"name": k.name, "type": k.table["type"], "backend": k.backend} for k in tour.stack.keystores.values()
            ],
            "sss": _told(sss),
            "seal": _told(seal),
            "recovery": {**asdict(recovery), "seconds": round(recovery.seconds, 2)},
            "plaintext_found": looked["found"],
            "searched": {key: value for key, value in looked.items() if key != "found"},
            "left_running": len(left),
        }
        recovered = recovery.noticed and recovery.kcv_matches and recovery.replaced_by == SPARE
        good = sss.kcv_matches and seal.kcv_matches and recovered and looked["found"] == 0 and not left
        if not good:
            raise ServiceFailed(f"the demo does not hold: {json.dumps(data)}", next_step="run it with --keep FOLDER")
        answer(data, lambda: _print(data))


def run_dev(folder: Path) -> None:
    """Bring the stack up in `folder`, say how to use it, and keep it up until interrupted."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tour = Tour(folder, folder)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        stack = tour.stack
        stack.start_temporal(port=7233, ui=True)
        stack.keystores.update(component_keystores(folder))
        stack.make_keys()
        stack.make_roster(master_keys=(_SSS, _SEAL))
        stack.write_configurations()
        stack.upgrade_ledger()
        stack.start_roles()
        names = " ".join(f"--keystore {name}" for name in stack.keystores if name != SPARE)
        data = {"folder": str(folder), "temporal": "127.0.0.1:7233", "ui": "http://127.0.0.1:8233"}

        def text() -> None:
            say(f"up: Temporal at 127.0.0.1:7233, its web UI at http://127.0.0.1:8233, everything else in {folder}")
            say("try, in another terminal:")
            say(f"  masterkey --config {folder}/client.toml init {_SSS} --mode sss --threshold 3 {names}")
            say(f"  masterkey --config {folder}/client.toml approve CEREMONY --key {folder}/keys/alice")
            say("Ctrl-C stops everything; emulated cloud keys are gone then, because the emulators keep none")

        answer(data, text)
        sys.stdout.flush()
        stop.wait()
    finally:
        tour.stack.stop()


def temporal_version() -> str:
    """What `temporal --version` says."""
    program = Path(sys.executable).parent / "temporal"
    found = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True)  # noqa: S603
    return found.stdout.strip()


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="masterkey-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _wait(found: Any, child: subprocess.Popen[str], complaint: str) -> None:
    deadline = time.monotonic() + 90
    while not found():
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            raise ServiceFailed(f"{complaint}: {child.communicate()[1].strip()[-600:]}")
        time.sleep(0.02)


def _told(act: Act) -> dict[str, Any]:
    return {
        "master_key": act.master_key,
        "threshold": act.threshold,
        "shards": act.shards,
        "init_seconds": round(act.init_seconds, 2),
        "unseal_seconds": round(act.unseal_seconds, 2),
        "keystores_down": list(act.keystores_down),
        "approved_by": list(act.approved_by),
        "served_by": list(act.served_by),
        "kcv": act.kcv,
        "kcv_matches": act.kcv_matches,
    }


def _yes(good: bool) -> str:
    return "key check value matches" if good else "KEY CHECK VALUE DOES NOT MATCH"


def _print(data: dict[str, Any]) -> None:
    keystores = Table("keystore", "type", "backend", title="keystores", title_justify="left")
    for entry in data["keystores"]:
        keystores.add_row(entry["name"], entry["type"], entry["backend"])
    acts = Table("", "sss", "seal", title="what happened", title_justify="left")
    sss, seal = data["sss"], data["seal"]
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "MasterKey": lambda act: str(act["master_key"]),
        "recoverable from": lambda act: f"any {act['threshold']} of {act['shards']}",
        "keystores down": lambda act: ", ".join(act["keystores_down"]),
        "approved by": lambda act: ", ".join(act["approved_by"]) or "policy, no human",
        "served by": lambda act: ", ".join(act["served_by"]),
        "init / unseal": lambda act: f"{act['init_seconds']} s / {act['unseal_seconds']} s",
        "key check value": lambda act: str(act["kcv"]),
        "the same key came back": lambda act: "yes" if act["kcv_matches"] else "NO",
    }
    for label, cell in rows.items():
        acts.add_row(label, cell(sss), cell(seal))
    OPTIONS.console.print(keystores)
    OPTIONS.console.print(acts)
    recovery = data["recovery"]
    say(
        f"recovery: the key of {recovery['deleted']} was deleted, the drill noticed, and {recovery['replaced_by']} "
        f"took its place in {recovery['seconds']} s"
    )
    looked = data["searched"]
    say(
        f"plaintext found: {data['plaintext_found']} (in {looked['histories']} workflow histories, {looked['files']} "
        f"files, the memory of {looked['processes']} processes; {looked['unreadable']} could not be read)"
    )
    say(f"{data['temporal_server']}; {data['seconds']} s in all; nothing is left running")
