"""A whole installation in one folder: keys, roster, a configuration for each role, and the processes.

Every role gets a configuration of its own with only its own secrets, as in production; they just happen to
run on one machine. For the demo, `masterkey dev` and the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from activities.identity import generate_identity
from activities.oneshot.installed import python
from workers.local.process import Service, ServiceFailed, launch_service, wait_until_ready
from workers.local.temporal import start_temporal
from workers.roles import READY

CUSTODIANS = ("alice", "bob", "carol", "dave", "erin")


@dataclass(frozen=True)
class KeystoreSetup:
    """A keystore of the stack: its table in the configuration, and the variables its worker needs.

    Attributes:
        name: configured name.
        table: settings of its kind, `type` included.
        env: variables of its worker.
        backend: the service, in words.
        service: the service's process, if it has one of its own.
    """

    name: str
    table: Mapping[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)
    backend: str = ""
    service: Service | None = None


@dataclass
class Stack:
    """A running installation."""

    folder: Path
    keystores: dict[str, KeystoreSetup] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    temporal: Service | None = None
    genesis: str = ""
    metrics_port: int | None = None
    """Where the orchestrator serves Prometheus metrics, if anywhere."""
    bundles: bool = True
    """Whether the orchestrator writes a bundle after every commit, into `bundles`."""
    one_keystore_process: bool = False
    """Serve all keystores from one process: quicker to start, for tests that are not about separation."""

    # --- setting up --------------------------------------------------------------------------------------

    def make_keys(self) -> None:
        """Keys for five custodians (one of them RSA), the strongroom, one recipient, and each keystore's worker."""
        keys = self.folder / "keys"
        for name in CUSTODIANS:
            if not (keys / name).exists():
                kind = ["-t", "rsa", "-b", "3072"] if name == "bob" else ["-t", "ed25519"]
                keys.mkdir(parents=True, exist_ok=True)
                command = ["ssh-keygen", "-q", *kind, "-N", "", "-C", name, "-f", str(keys / name)]
                subprocess.run(command, check=True)  # noqa: S603 - our own arguments
        for name in ("strongroom", "recipient", *self.keystores):
            if not (keys / name).exists():
                generate_identity(keys / name)

    def make_roster(self, *, quorum: int = 3, master_keys: Sequence[str] = ("eu10", "eu20")) -> None:
        """Describe everyone and make the first roster version with `masterkey roster init`."""
        lines = [f"[change]\ncustodians = {json.dumps(list(CUSTODIANS))}\nquorum = {quorum}\n"]
        for name in CUSTODIANS:
            lines.append(f'[[custodians]]\nname = "{name}"\npublic_key_file = "keys/{name}.pub"\n')
        for index, name in enumerate(self.keystores):
            lines.append(
                f'[[keystores]]\nname = "{name}"\npublic_key_file = "keys/{name}.pub"\n'
                f'custodians = ["{CUSTODIANS[index % len(CUSTODIANS)]}"]\n'
            )
        lines.append('[[strongrooms]]\nname = "vault"\npublic_key_file = "keys/strongroom.pub"\n')
        lines.append(
            '[[recipients]]\nname = "crypto"\npublic_key_file = "keys/recipient.pub"\n'
            f"master_keys = {json.dumps(list(master_keys))}\n"
        )
        lines.append(
            f'[[governance]]\nmaster_key = "*"\ncustodians = {json.dumps(list(CUSTODIANS))}\n'
            f"quorum = {quorum}\nminimum_threshold = 2\n"
        )
        description = self.folder / "roster.toml"
        description.write_text("\n".join(lines), encoding="utf-8")
        if not (self.folder / "roster.json").exists():
            made = self.masterkey("roster", "init", str(description), "--out", str(self.folder / "roster.json"))
            self.genesis = str(made["digest"])
        else:
            self.genesis = str(tomllib.loads((self.folder / "client.toml").read_text())["roster"]["genesis"])

    def write_configurations(self) -> None:
        """One file for each role, with only what that role may have."""
        orchestrator: dict[str, Mapping[str, Any]] = {"ledger": {"url": "sqlite:///masterkey.db"}}
        if self.bundles:
            orchestrator["bundle"] = {"directory": "bundles"}
        if self.metrics_port is not None:
            orchestrator["metrics"] = {"listen": f"127.0.0.1:{self.metrics_port}"}
        self.write_configuration("orchestrator", orchestrator)
        self.write_configuration("strongroom", {"strongroom": {"identity": "keys/strongroom"}})
        tables: dict[str, Mapping[str, Any]] = {}
        for name, keystore in self.keystores.items():
            table = {"identity": f"keys/{name}", "state": f"state/{name}", **keystore.table}
            tables[name] = table
            self.write_configuration(f"keystore-{name}", {"keystores": {name: table}})
        self.write_configuration("keystores", {"keystores": tables})
        self.write_configuration("client", {"recipient": {"identity": "keys/recipient"}})

    def write_configuration(self, role: str, tables: Mapping[str, Mapping[str, Any]]) -> Path:
        """Write `role`.toml with the pinned roster and these tables."""
        everything = {"roster": {"file": "roster.json", "genesis": self.genesis, "minimum_version": 1}, **tables}
        path = self.folder / f"{role}.toml"
        path.write_text(to_toml(everything), encoding="utf-8")
        return path

    def pin(self, kcvs: Mapping[str, str]) -> None:
        """Pin key check values in the recipient's configuration, as its administrator does after an init."""
        self.write_configuration("client", {"recipient": {"identity": "keys/recipient", "kcv": dict(kcvs)}})

    # --- running -----------------------------------------------------------------------------------------

    def start_temporal(self, *, port: int | None = None, ui: bool = False) -> None:
        """Start the Temporal development server."""
        self.temporal = start_temporal(self.folder / "temporal", port=port, ui=ui)

    def upgrade_ledger(self) -> None:
        """Create or migrate the ledger."""
        self.masterkey("ledger", "upgrade", config="orchestrator")

    def environment(self) -> dict[str, str]:
        """Variables that every role needs: where Temporal is."""
        return {"TEMPORAL_ADDRESS": self.temporal.endpoint} if self.temporal else {}

    def start_role(self, role: str) -> None:
        """Start a worker (orchestrator, strongroom, or keystore-NAME) and wait until it is ready."""
        self._launch(role)()

    def start_roles(self) -> None:
        """Start all workers, then wait for all."""
        waits = [self._launch(role) for role in self.roles()]
        for wait in waits:
            wait()

    def roles(self) -> list[str]:
        """All workers of this installation."""
        keystores = ["keystores"] if self.one_keystore_process else [f"keystore-{name}" for name in self.keystores]
        return ["orchestrator", "strongroom", *keystores]

    def _launch(self, role: str) -> Callable[[], None]:
        words, served = [role], list[str]()
        if role.startswith("keystore"):
            served = list(self.keystores) if role == "keystores" else [role.removeprefix("keystore-")]
            words = ["keystore", *served]
        own = {variable: value for name in served for variable, value in self.keystores[name].env.items()}
        log = self.folder / "logs" / f"{role}.log"
        start = log.stat().st_size if log.exists() else 0
        service = self.services[role] = launch_service(
            role,
            [*COMMAND, "worker", *words, "--config", str(self.folder / f"{role}.toml")],
            log=log,
            env={**self.environment(), **own},
        )
        return lambda: wait_until_ready(service, lambda: READY.encode() in log.read_bytes()[start:])

    def stop(self) -> None:
        """Stop everything that was started, the workers first."""
        for service in reversed(list(self.services.values())):
            service.stop()
        for keystore in self.keystores.values():
            if keystore.service is not None:
                keystore.service.stop()
        if self.temporal is not None:
            self.temporal.stop()

    # --- using -------------------------------------------------------------------------------------------

    def command(self, *words: str, config: str = "client") -> list[str]:
        """The command line of `masterkey` with these words, for this installation, under `--json`."""
        return [*COMMAND, "--json", "--config", str(self.folder / f"{config}.toml"), *words]

    def masterkey(self, *words: str, config: str = "client", timeout: float = 120) -> dict[str, Any]:
        """Run `masterkey --json ...` and give back its answer.

        Raises:
            ServiceFailed: it failed; the message is the command's own.
        """
        done = subprocess.run(  # noqa: S603 - our own command line
            self.command(*words, config=config),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.environment()},
        )
        if done.returncode != 0:
            raise ServiceFailed(f"masterkey {' '.join(words[:2])}: {done.stderr.strip()[-600:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def background(self, *words: str, config: str = "client") -> subprocess.Popen[str]:
        """Start `masterkey --json ...` and go on."""
        return subprocess.Popen(  # noqa: S603 - our own command line
            self.command(*words, config=config),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **self.environment()},
        )


COMMAND = tuple(python("workers.cli"))


def to_toml(tables: Mapping[str, Any], prefix: str = "") -> str:
    """Tables of text, numbers, booleans and lists as TOML."""
    plain = {key: value for key, value in tables.items() if not isinstance(value, Mapping)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
    for key, value in tables.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{prefix}{key}]", to_toml(value, f"{prefix}{key}.")]
    return "\n".join(lines)
