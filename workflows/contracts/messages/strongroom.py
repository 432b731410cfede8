"""Inputs and answers of the strongroom's activities and of its one-shot process."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from workflows.contracts.messages.protection import DekAnswer, StoredProtection
from workflows.contracts.trust.canonical import Base64, Message, Signed
from workflows.contracts.trust.fields import Nonce, Work
from workflows.contracts.trust.quorum import Authority


class OpenSession(Message):
    """Ask a strongroom for a session."""

    purpose: Work
    plan: str
    attempt: Annotated[int, Field(ge=1)]


class SessionOpened(Message):
    """A session's signed announcement, and the task queue of the one worker that holds it."""

    announcement: Signed
    queue: str
    session: Nonce


class HoldSession(Message):
    """Hold a session: returns when it has answered, fails when it dies, closes it when cancelled."""

    session: Nonce


class Protect(Message):
    """Ask a session to draw a MasterKey and protect it."""

    session: Nonce
    authority: Authority
    deks: tuple[DekAnswer, ...]


class Release(Message):
    """Ask a session to open a protection and encrypt the MasterKey to the recipient."""

    session: Nonce
    authority: Authority
    protection: StoredProtection
    deks: tuple[DekAnswer, ...]


class Reshard(Message):
    """Ask a session to open a protection and to make another of the same MasterKey.

    Attributes:
        protection: what is opened.
        opened: its data keys, of at least M shards.
        deks: fresh data keys for the new shards, in order; none for those of offline keystores.
    """

    session: Nonce
    authority: Authority
    protection: StoredProtection
    opened: tuple[DekAnswer, ...]
    deks: tuple[DekAnswer, ...]


class Delivered(Message):
    """A MasterKey encrypted to its recipient, and the strongroom's signature."""

    delivery: Signed
    ciphertext: Base64
