"""Google Cloud KMS, emulated by drongo: it encodes rather than encrypts, in memory, forgotten when it stops.

It binds key and associated data, and sends CRC32C; it knows no versions, states, quotas or policies, and
looks at no checksum that it is sent. `deploy.emulators.fault_proxy` adds those answers.
"""

from __future__ import annotations

from pathlib import Path

from activities.oneshot.installed import python
from workers.local.process import Service, ServiceFailed, free_port, port_answers, start_service

KEY_RING = "projects/masterkey/locations/europe-west6/keyRings/embedded"
"""Where the embedded stack's keys are."""


def start_drongo(folder: Path, port: int = 0) -> Service:
    """Start drongo on 127.0.0.1; its endpoint is a URL, its log `folder/drongo.log`.

    Raises:
        ServiceFailed: it did not become ready.
    """
    port = port or free_port()
    return start_service(
        "drongo",
        python("drongo.cli", "server", "--host", "127.0.0.1", "--port", str(port)),
        log=folder / "drongo.log",
        ready=lambda: port_answers(port),
        endpoint=f"http://127.0.0.1:{port}",
    )


def create_crypto_key(endpoint: str, key_id: str, *, key_ring: str = KEY_RING) -> str:
    """Make a symmetric encryption key, and its key ring if there is none; returns the key's resource name.

    Raises:
        ServiceFailed: drongo refused.
    """
    # Here and not above: the embedded stack may run without this kind of keystore, and its SDK.
    import requests

    location, _, ring = key_ring.partition("/keyRings/")
    calls: tuple[tuple[str, dict[str, str]], ...] = (
        (f"{location}/keyRings?keyRingId={ring}", {}),
        (f"{key_ring}/cryptoKeys?cryptoKeyId={key_id}", {"purpose": "ENCRYPT_DECRYPT"}),
    )
    for path, body in calls:
        answer = requests.post(f"{endpoint}/v1/{path}", json=body, timeout=10)
        if not answer.ok and answer.status_code != requests.codes.conflict:
            raise ServiceFailed(f"drongo answered HTTP {answer.status_code} to {path}")
    return f"{key_ring}/cryptoKeys/{key_id}"
