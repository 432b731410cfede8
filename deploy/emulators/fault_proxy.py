"""A reverse proxy that lies on request: it shows what an emulator does not enforce.

Emulators forget key states, quotas and policies, and never hang. This proxy stands between a keystore and its
service, passes everything on, and answers by a rule, set at run time, what matches one: a recorded answer, a
changed answer, silence, a reset, a delay.

In a test::

    with FaultProxy("http://127.0.0.1:5000") as proxy:
        proxy.rule = Answer(400, {"x-amzn-errortype": "DisabledException"}, b'{"__type":"DisabledException"}')

By hand: `python -m deploy.emulators.fault_proxy --listen 8001 --upstream http://127.0.0.1:5000 --control 8002`,
then `curl -X PUT http://127.0.0.1:8002 -d '{"kind": "answer", "status": 503, "match": "Decrypt"}'`, and
`curl -X DELETE http://127.0.0.1:8002` to pass everything again.

For development and tests only: it listens on 127.0.0.1 and keeps the last requests in memory, secrets included.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass(frozen=True)
class Rule:
    """What to do with a request whose first line and headers contain `match`; here: pass it on."""

    match: str = field(default="", kw_only=True)


@dataclass(frozen=True)
class Answer(Rule):
    """Answer this; the service hears nothing."""

    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Change(Rule):
    """Pass on, and set these top-level fields of the JSON answer; None removes one."""

    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Delay(Rule):
    """Wait, then pass on."""

    seconds: float = 1.0


@dataclass(frozen=True)
class Hang(Rule):
    """Never answer, until the proxy closes."""


@dataclass(frozen=True)
class Reset(Rule):
    """Reset the TCP connection."""


KINDS: Mapping[str, type[Rule]] = {
    "pass": Rule,
    "answer": Answer,
    "change": Change,
    "delay": Delay,
    "hang": Hang,
    "reset": Reset,
}
"""The rules by the name that the control port knows."""


@dataclass(frozen=True)
class Recorded:
    """A request that came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class FaultProxy:
    """The proxy, in threads of this process; a context manager.

    Attributes:
        rule: what happens to requests from now on; everything passes at first.
        requests: the last 100 requests, oldest first.
    """

    def __init__(self, upstream: str, *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        """Listen on 127.0.0.1.

        Args:
            upstream: `http://` or `https://` URL of the service; only scheme, host and port count.
            port: port to listen on; 0 chooses one.
            tls: how to verify an `https` upstream, instead of the system's authorities.
        """
        self.rule = Rule()
        self.requests: deque[Recorded] = deque(maxlen=100)
        self.upstream = urlsplit(upstream)
        self.tls = tls
        self.closing = threading.Event()
        handler = type("Handler", (_ProxyHandler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def connect(self) -> http.client.HTTPConnection:
        """A new connection to the service."""
        host, port = str(self.upstream.hostname), self.upstream.port
        if self.upstream.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=60, context=self.tls)
        return http.client.HTTPConnection(host, port, timeout=60)


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: ClassVar[FaultProxy]

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.proxy.requests.append(Recorded(self.command, self.path, dict(self.headers), body))
        rule = self.proxy.rule
        if rule.match not in f"{self.command} {self.path}\n{self.headers}":
            rule = Rule()
        if isinstance(rule, Answer):
            self._answer(rule.status, dict(rule.headers), rule.body)
        elif isinstance(rule, Reset):
            self._reset()
        elif isinstance(rule, Hang):
            self.proxy.closing.wait()
            self._reset()
        else:
            if isinstance(rule, Delay):
                self.proxy.closing.wait(rule.seconds)
            self._pass(body, rule.fields if isinstance(rule, Change) else {})

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve  # noqa: N815 - http.server's names

    def _pass(self, body: bytes, changes: Mapping[str, Any]) -> None:
        connection = self.proxy.connect()
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            self._answer(502, {}, b"")
            return
        finally:
            connection.close()
        if changes and answer.status < 300:
            changed = {**json.loads(data), **changes}
            data = json.dumps({name: value for name, value in changed.items() if value is not None}).encode()
        self._answer(answer.status, dict(answer.getheaders()), data)

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        # The client may have given up meanwhile: that is what it was delayed for.
        with contextlib.suppress(ConnectionError):
            self.end_headers()
            self.wfile.write(body)

    def _reset(self) -> None:
        self.close_connection = True
        # Lingering for 0 seconds makes close() send RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """Say nothing."""


def rule_of(table: Mapping[str, Any]) -> Rule:
    """A rule from JSON: `{"kind": "answer", "status": 503, "body": "...", "match": "..."}`.

    Raises:
        KeyError, TypeError: no such kind, or a field that it does not have.
    """
    fields = {name: value for name, value in table.items() if name != "kind"}
    if isinstance(fields.get("body"), str):
        fields["body"] = fields["body"].encode()
    return KINDS[table["kind"]](**fields)


class _Control(BaseHTTPRequestHandler):
    proxy: ClassVar[FaultProxy]

    def do_PUT(self) -> None:
        try:
            self.proxy.rule = rule_of(json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0))))
        except (KeyError, TypeError, ValueError) as error:
            self.send_error(400, str(error))
        else:
            self._done()

    def do_DELETE(self) -> None:
        self.proxy.rule = Rule()
        self._done()

    def _done(self) -> None:
        self.send_response(204)
        self.end_headers()


def main() -> None:
    """Run the proxy and its control port until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--listen", type=int, required=True, metavar="PORT")
    parser.add_argument("--upstream", required=True, metavar="URL")
    parser.add_argument("--control", type=int, required=True, metavar="PORT")
    arguments = parser.parse_args()
    with FaultProxy(arguments.upstream, port=arguments.listen) as proxy:
        handler = type("Control", (_Control,), {"proxy": proxy})
        ThreadingHTTPServer(("127.0.0.1", arguments.control), handler).serve_forever()


if __name__ == "__main__":
    main()
