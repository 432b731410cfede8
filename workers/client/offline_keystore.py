"""An offline keystore at its custodian's: every call in a one-shot process, as at a keystore's worker."""

from __future__ import annotations

import asyncio
import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from activities.keystores.activities import TARGET
from activities.keystores.context import KeystoreTerms
from activities.keystores.datakey import KeystoreCall
from activities.oneshot.process import Pool
from workflows.contracts.messages.keystore import CheckDataKey, DescribeKey, UnwrapDataKey
from workflows.contracts.messages.protection import DekAnswer
from workflows.contracts.trust.canonical import Message, Signed
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import ConfigurationInvalid, SessionLost
from workflows.contracts.trust.keystore import KeyDescription
from workflows.contracts.trust.roster import KeystoreWorker
from workflows.contracts.trust.signatures import open_signed

M = TypeVar("M", bound=Message)

ANSWER_SECONDS = 240.0
"""Limit for one answer, with the time to type a passphrase; a session lives no longer than five minutes."""


class OfflineKeystore:
    """An offline keystore at its custodian's: every call in a one-shot process of its own.

    Args:
        terms: what those processes are told.
        chain: the verified roster.

    Raises:
        ConfigurationInvalid: the keystore is not of type offline, or the roster says otherwise.
    """

    def __init__(self, terms: KeystoreTerms, chain: RosterChain) -> None:
        self.name = terms.name
        self._terms = terms
        self._entry = _entry(terms, chain)
        self._pool = Pool(TARGET, ("activities.keystores.kinds.offline",), spares=0)

    async def prove_keys(self) -> None:
        """Prove that both keys are here: the age identity of the roster's recipient, and the key that signs.

        Raises:
            ConfigurationInvalid, KeystoreAccessDenied: one of them is missing, another one, or does not open.
        """
        described, signer = open_signed(KeyDescription, await self._call(DescribeKey(keystore=self.name), Signed))
        if (signer, described.key_id) != (self._entry.fingerprint, self._entry.offline_key_id):
            raise ConfigurationInvalid(
                f"the roster names another identity key for {self.name} than {self._terms.identity}",
                next_step="use the keys that the roster names, or let the custodians change the roster",
                subject=self.name,
            )

    async def check(self, request: CheckDataKey) -> Signed:
        """Prove that the data key of a shard can be given back; releases nothing."""
        return await self._call(request, Signed)

    async def unwrap(self, request: UnwrapDataKey) -> DekAnswer:
        """A data key, encrypted to the session that asks for it."""
        return await self._call(request, DekAnswer)

    async def close(self) -> None:
        """End the machinery."""
        await self._pool.close()

    async def _call(self, request: Message, result: type[M]) -> M:
        with terminal_kept():
            process = await self._pool.take()
            try:
                answered = process.ask(KeystoreCall.of(request, terms=self._terms), result)
                return await asyncio.wait_for(answered, ANSWER_SECONDS)
            except TimeoutError:
                raise SessionLost(
                    f"{self.name} did not answer in {ANSWER_SECONDS:.0f} s: was its passphrase typed?"
                ) from None
            finally:
                self._pool.release(process)


@contextmanager
def terminal_kept() -> Iterator[None]:
    """Give the terminal back as it was: a one-shot process that is ended while it asks leaves it without echo."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        yield
        return
    try:
        before = termios.tcgetattr(terminal)
        try:
            yield
        finally:
            if termios.tcgetattr(terminal) != before:
                termios.tcsetattr(terminal, termios.TCSANOW, before)
    finally:
        os.close(terminal)


def _entry(terms: KeystoreTerms, chain: RosterChain) -> KeystoreWorker:
    entry, name = chain.current.keystore(terms.name), terms.name
    if terms.settings.get("type") != "offline":
        raise ConfigurationInvalid(
            f"[keystores.{name}] is of type {terms.settings.get('type')}: its worker answers for it",
            next_step="name a keystore of type offline",
        )
    if entry is None or entry.offline is None:
        raise ConfigurationInvalid(
            f"the roster names no offline keystore {name}", next_step="get the current roster file, or correct the name"
        )
    if entry.offline != terms.settings.get("recipient"):
        raise ConfigurationInvalid(
            f"[keystores.{name}] recipient is not the one that the roster names for {name}",
            next_step=f"the roster says: {entry.offline}",
        )
    return entry
