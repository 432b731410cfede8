"""A house that tests may break: its workers stop at gates, its keystores' services and keys can be taken away.

Its roles run in the test's own process; `GatedHouse.start(..., apart=...)` has some, or all, that can be killed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.emulators.fault_proxy import FaultProxy, Reset, Rule
from tests.driving.gates import Gate, Gates
from tests.driving.house import House
from tests.driving.site import SharedTemporal, Site, fresh_names
from workers.local.key_vault import KeyVault, start_key_vault
from workers.local.openbao import OpenBao, start_openbao
from workers.local.process import Service
from workers.local.stack import KeystoreSetup

VAULT = "vault-4"


@dataclass
class GatedHouse(House):
    """A house that tests may break; each leaves it whole.

    Three keystores are keys of one OpenBao, each behind a proxy of its own. The fourth, which no init takes unasked, is
    another of them; or a Key Vault that keeps its keys when it is killed.
    """

    stack: Site
    server: SharedTemporal = None  # type: ignore[assignment]
    proxies: tuple[FaultProxy, ...] = ()
    bao: OpenBao | None = None
    interceptor: Gates | None = None

    @classmethod
    def start(cls, folder: Path, server: SharedTemporal, *, vault: bool = False, **more: Any) -> GatedHouse:
        """Start everything; the caller connects.

        Args:
            folder: of its own.
            server: Temporal.
            vault: whether the fourth keystore is a Key Vault.
            more: attributes of the site, such as `apart`.
        """
        bao = start_openbao(folder / "openbao")
        proxies, keystores, services = list[FaultProxy](), dict[str, KeystoreSetup](), {"openbao": bao.service}
        gates = folder / "gates"
        gates.mkdir(parents=True)
        try:
            for index in range(1, 4 if vault else 5):
                proxies.append(FaultProxy(bao.service.endpoint).__enter__())
                key = f"wrap-{index}"
                bao.create_key(key)
                token = bao.write_token(key, folder / f"{key}.token")
                table = {"type": "transit", "address": proxies[-1].url, "key_name": key, "token_file": str(token)}
                keystores[f"bao-{index}"] = KeystoreSetup(f"bao-{index}", table, backend="OpenBao")
            if vault:
                started = start_key_vault(folder / "key-vault", state=folder / "key-vault" / "keys.json")
                services["key-vault"] = started.service
                keystores[VAULT] = KeystoreSetup(VAULT, started.settings(started.create_key("wrap", size=2048)))
            commands = {role: command_of(gates, folder, role) for role in more.get("apart", ())}
            # Recorded histories name no folder of this machine, so there are no bundles.
            interceptor = Gates(gates)
            own = {"services": services, "bundles": False, "interceptors": [interceptor], "commands": commands}
            site = Site.start(folder, server, keystores, **own, **more)
        except BaseException:
            for service in services.values():
                service.stop()
            raise
        return cls(site, None, fresh_names(), server=server, proxies=tuple(proxies), bao=bao, interceptor=interceptor)  # type: ignore[arg-type]

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
        return self.stack.folder / "gates"

    def worker(self, role: str) -> Service:
        """The process of a role that is apart."""
        return self.stack.services[role]

    @contextmanager
    def without(self, *some: str) -> Iterator[None]:
        """These workers are away."""
        self.kill(*some)
        try:
            yield
        finally:
            self.start_again(*some)

    def processes(self, role: str) -> list[str]:
        """The workers of a role: `keystores` are several."""
        return [f"keystore-{name}" for name in self.keystores] if role == "keystores" else [role]

    @contextmanager
    def services_gone(self) -> Iterator[None]:
        """No keystore's service answers: connections are reset, and the fourth's process is killed."""
        for proxy in self.proxies:
            proxy.rule = Reset()
        if VAULT in self.keystores:
            self.kill_key_vault()
        try:
            yield
        finally:
            for proxy in self.proxies:
                proxy.rule = Rule()
            if VAULT in self.keystores:
                self.start_key_vault_again()

    def kill(self, *some: str) -> None:
        """End workers: SIGKILL for those that are apart."""
        self.stack.kill(*some)

    def start_again(self, *some: str) -> None:
        """Start workers that were ended."""
        self.stack.start_again(*some)

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
        self.server.kill()

    def start_temporal_again(self) -> None:
        """Start it on the same database and port."""
        self.server.start_again()


def command_of(gates: Path, folder: Path, role: str) -> list[str]:
    """The command of a role that is a process of its own, with gates."""
    words = role.split("-", 1)
    return [sys.executable, "-m", "tests.driving.gates", str(gates), str(folder / f"{role}.toml"), *words]
