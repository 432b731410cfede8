"""`masterkey demo`, the main job on real components."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from workers.local.components import SPARE, delete_bao_key
from workers.local.process import ServiceFailed
from workers.local.scenario import SEAL, SSS, Demo, Recovery, Scenario
from workers.local.stack import CUSTODIANS
from workers.output import AUTO_UNSEAL, OPTIONS, answer, say

_LOST = ("aws-fra", "gcp-zrh")
_SEALED_IN = ("azure-ams", "bao-fra")


def run_demo(keep: Path | None) -> None:
    """The whole demo; raises ServiceFailed if any part of it does not hold."""
    started = time.monotonic()
    with _folder(keep) as folder, tempfile.TemporaryDirectory(prefix="masterkey-outside-") as outside:
        demo = Demo(folder, Path(outside))
        try:
            say("OpenKCM MasterKey: bringing up Temporal, a ledger, six keystores and eight workers ...")
            version = demo.bring_up()
            say(f"  up after {time.monotonic() - started:.1f} s, each role in a process of its own\n")
            sss = Scenario(SSS, 3, 5, 0.0, keystores_down=_LOST)
            say(f"1. {SSS}: Shamir 3 of 5, every shard encrypted through another keystore")
            five = [name for name in demo.stack.keystores if name != SPARE]
            keystores = [word for name in five for word in ("--keystore", name)]
            demo.init(sss, "--mode", "sss", "--threshold", "3", *keystores, show_statement=True)
            say(f"  created in {sss.init_seconds:.1f} s; key check value {sss.kcv}")
            for name in _LOST:
                demo.lose(name)
            say(f"  {' and '.join(_LOST)} are gone permanently; the recipient asks for the key")
            demo.unseal(sss, CUSTODIANS[1:2] + CUSTODIANS[3:])
            say(f"  the same MasterKey is back after {sss.unseal_seconds:.1f} s: {_yes(sss.kcv_matches)}\n")
            seal = Scenario(SEAL, 1, 2, 0.0, keystores_down=_SEALED_IN[:1])
            say(f"2. {SEAL}: auto-unseal over {' and '.join(_SEALED_IN)}, either of which suffices")
            keystores = [word for name in _SEALED_IN for word in ("--keystore", name)]
            demo.init(seal, "--mode", "seal", *keystores)
            say(f"  created in {seal.init_seconds:.1f} s; key check value {seal.kcv}")
            recovery = Recovery(_SEALED_IN[1])
            delete_bao_key(demo.stack.folder, demo.stack.keystores)
            say(f"  somebody permanently deletes the KMS key of {recovery.deleted}; nobody is notified")
            healthy, recovery.drill = demo.drill(SEAL)
            recovery.noticed = not healthy
            say(f"  the daily drill notices: {recovery.drill}")
            say(f"  masterkey recover {SEAL}: assess, propose, ask the quorum, reconstruct, prove, commit")
            demo.recover(seal, recovery, CUSTODIANS[:3])
            for line in recovery.changes:
                say(f"    {line}")
            say(f"  recovered in {recovery.seconds:.1f} s, opened by {', '.join(recovery.opened_by)}")
            demo.lose(_SEALED_IN[0])
            say(f"  now {_SEALED_IN[0]} goes down too; an enrolled recipient asks, and no human is needed")
            demo.unseal(seal)
            say(f"  the same MasterKey is back after {seal.unseal_seconds:.1f} s: {_yes(seal.kcv_matches)}\n")
            say("3. searching for both MasterKeys in histories, ledger, databases, logs and every worker's memory")
            looked = demo.search({SSS: sss, SEAL: seal})
        finally:
            demo.stack.stop()
        left = [process.pid for process in psutil.Process().children(recursive=True) if process.is_running()]
        data: dict[str, Any] = {
            "seconds": round(time.monotonic() - started, 1),
            "temporal_server": version,
            "keystores": [
                {"name": k.name, "type": k.table["type"], "backend": k.backend} for k in demo.stack.keystores.values()
            ],
            "sss": _as_json(sss),
            "seal": _as_json(seal),
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


def _as_json(scenario: Scenario) -> dict[str, Any]:
    return {
        "master_key": scenario.master_key,
        "threshold": scenario.threshold,
        "shards": scenario.shards,
        "init_seconds": round(scenario.init_seconds, 2),
        "unseal_seconds": round(scenario.unseal_seconds, 2),
        "keystores_down": list(scenario.keystores_down),
        "approved_by": list(scenario.approved_by),
        "served_by": list(scenario.served_by),
        "kcv": scenario.kcv,
        "kcv_matches": scenario.kcv_matches,
    }


def _yes(good: bool) -> str:
    return "key check value matches" if good else "KEY CHECK VALUE DOES NOT MATCH"


def _print(data: dict[str, Any]) -> None:
    keystores = Table("keystore", "type", "backend", title="keystores", title_justify="left")
    for entry in data["keystores"]:
        keystores.add_row(entry["name"], entry["type"], entry["backend"])
    scenarios = Table("", "sss", AUTO_UNSEAL, title="what happened", title_justify="left")
    sss, seal = data["sss"], data["seal"]
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "MasterKey": lambda scenario: str(scenario["master_key"]),
        "recoverable from": lambda scenario: f"any {scenario['threshold']} of {scenario['shards']}",
        "keystores down": lambda scenario: ", ".join(scenario["keystores_down"]),
        "approved by": lambda scenario: ", ".join(scenario["approved_by"]) or "policy, no human",
        "served by": lambda scenario: ", ".join(scenario["served_by"]),
        "init / unseal": lambda scenario: f"{scenario['init_seconds']} s / {scenario['unseal_seconds']} s",
        "key check value": lambda scenario: str(scenario["kcv"]),
        "the same key came back": lambda scenario: "yes" if scenario["kcv_matches"] else "NO",
    }
    for label, cell in rows.items():
        scenarios.add_row(label, cell(sss), cell(seal))
    OPTIONS.console.print(keystores)
    OPTIONS.console.print(scenarios)
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
