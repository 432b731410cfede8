"""An offline custodian: an age key that only they have decrypts DEKs, at their own machine.

No worker waits for it. Wrapping takes only the age recipient, which the signed roster names, so the strongroom's
session does it. Unwrapping takes the identity, and happens when the custodian runs `masterkey contribute`: in a
one-shot process, by the same code as every keystore's. Here a person is bound cryptographically, not by code on a
host: no copy of the ledger and no stolen worker opens this shard.

The format is age's own (https://age-encryption.org/v1, binary, X25519), so that `age -d -i FILE` opens it too, should
all else be lost. age binds no context: what is encrypted is the DEK followed by SHA-256 of the context, 64 bytes.
X25519 is not safe against a quantum computer; why no post-quantum key is taken is said in `age_wrap`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from activities.crypto.age_wrap import check_recipient, key_id, wrap_dek
from activities.crypto.context import Context
from activities.keystores.kinds import age_keys
from activities.keystores.kinds.base import (
    BaseKeystore,
    KeyRef,
    KeystoreSettings,
    SecretReference,
    WrappedKey,
    secret_reference,
)
from workflows.contracts.trust.errors import CiphertextInvalid, ConfigurationInvalid, MasterKeyError


class OfflineSettings(KeystoreSettings):
    """Settings of an offline keystore.

    Attributes:
        recipient: the age recipient that the roster names, `age1...`.
        identity_file: its identity, mode 0600: as `age-keygen` or `age -p` writes it. Without it nothing is unwrapped.
        passphrase_env: environment variable of the passphrase of `identity_file`.
        passphrase_file: file of that passphrase. With neither, the one-shot process asks on the terminal, each time.
    """

    type: Literal["offline"] = "offline"
    recipient: Annotated[str, AfterValidator(check_recipient)]
    identity_file: Path | None = None
    passphrase_env: str | None = None
    passphrase_file: Path | None = None

    @model_validator(mode="after")
    def _consistent(self) -> OfflineSettings:
        if self.reference is not None and self.identity_file is None:
            raise ValueError("a passphrase is for identity_file: set it too")
        if self.endpoint is not None or self.ca_file is not None:
            raise ValueError("an offline keystore connects to nothing: leave out endpoint and ca_file")
        return self

    @property
    def reference(self) -> SecretReference | None:
        """Where the passphrase is to be read; None if it is to be typed."""
        return secret_reference("passphrase", self.passphrase_env, self.passphrase_file)

    def passphrase(self, name: str) -> str:
        """The passphrase of `identity_file`: as referred to, or typed on the terminal.

        Raises:
            ConfigurationInvalid: there is none, and no terminal.
        """
        if self.reference is None:
            return age_keys.ask_passphrase(f"Passphrase of the age key of {name}: ")
        return self.reference.read(f"keystore {name}")


class Offline(BaseKeystore[OfflineSettings]):
    """An age key as a `Keystore`."""

    SERVICE = "offline"

    def __init__(self, name: str, settings: OfflineSettings) -> None:
        super().__init__(name, settings)
        self._key = KeyRef(key_id(settings.recipient))

    def describe(self) -> KeyRef:
        """The key: `age:sha256:...` of the recipient, without version, if its identity can be used here.

        Raises:
            ConfigurationInvalid: there is no identity file, or it holds another key than the recipient's.
            KeystoreAccessDenied: its passphrase is another one.
        """
        self.identity()
        return self._key

    def _is_own(self, key: KeyRef) -> bool:
        return key == self._key

    def _wrap(self, dek: bytes, context: Context) -> WrappedKey:
        """Encrypt to the recipient, without the identity: 32 bytes become 280 to 500."""
        return WrappedKey(wrap_dek(self._settings.recipient, dek, context), self._key, "age-x25519")

    def _unwrap(self, wrapped: bytes, context: Context, key: KeyRef) -> bytes:
        identity = self.identity()
        try:
            plain = identity.decrypt(wrapped)
        except ValueError as error:
            raise self._error(CiphertextInvalid, f"does not decrypt: {error}") from None
        return self._unbind(plain, context)

    def identity(self) -> age_keys.AgeIdentity:
        """The secret key: for this module, and for printing it on paper.

        Raises:
            ConfigurationInvalid, KeystoreAccessDenied: as `describe`.
        """
        settings = self._settings
        if settings.identity_file is None:
            raise self._error(
                ConfigurationInvalid,
                "no identity_file is configured",
                "name the file of the age key, at its custodian's",
            )
        try:
            identity = age_keys.read_identity(settings.identity_file, lambda: settings.passphrase(self._name))
        except MasterKeyError as error:
            raise self._error(type(error), error.message, error.next_step) from None
        if identity.recipient != settings.recipient:
            # Not CiphertextInvalid: nothing is wrong with the shard, and nobody should quarantine it.
            raise self._error(
                ConfigurationInvalid,
                f"{settings.identity_file} is the key of {identity.recipient}, not of the configured recipient",
                "use the identity of this keystore's own recipient",
            )
        return identity
