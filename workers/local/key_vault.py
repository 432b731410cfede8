"""Azure Key Vault, or a Managed HSM, as the stand-in of `deploy.emulators.key_vault` speaks for it."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from activities.oneshot.installed import python
from workers.local.process import Service, ServiceFailed, free_port, port_answers, start_service

_API_VERSION = "2025-07-01"


@dataclass(frozen=True)
class KeyVault:
    """A running stand-in.

    Attributes:
        service: the process; its endpoint is an `https` URL.
        url: what its key ids begin with.
        token_file: the bearer token that may do everything; only its owner may read it.
        ca_file: the certificate to trust.
    """

    service: Service
    url: str
    token_file: Path
    ca_file: Path

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One call to its API (`path` begins with `/keys/` or `/deletedkeys/`); the answer's JSON.

        Raises:
            ServiceFailed: the answer is an error.
        """
        request = urllib.request.Request(  # noqa: S310 - https, to a service that we started
            f"{self.service.endpoint}{path}?api-version={_API_VERSION}",
            method=method,
            data=json.dumps(body or {}).encode(),
            headers={
                "Authorization": f"Bearer {self.token_file.read_text(encoding='ascii').strip()}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.trust()) as answer:  # noqa: S310 - as above
                parsed: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise ServiceFailed(f"Key Vault answered HTTP {error.code} to {method} {path}") from None
        return parsed

    def trust(self) -> ssl.SSLContext:
        """How to verify its certificate."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    def create_key(self, name: str, kty: str = "RSA", *, size: int | None = None) -> str:
        """Make a key, or a new version of it; returns its URL without version.

        Args:
            name: letters, digits and hyphens.
            kty: `RSA` in a vault, `oct-HSM` or `RSA-HSM` in a Managed HSM.
            size: in bits; 3072 for RSA and 256 for AES unless set.
        """
        size = size or (256 if kty == "oct-HSM" else 3072)
        made = self.ask("POST", f"/keys/{name}/create", {"kty": kty, "key_size": size})
        return str(made["key"]["kid"]).rpartition("/")[0]

    def set_enabled(self, name: str, enabled: bool, version: str = "") -> None:
        """Enable or disable a version of a key, the latest unless one is named."""
        self.ask("PATCH", f"/keys/{name}/{version}", {"attributes": {"enabled": enabled}})

    def settings(self, key_url: str) -> dict[str, Any]:
        """The table that configures a keystore with this key."""
        return {
            "type": "azure-key-vault",
            "key_id": key_url,
            "endpoint": self.service.endpoint,
            "ca_file": str(self.ca_file),
            "token_file": str(self.token_file),
        }


def start_key_vault(
    folder: Path,
    port: int = 0,
    *,
    flavour: Literal["vault", "managed-hsm"] = "vault",
    url: str = "",
    state: Path | None = None,
) -> KeyVault:
    """Start the stand-in on 127.0.0.1; its log is `folder/key-vault.log`.

    Args:
        folder: gets its log, token and certificate.
        port: where to listen; 0 chooses one.
        flavour: a vault has RSA keys, a Managed HSM RSA and AES keys.
        url: what its key ids begin with, so that they stay the same on another port; its own address unless set.
        state: file that keeps its keys when it stops.

    Raises:
        ServiceFailed: it did not become ready.
    """
    port = port or free_port()
    endpoint = f"https://127.0.0.1:{port}"
    words = ["--port", str(port), "--folder", str(folder), "--flavour", flavour, "--vault-url", url or endpoint]
    service = start_service(
        "Key Vault",
        [*python("deploy.emulators.key_vault", *words), *(["--state", str(state)] if state else [])],
        log=folder / "key-vault.log",
        ready=lambda: port_answers(port),
        endpoint=endpoint,
    )
    return KeyVault(service, url or endpoint, folder / "token", folder / "ca.pem")
