"""The fault proxy over TLS, for services whose SDK speaks nothing else."""

from __future__ import annotations

import ssl
from pathlib import Path

from deploy.emulators.fault_proxy import FaultProxy
from deploy.emulators.key_vault import certificate_for_localhost


class TlsFaultProxy(FaultProxy):
    """A fault proxy that is reached over TLS, as Azure's SDK demands.

    Attributes:
        ca_file: the certificate to trust.
    """

    def __init__(self, upstream: str, *, tls: ssl.SSLContext, folder: Path) -> None:
        super().__init__(upstream, tls=tls)
        certificate = certificate_for_localhost(folder)
        self.ca_file = folder / "ca.pem"
        self._server.socket = certificate.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")
