"""Shares are OpenBao's own format, both ways, shown on the real server: in the worst emergency its tools work."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from activities.crypto import shamir
from workers.local.process import Service, free_port, port_answers, start_service


@pytest.fixture
def sealed_server(tmp_path: Path) -> Iterator[Service]:
    """A real OpenBao server that is not initialised."""
    port = free_port()
    configuration = tmp_path / "bao.hcl"
    configuration.write_text(
        f'storage "inmem" {{}}\nlistener "tcp" {{\n  address = "127.0.0.1:{port}"\n  tls_disable = true\n}}\n'
        f'api_addr = "http://127.0.0.1:{port}"\n',
        encoding="utf-8",
    )
    service = start_service(
        "OpenBao",
        ["bao", "server", f"-config={configuration}"],
        log=tmp_path / "bao.log",
        ready=lambda: port_answers(port),
        endpoint=f"http://127.0.0.1:{port}",
    )
    yield service
    service.kill()


def put(service: Service, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = requests.put(f"{service.endpoint}/v1/{path}", json=body, timeout=20)
    assert answer.ok, answer.text
    parsed: dict[str, Any] = answer.json()
    return parsed


def test_openbao_unseals_with_shares_that_we_split_from_what_we_recombined(sealed_server: Service) -> None:
    theirs = put(sealed_server, "sys/init", {"secret_shares": 5, "secret_threshold": 3})["keys_base64"]
    key = shamir.combine([base64.b64decode(share) for share in (theirs[4], theirs[0], theirs[2])])
    assert len(key) == 32
    ours = shamir.split(key, 3, [11, 22, 33, 44])
    for share in ours[1:]:
        state = put(sealed_server, "sys/unseal", {"key": base64.b64encode(share).decode()})
    assert state["sealed"] is False
