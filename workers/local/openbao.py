"""OpenBao, the real server, in its development mode: unsealed, one node, storage in memory.

Each Transit key gets a policy that allows to encrypt and decrypt with it and to read its description, nothing
else, and a token with that policy alone.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from activities.private import write_private
from workers.local.process import Service, ServiceFailed, free_port, start_service


@dataclass(frozen=True)
class OpenBao:
    """A running server.

    Attributes:
        service: the process; its endpoint is a URL.
        root_token: may do everything; for setting up only.
    """

    service: Service
    root_token: str

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call to its API (`path` after `/v1/`) as root; the answer's JSON, or {} if it has none.

        Raises:
            ServiceFailed: the answer is an error.
        """
        # Here and not above: the embedded stack may run without this kind of keystore, and its SDK.
        import requests

        answer = requests.request(
            method,
            f"{self.service.endpoint}/v1/{path}",
            headers={"X-Vault-Token": self.root_token},
            json=body,
            timeout=10,
        )
        if not answer.ok:
            raise ServiceFailed(f"OpenBao answered HTTP {answer.status_code} to {method} {path}")
        parsed: dict[str, Any] = answer.json() if answer.content else {}
        return parsed

    def create_key(self, name: str, *, key_type: str = "aes256-gcm96") -> None:
        """Make a Transit key."""
        self.ask("POST", f"transit/keys/{name}", {"type": key_type})

    def allow(self, key_name: str) -> None:
        """Make the policy of a key's worker, named as the key."""
        rules = {f"transit/keys/{key_name}": "read"}
        rules |= {f"transit/{call}/{key_name}": "update" for call in ("encrypt", "decrypt")}
        policy = "".join(f'path "{path}" {{ capabilities = ["{what}"] }}\n' for path, what in rules.items())
        self.ask("PUT", f"sys/policies/acl/{key_name}", {"policy": policy})

    def write_token(self, key_name: str, file: Path) -> Path:
        """Write a token that may use this key only, to a new file that only its owner may read."""
        self.allow(key_name)
        token = {"policies": [key_name], "no_default_policy": True, "no_parent": True, "type": "batch", "ttl": "720h"}
        answer = self.ask("POST", "auth/token/create", token)
        file.unlink(missing_ok=True)
        write_private(file, answer["auth"]["client_token"].encode())
        return file


def start_openbao(folder: Path, port: int = 0) -> OpenBao:
    """Start OpenBao on 127.0.0.1 with Transit mounted; its log, `folder/openbao.log`, shows the root token.

    Raises:
        ServiceFailed: it did not become ready.
        ConfigurationInvalid: `bao` is not installed.
    """
    port, root_token = port or free_port(), secrets.token_hex(16)
    endpoint = f"http://127.0.0.1:{port}"
    service = start_service(
        "OpenBao",
        ["bao", "server", "-dev", "-dev-no-store-token", f"-dev-listen-address=127.0.0.1:{port}"],
        log=folder / "openbao.log",
        ready=lambda: _unsealed(endpoint),
        endpoint=endpoint,
        env={"BAO_DEV_ROOT_TOKEN_ID": root_token},
    )
    bao = OpenBao(service, root_token)
    bao.ask("POST", "sys/mounts/transit", {"type": "transit"})
    # Else whoever may create would make, by encrypting, a key that nobody planned.
    bao.ask("POST", "transit/config/keys", {"disable_upsert": True})
    return bao


def _unsealed(endpoint: str) -> bool:
    import requests

    try:
        return requests.get(f"{endpoint}/v1/sys/health", timeout=1).ok
    except requests.RequestException:
        return False
