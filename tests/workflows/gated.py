"""Workers that stop where a test says, so that something may be killed exactly there.

The workers are the product's own roles in processes of their own, with an interceptor around their
activities. A test asks for a gate with a file, `gates/WHOSE.ACTIVITY.before` or `.after` (whose: a MasterKey's
name for what changes it, else a ceremony's id): the next activity of that kind stops before its work, or after
its work and before its answer. It renames the file to `....reached` and waits until the test removes that. What
writes down a phase can be told by it, as `record_events@proving`. A file that says `every` stops also those of that
kind that come after it, the same one tried again among them.

By hand: `python -m tests.workflows.gated GATES CONFIG ROLE [KEYSTORE...]`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from deploy.emulators.fault_proxy import FaultProxy, Reset, Rule
from tests.conftest import NAMES, fresh_names
from tests.workflows.people import House
from workers import roles
from workers.config import Configuration
from workers.local.key_vault import KeyVault, start_key_vault
from workers.local.openbao import OpenBao, start_openbao
from workers.local.process import Service, launch_service, wait_until_ready
from workers.local.stack import KeystoreSetup, Stack

VAULT = "vault-4"
EVERY = "every"
_WHOSE = re.compile(r"^masterkey/([a-z0-9-]+)(\.[a-z]+\.[0-9a-f]+)?")


class Gates(Interceptor):
    """Stops activities at gates."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _Gate(next, self._folder)


class _Gate(ActivityInboundInterceptor):
    def __init__(self, inner: ActivityInboundInterceptor, folder: Path) -> None:
        super().__init__(inner)
        self._folder = folder

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        phase = getattr(input.args[0], "phase", "") if input.args else ""
        await self._stop("before", phase)
        answer = await super().execute_activity(input)
        await self._stop("after", phase)
        return answer

    async def _stop(self, when: str, phase: str) -> None:
        info = activity.info()
        match = _WHOSE.match(info.workflow_id or "")
        whose = match.group().partition("/")[2] if match else ""
        kinds = [info.activity_type, *([f"{info.activity_type}@{phase}"] if phase else [])]
        reached = next((gate for kind in kinds if (gate := self._reach(f"{whose}.{kind}.{when}"))), None)
        if reached is None:
            return
        while reached.exists():
            # Not for the ledger's: a heartbeat of an activity in a thread blocks this loop.
            if info.heartbeat_timeout:
                activity.heartbeat()
            await asyncio.sleep(0.05)

    def _reach(self, name: str) -> Path | None:
        reached = self._folder / f"{name}.reached"
        try:
            return (self._folder / name).rename(reached)
        except FileNotFoundError:
            return reached if reached.exists() and reached.read_text(encoding="ascii") == EVERY else None


@dataclass(frozen=True)
class Gate:
    """A gate that a test has asked for."""

    file: Path
    every: bool = False

    @property
    def reached(self) -> bool:
        """Whether an activity waits at it."""
        return self.file.with_name(self.file.name + ".reached").exists()

    def close(self) -> None:
        """Ask for it."""
        new = self.file.with_name(self.file.name + ".new")
        new.write_text(EVERY if self.every else "", encoding="ascii")
        new.rename(self.file)

    def open(self) -> None:
        """Let the activity go on, or take the gate away."""
        for path in (self.file, self.file.with_name(self.file.name + ".reached")):
            path.unlink(missing_ok=True)


@dataclass
class GatedStack(Stack):
    """A stack whose workers stop at gates."""

    bundles: bool = False
    """Recorded histories name no folder of this machine."""

    @property
    def gates(self) -> Path:
        """Where tests ask for gates."""
        return self.folder / "gates"

    def _launch(self, role: str) -> Callable[[], None]:
        words = role.split("-", 1) if role.startswith("keystore-") else [role]
        own = self.keystores[words[1]].env if len(words) > 1 else {}
        log = self.folder / "logs" / f"{role}.log"
        start = log.stat().st_size if log.exists() else 0
        config = str(self.folder / f"{role}.toml")
        service = self.services[role] = launch_service(
            role,
            [sys.executable, "-m", "tests.workflows.gated", str(self.gates), config, *words],
            log=log,
            env={**self.environment(), **own},
        )
        return lambda: wait_until_ready(service, lambda: roles.READY.encode() in log.read_bytes()[start:])


@dataclass
class GatedHouse(House):
    """A house that tests may break; each leaves it whole.

    Three keystores are keys of one OpenBao, each behind a proxy of its own. The fourth, which no init takes
    unasked, is a Key Vault that keeps its keys when it is killed.
    """

    proxies: tuple[FaultProxy, ...] = ()
    bao: OpenBao | None = None

    @classmethod
    def start(cls, folder: Path, count: int = 3) -> GatedHouse:
        """Start everything; each keystore has a process of its own."""
        bao = start_openbao(folder / "openbao")
        proxies = []
        stack = GatedStack(folder)
        stack.services["openbao"] = bao.service
        stack.gates.mkdir(parents=True)
        try:
            for index in range(1, count + 1):
                proxies.append(FaultProxy(bao.service.endpoint).__enter__())
                key = f"wrap-{index}"
                bao.create_key(key)
                token = bao.write_token(key, folder / f"{key}.token")
                table = {"type": "transit", "address": proxies[-1].url, "key_name": key, "token_file": str(token)}
                stack.keystores[f"bao-{index}"] = KeystoreSetup(f"bao-{index}", table, backend="OpenBao")
            vault = start_key_vault(folder / "key-vault", state=folder / "key-vault" / "keys.json")
            stack.services["key-vault"] = vault.service
            stack.keystores[VAULT] = KeystoreSetup(VAULT, vault.settings(vault.create_key("wrap", size=2048)))
            stack.start_temporal()
            stack.make_keys()
            stack.make_roster(master_keys=NAMES)
            stack.write_configurations()
            stack.upgrade_ledger()
            stack.start_roles()
        except BaseException:
            stack.stop()
            raise
        return cls(stack, None, fresh_names(), proxies=tuple(proxies), bao=bao)  # type: ignore[arg-type]

    def stop(self) -> None:
        """Stop everything."""
        self.stack.stop()
        for proxy in self.proxies:
            proxy.__exit__(None, None, None)

    def gate(self, whose: str, activity_type: str, when: str = "before") -> Gate:
        """Ask for a gate."""
        gate = Gate(self.gates / f"{whose}.{activity_type}.{when}")
        gate.close()
        return gate

    @property
    def gates(self) -> Path:
        """Where gates are asked for."""
        assert isinstance(self.stack, GatedStack)
        return self.stack.gates

    def worker(self, role: str) -> Service:
        """The process of a role."""
        return self.stack.services[role]

    def processes(self, role: str) -> list[str]:
        """The workers of a role: `keystores` are several."""
        return [f"keystore-{name}" for name in self.keystores] if role == "keystores" else [role]

    @contextmanager
    def services_gone(self) -> Iterator[None]:
        """No keystore's service answers: connections are reset, and the fourth's process is killed."""
        for proxy in self.proxies:
            proxy.rule = Reset()
        self.kill_key_vault()
        try:
            yield
        finally:
            for proxy in self.proxies:
                proxy.rule = Rule()
            self.start_key_vault_again()

    def kill(self, *some: str) -> None:
        """SIGKILL workers."""
        for role in some:
            self.worker(role).kill()

    def start_again(self, *some: str) -> None:
        """Start workers that were killed."""
        waits = [self.stack._launch(role) for role in some]
        for wait in waits:
            wait()

    def lose(self, keystore: str) -> None:
        """Delete the key of one of the first three keystores, for good."""
        assert self.bao is not None
        key = self.stack.keystores[keystore].table["key_name"]
        self.bao.ask("POST", f"transit/keys/{key}/config", {"deletion_allowed": True})
        self.bao.ask("DELETE", f"transit/keys/{key}")

    def make_anew(self, keystore: str) -> None:
        """Make another key by the name of one that was lost: it opens nothing of what that one wrapped."""
        assert self.bao is not None
        self.bao.create_key(self.stack.keystores[keystore].table["key_name"])

    def kill_key_vault(self) -> None:
        """SIGKILL the fourth keystore's service."""
        self.stack.services["key-vault"].kill()

    def start_key_vault_again(self) -> KeyVault:
        """Start it on the same port, with the keys that it had."""
        folder, port = (
            self.stack.folder / "key-vault",
            int(self.stack.services["key-vault"].endpoint.rpartition(":")[2]),
        )
        vault = start_key_vault(folder, port, state=folder / "keys.json")
        self.stack.services["key-vault"] = vault.service
        return vault

    def kill_temporal(self) -> None:
        """SIGKILL Temporal's server."""
        assert self.stack.temporal is not None
        self.stack.temporal.kill()

    def start_temporal_again(self) -> None:
        """Start it on the same database and port."""
        assert self.stack.temporal is not None
        self.stack.start_temporal(port=int(self.stack.temporal.endpoint.rpartition(":")[2]))


async def wait_for_gates(gates: Sequence[Gate], limit: float = 30.0) -> None:
    """Wait until an activity stands at each gate."""
    deadline = time.monotonic() + limit
    while not all(gate.reached for gate in gates):
        missing = [gate.file.name for gate in gates if not gate.reached]
        assert time.monotonic() < deadline, f"nobody came to {missing}"
        await asyncio.sleep(0.05)


def main() -> None:
    """Run a role with gates."""
    gates, config, role, *keystores = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    vars(roles)["Worker"] = functools.partial(Worker, interceptors=[Gates(Path(gates))])
    configuration = Configuration.load(Path(config))
    if role == "orchestrator":
        asyncio.run(roles.run_orchestrator(configuration))
    elif role == "strongroom":
        asyncio.run(roles.run_strongroom(configuration))
    else:
        asyncio.run(roles.run_keystores(configuration, keystores))


if __name__ == "__main__":
    main()
