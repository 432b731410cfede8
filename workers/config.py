"""Configuration: one TOML file, `masterkey.toml`, validated before anything starts.

Values may be overridden by environment variables (`MASTERKEY_LEDGER__URL`), except where trust is pinned:
the roster and a recipient's key check values come from the file only, and an attempt to set them from the
environment is refused. Paths are relative to the file. Secrets are only named in it.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from activities.roster import RosterSource
from workflows.contracts.trust.canonical import Digest, Name
from workflows.contracts.trust.errors import ConfigurationInvalid
from workflows.contracts.trust.fields import Check, Mode

if TYPE_CHECKING:
    from activities.keystores.context import KeystoreTerms
    from activities.ledger.bundle.places import Place

_PREFIX = "MASTERKEY_"
_PINNED = ("ROSTER", "RECIPIENT__KCV")
_FILES = ("ca_file", "identity_file", "jwt_file", "passphrase_file", "pin_file", "secret_id_file", "token_file")
"""Settings of keystores that are paths."""

BucketUrl = Annotated[str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9/._-]*)?$")]


class Section(BaseModel):
    """Base of a section: closed, so that a misspelt key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class RosterSection(Section):
    """`[roster]`: where the roster is, and the digest that pins it."""

    file: Path
    genesis: Digest
    minimum_version: Annotated[int, Field(ge=1)] = 1


class LedgerSection(Section):
    """`[ledger]`: orchestrator only."""

    url: str


class BundleSection(Section):
    """`[bundle]`: orchestrator only: where bundles are kept, in one place or both.

    Attributes:
        directory: a folder.
        s3: `s3://BUCKET/PREFIX`; credentials come from AWS's own chain.
        endpoint: of an S3-compatible service; Amazon's if there is none.
        region: of the bucket.
        keep: how many of the newest are kept; all if there is none.
    """

    directory: Path | None = None
    s3: BucketUrl | None = None
    endpoint: str | None = None
    region: str | None = None
    keep: Annotated[int, Field(ge=1)] | None = None


class StrongroomSection(Section):
    """`[strongroom]`: strongroom only."""

    identity: Path


class RecipientSection(Section):
    """`[recipient]`: who receives, and the key check values it has pinned."""

    identity: Path
    kcv: dict[Name, Check] = Field(default_factory=dict)


class MetricsSection(Section):
    """`[metrics]`: any worker."""

    listen: Annotated[str, StringConstraints(pattern=r"^[^:]+:[0-9]{1,5}$")]


class KeystoreSection(BaseModel):
    """`[keystores.NAME]`: the worker's part; the rest belongs to the kind of keystore."""

    model_config = ConfigDict(frozen=True, extra="allow", hide_input_in_errors=True)

    type: str
    identity: Path
    state: Path
    modes: tuple[Mode, ...] = ("sss", "seal")

    def settings(self) -> dict[str, Any]:
        """What the kind of keystore is configured with, `type` included."""
        return {"type": self.type, **(self.model_extra or {})}


class _Environment(EnvSettingsSource):
    """The environment, where it may not touch what is pinned."""

    def __call__(self) -> dict[str, Any]:
        for variable in os.environ:
            if any(variable.upper().startswith(f"{_PREFIX}{pinned}") for pinned in _PINNED):
                raise ConfigurationInvalid(
                    f"{variable} is set, but trust is pinned only in the configuration file",
                    next_step=f"unset {variable} and write the value into masterkey.toml",
                )
        return super().__call__()


class Configuration(BaseSettings):
    """The whole file. Each role asks for its own section, and refuses to start without it."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
        hide_input_in_errors=True,
    )

    source: Path = Path("masterkey.toml")
    roster: RosterSection
    ledger: LedgerSection | None = None
    bundle: BundleSection | None = None
    strongroom: StrongroomSection | None = None
    recipient: RecipientSection | None = None
    metrics: MetricsSection | None = None
    keystores: dict[Name, KeystoreSection] = Field(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first, then the file (given as arguments); nothing else."""
        return (_Environment(settings_cls), init_settings)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a configuration file.

        Raises:
            ConfigurationInvalid: which file, which key, and what was expected.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationInvalid(
                f"cannot read the configuration {path}: {error.strerror}", next_step="name it with --config FILE"
            ) from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationInvalid(f"{path} is not TOML: {error}") from None
        if "source" in table:
            raise ConfigurationInvalid(f"{path}: source: there is no such key")
        try:
            return cls(**table, source=path)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigurationInvalid(f"{path}: {where}: {first['msg']}") from None

    def path(self, relative: Path) -> Path:
        """A path of the file, which is relative to the file's folder."""
        return (self.source.parent / relative).resolve()

    def roster_source(self) -> RosterSource:
        """Where the roster is and what is pinned of it."""
        return RosterSource(self.path(self.roster.file), self.roster.genesis, self.roster.minimum_version)

    def need_ledger(self) -> LedgerSection:
        """The section `[ledger]`; raises ConfigurationInvalid without it."""
        if self.ledger is None:
            raise ConfigurationInvalid(f"{self.source}: [ledger] is missing, and the orchestrator needs its url")
        return self.ledger

    def ledger_url(self) -> str:
        """The database URL; a relative SQLite path is relative to the file."""
        url = self.need_ledger().url
        prefix = "sqlite:///"
        if url.startswith(prefix) and not url.startswith("sqlite:////"):
            return f"sqlite:///{self.path(Path(url.removeprefix(prefix)))}"
        return url

    def bundle_places(self) -> tuple[Place, ...]:
        """Where bundles are written to; none if the section `[bundle]` is missing or names none.

        Raises:
            ConfigurationInvalid: the SDK of a place is not installed.
        """
        # Here and not above: only the orchestrator writes bundles.
        from activities.ledger.bundle.places import Folder

        section = self.bundle
        places: list[Place] = []
        if section is not None and section.directory is not None:
            places.append(Folder(self.path(section.directory), section.keep))
        if section is not None and section.s3 is not None:
            try:
                # Here and not above: whoever keeps bundles in a folder needs no SDK.
                from activities.ledger.bundle.bucket import Bucket
            except ModuleNotFoundError as error:
                raise ConfigurationInvalid(
                    f"bundles in {section.s3} need the Python package {error.name}, which is not installed",
                    next_step="install openkcm-masterkey[s3]",
                ) from None
            places.append(Bucket.open(section.s3, endpoint=section.endpoint, region=section.region, keep=section.keep))
        return tuple(places)

    def need_strongroom(self) -> StrongroomSection:
        """The section `[strongroom]`; raises ConfigurationInvalid without it."""
        if self.strongroom is None:
            raise ConfigurationInvalid(f"{self.source}: [strongroom] is missing, and a strongroom needs its identity")
        return self.strongroom

    def need_recipient(self) -> RecipientSection:
        """The section `[recipient]`; raises ConfigurationInvalid without it."""
        if self.recipient is None:
            raise ConfigurationInvalid(f"{self.source}: [recipient] is missing, and a recipient needs its identity")
        return self.recipient

    def keystore_terms(self, name: str) -> KeystoreTerms:
        """What the worker of a keystore works with, its kind's settings checked.

        Raises:
            ConfigurationInvalid: there is no such section, or a key in it is wrong.
        """
        # Here and not above: only a keystore's worker needs them, and every command loads a configuration.
        from activities.keystores.context import KeystoreTerms
        from activities.keystores.kinds.registry import parse_settings

        section = self.keystores.get(name)
        if section is None:
            known = ", ".join(sorted(self.keystores)) or "none"
            raise ConfigurationInvalid(f"{self.source}: [keystores.{name}] is missing (there are: {known})")
        table = section.settings()
        for key in _FILES:
            if isinstance(table.get(key), str):
                table[key] = str(self.path(Path(table[key])))
        try:
            settings = parse_settings(name, table)
        except ConfigurationInvalid as error:
            raise ConfigurationInvalid(f"{self.source}: [keystores.{name}]: {error.message}") from None
        source = self.roster_source()
        return KeystoreTerms(
            name=name,
            settings=settings.model_dump(mode="json", exclude_none=True),
            identity=str(self.path(section.identity)),
            state=str(self.path(section.state)),
            roster_file=str(source.file),
            roster_genesis=source.genesis,
            roster_minimum=source.minimum,
            modes=section.modes,
        )
