"""The fault-injecting proxy, as a developer starts it by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import requests

from deploy.emulators.fault_proxy import Answer, Delay, FaultProxy, rule_of
from workers.local.process import free_port, port_answers, start_service


class _Echo(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode() + b" " + body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_rule_is_set_and_lifted_through_the_control_port(echo: str, tmp_path: Path) -> None:
    listen, control = free_port(), free_port()
    options = ["--listen", str(listen), "--upstream", echo, "--control", str(control)]
    service = start_service(
        "fault proxy",
        [sys.executable, "-m", "deploy.emulators.fault_proxy", *options],
        log=tmp_path / "log",
        ready=lambda: port_answers(control),
    )
    try:
        ask, tell = f"http://127.0.0.1:{listen}/decrypt", f"http://127.0.0.1:{control}"
        assert requests.post(ask, data="x", timeout=5).text == "/decrypt x"
        rule = {"kind": "answer", "status": 429, "body": "slower", "match": "/decrypt"}
        assert requests.put(tell, json=rule, timeout=5).status_code == 204
        assert requests.put(tell, json={"kind": "explode"}, timeout=5).status_code == 400
        refused = requests.post(ask, data="x", timeout=5)
        assert (refused.status_code, refused.text) == (429, "slower")
        assert requests.post(ask.replace("decrypt", "encrypt"), data="x", timeout=5).text == "/encrypt x"
        assert requests.delete(tell, timeout=5).status_code == 204
        assert requests.post(ask, data="x", timeout=5).text == "/decrypt x"
    finally:
        service.stop()


def test_a_service_that_is_down_is_a_bad_gateway() -> None:
    with FaultProxy(f"http://127.0.0.1:{free_port()}") as proxy:
        assert requests.get(proxy.url, timeout=5).status_code == 502


def test_a_rule_is_plain_json() -> None:
    assert rule_of({"kind": "answer", "status": 400, "body": "{}"}) == Answer(400, {}, b"{}")
    assert rule_of({"kind": "delay", "seconds": 3, "match": "Encrypt"}) == Delay(3, match="Encrypt")
