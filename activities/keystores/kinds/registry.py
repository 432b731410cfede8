"""The table of the kinds of keystore: the one place that knows them all.

A kind's module, and with it the vendor's SDK, is imported only when a keystore of that kind is configured: a
worker's image holds only its own.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

from pydantic import ValidationError

from activities.keystores.kinds.base import Keystore, KeystoreSettings
from workflows.contracts.trust.errors import ConfigurationInvalid


@dataclass(frozen=True)
class Kind:
    """Where a kind of keystore lives.

    Attributes:
        module: module of `activities.keystores`.
        settings: name of its settings class.
        keystore: name of its class, called with the keystore's name and its settings.
        extra: the optional dependency that brings its SDK.
    """

    module: str
    settings: str
    keystore: str
    extra: str


KINDS: Mapping[str, Kind] = {
    "aws-kms": Kind("aws_kms", "AwsKmsSettings", "AwsKms", "aws"),
    "azure-key-vault": Kind("azure_key_vault", "AzureKeyVaultSettings", "AzureKeyVault", "azure"),
    "gcp-kms": Kind("gcp_kms", "GcpKmsSettings", "GcpKms", "gcp"),
    "pkcs11": Kind("pkcs11", "Pkcs11Settings", "Pkcs11Keystore", "pkcs11"),
    "transit": Kind("transit", "TransitSettings", "Transit", "transit"),
    "offline": Kind("offline", "OfflineSettings", "Offline", "offline"),
}
"""Every kind by the `type` that it has in the configuration."""


def _kind(name: str, type_: object) -> Kind:
    kind = KINDS.get(type_) if isinstance(type_, str) else None
    if kind is None:
        raise ConfigurationInvalid(
            f"keystore {name}: no type {type_!r}", next_step=f"use one of {', '.join(KINDS)}", subject=name
        )
    return kind


def _load(name: str, kind: Kind) -> ModuleType:
    module = f"activities.keystores.kinds.{kind.module}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise
        raise ConfigurationInvalid(
            f"keystore {name}: the Python module {error.name!r} is not installed here",
            next_step=f"install openkcm-masterkey[{kind.extra}]",
            subject=name,
        ) from None


def parse_settings(name: str, table: Mapping[str, Any]) -> KeystoreSettings:
    """The settings of one keystore from its table in the configuration.

    Args:
        name: the keystore's configured name, for messages.
        table: the table, without what belongs to the worker and not to the keystore (`identity`, `modes`,
            `state`).

    Raises:
        ConfigurationInvalid: unknown type, missing SDK, or a field that is missing, wrong or unknown.
    """
    kind = _kind(name, table.get("type"))
    settings = cast(type[KeystoreSettings], getattr(_load(name, kind), kind.settings))
    try:
        return settings.model_validate(dict(table))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise ConfigurationInvalid(f"keystore {name}: {where}: {first['msg']}", subject=name) from None


_preloaded: dict[str, tuple[KeystoreSettings, Keystore]] = {}


def preload(name: str, settings: KeystoreSettings) -> None:
    """Open a keystore for the processes that will be forked from this one: `open_keystore` finds it there.

    It holds no credentials and no connection. What cannot be opened is left to the call that needs it.
    """
    with contextlib.suppress(ConfigurationInvalid):
        _preloaded[name] = (settings, open_keystore(name, settings))


def open_keystore(name: str, settings: KeystoreSettings) -> Keystore:
    """The keystore of these settings; connects to nothing and reads no credentials yet.

    Raises:
        ConfigurationInvalid: unknown type or missing SDK.
    """
    known = _preloaded.get(name)
    if known is not None and known[0] == settings:
        return known[1]
    kind = _kind(name, settings.type)
    build = cast(Callable[[str, KeystoreSettings], Keystore], getattr(_load(name, kind), kind.keystore))
    return build(name, settings)
