"""A stand-in for the keys of Azure Key Vault and Managed HSM: their REST protocol over TLS, real cryptography.

What it does, it does as the service does, as far as recordings of the service (`tests/data/azure-key-vault`,
api-version 2025-07-01) and the issues that the code names tell: the bearer challenge, keys and their versions,
states, soft delete, wrapping and encrypting, the form of errors. It knows one bearer token, and whoever has that
may do everything; it knows no roles, quotas and firewalls, and never fails (`deploy.emulators.fault_proxy` does).

Run it with `python -m deploy.emulators.key_vault --port 8443 --folder DIR`; DIR gets the certificate to trust
(`ca.pem`) and the token (`token`). For development and tests only: it listens on 127.0.0.1 and keeps the keys in
memory or, with `--state`, in a file, in plaintext.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import json
import os
import re
import secrets
import ssl
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.emulators.key_vault_keys import Flavour, Json, KeyStore, Refused

RESOURCES: dict[Flavour, str] = {"vault": "https://vault.azure.net", "managed-hsm": "https://managedhsm.azure.net"}
"""What the challenge says a token must be for."""

_AUTHORITY = "https://login.microsoftonline.com/00000000-0000-0000-0000-000000000000"
_ROUTE = re.compile(
    r"^/(?P<deleted>deleted)?keys/(?P<name>[A-Za-z0-9-]{1,127})"
    r"(?:/+(?P<version>[0-9a-f]{32}))?(?:/+(?P<action>create|recover|wrapkey|unwrapkey|encrypt|decrypt))?/*$"
)


class KeyVaultState:
    """The protocol, without the network: a request's parts in, status and JSON out."""

    def __init__(self, base_url: str, token: str, flavour: Flavour, state: Path | None = None) -> None:
        self.token = token
        self.flavour = flavour
        self._keys = KeyStore(base_url, flavour, state)
        self._lock = Lock()

    def challenge(self, *, again: bool) -> tuple[str, Json | None]:
        """The `WWW-Authenticate` header and body for a request without a token, or again with a wrong one."""
        header = f'Bearer authorization="{_AUTHORITY}", resource="{RESOURCES[self.flavour]}"'
        if again:
            header += ', error="invalid_token", error_description="Error validating token."'
        message = "Error validating token." if again else "Request is missing a Bearer, PoP, or MTLS_POP token."
        body: Json = {"error": {"code": "Unauthorized", "message": f"AKV10000: {message}"}}
        return header, body if self.flavour == "vault" else None

    def answer(self, method: str, target: str, body: Json) -> tuple[int, Json]:
        """Answer an authorised request."""
        url = urlsplit(target)
        try:
            if "api-version" not in parse_qs(url.query):
                raise Refused(400, "BadParameter", "api-version must be specified")
            with self._lock:
                return 200, self._route(method, url.path, body)
        except Refused as error:
            return error.status, error.body

    def _route(self, method: str, path: str, body: Json) -> Json:
        found = _ROUTE.match(path)
        keys = self._keys
        if found:
            name, version, action = found["name"].lower(), found["version"] or "", found["action"] or ""
            match (method, bool(found["deleted"]), action):
                case ("POST", False, "create"):
                    return keys.create(name, body)
                case ("PUT", False, ""):
                    return keys.import_key(name, body)
                case ("GET", False, ""):
                    return keys.get(name, version)
                case ("PATCH", False, ""):
                    return keys.update(name, version, body)
                case ("DELETE", False, ""):
                    return keys.delete(name)
                case ("GET", True, ""):
                    return keys.deleted(name)
                case ("POST", True, "recover"):
                    return keys.recover(name)
                case ("POST", False, "wrapkey" | "unwrapkey" | "encrypt" | "decrypt"):
                    return keys.operate(name, version, action, body)
        raise Refused(405, "MethodNotAllowed", "The stand-in does not know this operation.")


class _VaultHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    vault: ClassVar[KeyVaultState]

    def _serve(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization", "")
        if not secrets.compare_digest(authorization.encode(), f"Bearer {self.vault.token}".encode()):
            header, answer = self.vault.challenge(again=bool(authorization))
            self._answer(401, answer, {"WWW-Authenticate": header})
            return
        try:
            body = json.loads(content or b"{}")
        except ValueError:
            body = None
        if isinstance(body, dict):
            self._answer(*self.vault.answer(self.command, self.path, body))
        else:
            self._answer(400, {"error": {"code": "BadParameter", "message": "The request's body is not JSON."}})

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server's names

    def _answer(self, status: int, body: Json | None, headers: dict[str, str] | None = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """Say nothing."""


def certificate_for_localhost(folder: Path) -> ssl.SSLContext:
    """Make a certificate for 127.0.0.1 and localhost that signs itself; `folder/ca.pem` is what to trust.

    Its key is in no file but, for the moment that `ssl` needs to read it, one that only its owner may read.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Key Vault stand-in")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    both = write_private(folder / f"tls-{time.monotonic_ns()}.pem", key.private_bytes(*form) + public)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(both)
    finally:
        both.unlink()
    (folder / "ca.pem").write_bytes(public)
    return context


def write_private(path: Path, data: bytes) -> Path:
    """Write a new file that only its owner may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(data)
    return path


def serve(port: int, tls: ssl.SSLContext, vault: KeyVaultState) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, listening; call `serve_forever` on it."""
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_VaultHandler,), {"vault": vault}))
    server.daemon_threads = True
    # The handshake is left to each connection's own thread: a client that is silent delays no other.
    server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


def main() -> None:
    """Run the stand-in until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="gets ca.pem, and token unless it is there")
    parser.add_argument("--flavour", choices=list(RESOURCES), default="vault")
    parser.add_argument("--vault-url", help="what key ids begin with; its own address unless set")
    parser.add_argument("--state", type=Path, help="file that keeps the keys, in plaintext")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / "token"
    if not token.exists():
        write_private(token, secrets.token_hex(32).encode())
    url = (arguments.vault_url or f"https://127.0.0.1:{arguments.port}").rstrip("/").lower()
    vault = KeyVaultState(url, token.read_text(encoding="ascii").strip(), arguments.flavour, arguments.state)
    serve(arguments.port, certificate_for_localhost(folder), vault).serve_forever()


if __name__ == "__main__":
    main()
