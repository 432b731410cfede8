"""The table of the kinds of keystore."""

from __future__ import annotations

import subprocess
import sys

import pytest

from activities.keystores.kinds import registry
from activities.keystores.kinds.registry import KINDS, open_keystore, parse_settings, preload
from workflows.contracts.trust.errors import ConfigurationInvalid

TABLES: dict[str, dict[str, object]] = {
    "aws-kms": {"key_id": "arn:aws:kms:eu-central-1:111122223333:key/0a-1b"},
    "gcp-kms": {"key_name": "projects/p/locations/europe-west6/keyRings/r/cryptoKeys/k"},
    "azure-key-vault": {"key_id": "https://v.vault.azure.net/keys/wrap"},
    "pkcs11": {"module": "/usr/lib/softhsm/libsofthsm2.so", "token_label": "t", "key_label": "k", "pin_env": "PIN"},
    "transit": {"address": "https://bao.example:8200", "key_name": "masterkey"},
    "offline": {"recipient": "age10md94lfjhdy5qflhypc7s0cjgglwas9ju9ycl4t5pst927cc49rs3uca0m"},
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_the_configuration_becomes_a_keystore(kind: str) -> None:
    settings = parse_settings("k", {"type": kind, **TABLES[kind]})
    assert type(settings).__name__ == KINDS[kind].settings
    assert type(open_keystore("k", settings)).__name__ == KINDS[kind].keystore


@pytest.mark.parametrize("kind", TABLES)
def test_settings_survive_the_way_to_another_process(kind: str) -> None:
    settings = parse_settings("k", {"type": kind, **TABLES[kind]})
    assert parse_settings("k", settings.model_dump(mode="json", exclude_none=True)) == settings


@pytest.mark.parametrize("kind", TABLES)
def test_a_preloaded_keystore_serves_its_own_settings_only(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_preloaded", {})
    settings = parse_settings("k", {"type": kind, **TABLES[kind]})
    preload("k", settings)
    assert open_keystore("k", settings) is open_keystore("k", settings)
    changed = settings.model_copy(update={"timeout_seconds": 1.0})
    assert open_keystore("k", changed) is not open_keystore("k", settings)
    assert open_keystore("other", settings) is not open_keystore("k", settings)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"type": "paper"}, "no type 'paper'"),
        ({}, "no type None"),
        ({"type": "transit", "key_name": "k"}, "address"),
        ({"type": "gcp-kms", "key_name": "k", "secret": "hunter2"}, "key_name"),
    ],
    ids=["unknown type", "no type", "a field missing", "a field wrong"],
)
def test_a_table_that_cannot_work_is_refused_with_the_field_that_is_wrong(
    table: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationInvalid, match=message) as caught:
        parse_settings("k", table)
    assert "hunter2" not in caught.value.diagnostics


def test_a_missing_sdk_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hvac", None)
    monkeypatch.delitem(sys.modules, "activities.keystores.kinds.transit", raising=False)
    with pytest.raises(ConfigurationInvalid) as caught:
        parse_settings("k", {"type": "transit", **TABLES["transit"]})
    assert "openkcm-masterkey[transit]" in caught.value.diagnostics


def test_the_table_itself_imports_no_sdk() -> None:
    script = (
        "import sys; import activities.keystores.kinds.registry; "
        "print(sorted({'boto3', 'hvac', 'google.cloud.kms_v1', 'azure', 'pkcs11'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
