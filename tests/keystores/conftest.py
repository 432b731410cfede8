"""The services behind the keystores: each started once for a run, on 127.0.0.1.

Fixtures are named after the service. A proxy (`..._proxy`) stands before its service, passes everything on,
and is told by a test what else to do.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.emulators.fault_proxy import FaultProxy, Rule
from tests.keystores.tls_proxy import TlsFaultProxy
from workers.local.drongo import start_drongo
from workers.local.key_vault import KeyVault, start_key_vault
from workers.local.moto import CREDENTIALS, start_moto
from workers.local.openbao import OpenBao, start_openbao
from workers.local.process import Service
from workers.local.softhsm import SoftToken, make_token


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """AWS KMS, emulated."""
    service = start_moto(tmp_path_factory.mktemp("moto"))
    yield service
    service.stop()


@pytest.fixture
def aws_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials in the environment, and nothing from this machine's own configuration."""
    for variable, value in CREDENTIALS.items():
        monkeypatch.setenv(variable, value)
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(variable, "nowhere")
    for variable in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="session")
def drongo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Google Cloud KMS, emulated."""
    service = start_drongo(tmp_path_factory.mktemp("drongo"))
    yield service
    service.stop()


@pytest.fixture(scope="session")
def openbao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """OpenBao itself."""
    bao = start_openbao(tmp_path_factory.mktemp("openbao"))
    yield bao
    bao.service.stop()


@pytest.fixture(scope="session")
def _moto_proxy(moto: Service) -> Iterator[FaultProxy]:
    with FaultProxy(moto.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def _drongo_proxy(drongo: Service) -> Iterator[FaultProxy]:
    with FaultProxy(drongo.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def _openbao_proxy(openbao: OpenBao) -> Iterator[FaultProxy]:
    with FaultProxy(openbao.service.endpoint) as proxy:
        yield proxy


def _honest(proxy: FaultProxy) -> Iterator[FaultProxy]:
    proxy.requests.clear()
    yield proxy
    proxy.rule = Rule()


@pytest.fixture
def moto_proxy(_moto_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """A proxy before moto."""
    yield from _honest(_moto_proxy)


@pytest.fixture
def drongo_proxy(_drongo_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """A proxy before drongo."""
    yield from _honest(_drongo_proxy)


@pytest.fixture
def openbao_proxy(_openbao_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """A proxy before OpenBao."""
    yield from _honest(_openbao_proxy)


@pytest.fixture(scope="session")
def key_vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyVault]:
    """Azure Key Vault, as its stand-in speaks for it."""
    vault = start_key_vault(tmp_path_factory.mktemp("key-vault"))
    yield vault
    vault.service.stop()


@pytest.fixture(scope="session")
def managed_hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyVault]:
    """A Managed HSM, as its stand-in speaks for it."""
    hsm = start_key_vault(tmp_path_factory.mktemp("managed-hsm"), flavour="managed-hsm")
    yield hsm
    hsm.service.stop()


@pytest.fixture(scope="session")
def _key_vault_proxy(key_vault: KeyVault, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsFaultProxy]:
    folder = tmp_path_factory.mktemp("key-vault-proxy")
    with TlsFaultProxy(key_vault.service.endpoint, tls=key_vault.trust(), folder=folder) as proxy:
        yield proxy


@pytest.fixture
def key_vault_proxy(_key_vault_proxy: TlsFaultProxy) -> Iterator[TlsFaultProxy]:
    """A proxy before the Key Vault stand-in, over TLS; `ca_file` is the certificate to trust."""
    for _ in _honest(_key_vault_proxy):
        yield _key_vault_proxy


@pytest.fixture(scope="session")
def soft_tokens(tmp_path_factory: pytest.TempPathFactory) -> tuple[SoftToken, SoftToken]:
    """Two tokens of SoftHSM with the same label, each with the keys `wrap` (AES) and `wrap-rsa`."""
    folder = tmp_path_factory.mktemp("softhsm")
    one = make_token(folder, name="one", rsa=["wrap-rsa"])
    two = make_token(folder, name="two", rsa=["wrap-rsa"])
    return one, two


@pytest.fixture
def soft_token(soft_tokens: tuple[SoftToken, SoftToken], monkeypatch: pytest.MonkeyPatch) -> SoftToken:
    """The first of the two tokens, and the environment in which both are seen."""
    for variable, value in soft_tokens[0].env.items():
        monkeypatch.setenv(variable, value)
    return soft_tokens[0]
