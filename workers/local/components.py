"""The keystores of the demo: real OpenBao and SoftHSM, emulated AWS and Google KMS, a Key Vault stand-in.

Five that protect, and a spare one to recover into.
"""

from __future__ import annotations

from pathlib import Path

from workers.local.drongo import create_crypto_key, start_drongo
from workers.local.key_vault import start_key_vault
from workers.local.moto import CREDENTIALS, create_kms_key, start_moto
from workers.local.openbao import OpenBao, start_openbao
from workers.local.process import ServiceFailed
from workers.local.softhsm import make_token
from workers.local.stack import KeystoreSetup

_KEY, _SPARE_KEY = "masterkey", "masterkey-zrh"
SPARE = "bao-zrh"
"""The keystore that no MasterKey uses at first."""


def component_keystores(folder: Path) -> dict[str, KeystoreSetup]:
    """Start the services below `folder`, each with one key, and say how each keystore is configured.

    Raises:
        ServiceFailed, ConfigurationInvalid: one is not installed or did not start.
    """
    bao = start_openbao(folder / "openbao")
    keystores = (
        _aws(folder),
        _azure(folder),
        _gcp(folder),
        _hsm(folder),
        _bao(bao, "bao-fra", _KEY, folder),
        _bao(bao, SPARE, _SPARE_KEY, folder),
    )
    return {keystore.name: keystore for keystore in keystores}


def _aws(folder: Path) -> KeystoreSetup:
    moto = start_moto(folder / "moto")
    table = {"type": "aws-kms", "key_id": create_kms_key(moto.endpoint), "endpoint": moto.endpoint}
    return KeystoreSetup("aws-fra", table, env=CREDENTIALS, backend="AWS KMS emulated by moto", service=moto)


def _azure(folder: Path) -> KeystoreSetup:
    vault = start_key_vault(folder / "key-vault")
    table = vault.settings(vault.create_key("wrap"))
    return KeystoreSetup("azure-ams", table, backend="Key Vault stand-in over TLS, RSA-OAEP-256", service=vault.service)


def _gcp(folder: Path) -> KeystoreSetup:
    drongo = start_drongo(folder / "drongo")
    table = {"type": "gcp-kms", "key_name": create_crypto_key(drongo.endpoint, _KEY), "endpoint": drongo.endpoint}
    return KeystoreSetup("gcp-zrh", table, backend="Google Cloud KMS emulated by drongo", service=drongo)


def _hsm(folder: Path) -> KeystoreSetup:
    token = make_token(folder / "softhsm", label=_KEY)
    return KeystoreSetup("hsm-fra", token.settings("wrap"), env=token.env, backend="SoftHSM2 over PKCS#11, AES-GCM")


def delete_bao_key(folder: Path, keystores: dict[str, KeystoreSetup]) -> None:
    """Permanently delete the key of `bao-fra`, as an administrator of OpenBao can."""
    service = keystores["bao-fra"].service
    if service is None:
        raise ServiceFailed("bao-fra has no service")
    bao = OpenBao(service, (folder / "openbao" / "root").read_text(encoding="ascii"))
    bao.ask("POST", f"transit/keys/{_KEY}/config", {"deletion_allowed": True})
    bao.ask("DELETE", f"transit/keys/{_KEY}")


def _bao(bao: OpenBao, name: str, key: str, folder: Path) -> KeystoreSetup:
    bao.create_key(key)
    root = folder / "openbao" / "root"
    root.touch(mode=0o600)
    root.write_text(bao.root_token, encoding="ascii")
    token = bao.write_token(key, folder / "openbao" / f"{name}.token")
    table = {"type": "transit", "address": bao.service.endpoint, "key_name": key, "token_file": str(token)}
    return KeystoreSetup(name, table, backend="OpenBao, the real server", service=bao.service)
