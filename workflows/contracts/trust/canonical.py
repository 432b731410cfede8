"""Canonical JSON (RFC 8785), digests, and the base classes of documents and messages.

A *document* is signed: its fields are closed, it has a version and a type, and its bytes are the one
canonical form. A *message* travels between roles through Temporal: it may grow, so unknown fields are
ignored.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, Self

import rfc8785
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints, ValidationError

from workflows.contracts.trust.errors import DocumentInvalid


def canonical_json(value: Any) -> bytes:
    """The RFC 8785 form of a JSON value, UTF-8 bytes."""
    return rfc8785.dumps(value)


def digest(data: bytes) -> str:
    """SHA-256 of `data` as `sha256:` and 64 hexadecimal digits (71 characters)."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def encode64(data: bytes) -> str:
    """Standard base64 with padding, as text."""
    return base64.b64encode(data).decode("ascii")


def decode64(text: str) -> bytes:
    """Inverse of `encode64`; raises ValueError on anything else."""
    return base64.b64decode(text, validate=True)


def _utc_seconds(value: datetime) -> datetime:
    if value.tzinfo is None or value.microsecond:
        raise ValueError("a time is in whole seconds, with its time zone")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time lies between the years 1 and 9999") from None


def format_time(value: datetime) -> str:
    """RFC 3339, UTC, whole seconds: `2026-11-23T20:00:00Z`."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(value: datetime) -> datetime:
    """The same instant in UTC, fractions of a second dropped."""
    return value.astimezone(UTC).replace(microsecond=0)


Time = Annotated[datetime, AfterValidator(_utc_seconds), PlainSerializer(format_time)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Fingerprint = Annotated[str, StringConstraints(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Hex = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})+$")]


def _valid_base64(text: str) -> str:
    decode64(text)
    return text


Base64 = Annotated[str, AfterValidator(_valid_base64)]


class Message(BaseModel):
    """Base of what travels through Temporal: validated, frozen, allowed to grow."""

    model_config = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)


class Part(BaseModel):
    """Base of a part of a document: frozen, closed."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def _absent(value: object) -> bool:
    return value is None


def later() -> Any:
    """A field that a document got after its first version: where it is None, the canonical form is as it was before."""
    return Field(default=None, exclude_if=_absent)


Role = Literal["custodian", "recipient", "keystore", "strongroom"]


class Document(Part):
    """Base of what is signed.

    Attributes:
        TYPE: both the field `type` and the SSHSIG namespace.
        SIGNER: the role whose signature it needs, and the field that names who of that role signed, by fingerprint or
            by name (`Roster.open`); none for what only a quorum signs, or what is signed as a part of another.
    """

    TYPE: ClassVar[str]
    SIGNER: ClassVar[Role | None] = None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a document class without the fields that every document has, or whose signer it does not name."""
        super().__pydantic_init_subclass__(**kwargs)
        missing = {"type", "version", cls.SIGNER or "type"} - set(cls.model_fields)
        if missing:
            raise TypeError(f"{cls.__name__} lacks {sorted(missing)}")

    def canonical(self) -> bytes:
        """The bytes that are signed."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes."""
        return digest(self.canonical())

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read a document from exactly its canonical bytes.

        Raises:
            DocumentInvalid: not this type and version, a field is wrong, or the bytes are not canonical.
        """
        try:
            document = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "document"
            raise DocumentInvalid(f"not a valid {cls.TYPE} document: {where}: {first['msg']}") from None
        try:
            canonical = document.canonical()
        except ValueError:
            # RFC 8785 knows no integer above 2**53 - 1.
            raise DocumentInvalid(f"the {cls.TYPE} document holds what canonical JSON cannot") from None
        if canonical != data:
            raise DocumentInvalid(f"the {cls.TYPE} document is not in canonical form (RFC 8785)")
        return document


class Signed(Message):
    """A document's canonical bytes, as text, and its armoured SSH signature."""

    document: Annotated[str, StringConstraints(max_length=1_000_000)]
    signature: Annotated[str, StringConstraints(max_length=16_384)]

    @property
    def digest(self) -> str:
        """SHA-256 of the document's bytes (the signature is not part of it)."""
        return digest(self.document.encode())
