"""The activities of a keystore worker: each call goes into a one-shot process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from temporalio import activity

from activities.heartbeat import heartbeating
from activities.keystores.context import KeystoreTerms
from activities.keystores.datakey import KeystoreCall
from activities.oneshot.process import Pool
from workflows.calls.failures import as_failure
from workflows.contracts import names
from workflows.contracts.messages.keystore import (
    CheckDataKey,
    DescribeKey,
    GenerateDataKey,
    KeystoreRequest,
    NoteCommit,
    NoteOrder,
    ReportState,
    StopServing,
    UnwrapDataKey,
)
from workflows.contracts.messages.protection import DekAnswer
from workflows.contracts.trust.canonical import Message, Signed
from workflows.contracts.trust.errors import ConfigurationInvalid, MasterKeyError

M = TypeVar("M", bound=Message)

TARGET = "activities.keystores.datakey:serve"
"""What a keystore worker's one-shot processes run."""


class KeystoreActivities:
    """Activities of one keystore's worker.

    Args:
        pool: makes one-shot processes that run `TARGET`.
        terms: what they are told of this worker.
    """

    def __init__(self, pool: Pool, terms: KeystoreTerms) -> None:
        self._pool = pool
        self._terms = terms

    def all(self) -> Sequence[Callable[..., Any]]:
        """Everything to register with a Temporal worker."""
        return [
            self.describe_key,
            self.generate_data_key,
            self.unwrap_data_key,
            self.check_data_key,
            self.note_commit,
            self.note_order,
            self.stop_serving,
            self.report_state,
        ]

    @activity.defn(name=names.DESCRIBE_KEY)
    async def describe_key(self, request: DescribeKey) -> Signed:
        """Which key this keystore uses, signed."""
        return await self._call(request, Signed)

    @activity.defn(name=names.GENERATE_DATA_KEY)
    async def generate_data_key(self, request: GenerateDataKey) -> DekAnswer:
        """A fresh DEK, wrapped, and encrypted to a session."""
        return await self._call(request, DekAnswer)

    @activity.defn(name=names.UNWRAP_DATA_KEY)
    async def unwrap_data_key(self, request: UnwrapDataKey) -> DekAnswer:
        """A DEK unwrapped and encrypted to a session."""
        return await self._call(request, DekAnswer)

    @activity.defn(name=names.CHECK_DATA_KEY)
    async def check_data_key(self, request: CheckDataKey) -> Signed:
        """Proof that a DEK can still be given back; nothing is released."""
        return await self._call(request, Signed)

    @activity.defn(name=names.NOTE_COMMIT)
    async def note_commit(self, request: NoteCommit) -> Signed:
        """Remember which manifest is in force; answers with what is remembered, signed."""
        return await self._call(request, Signed)

    @activity.defn(name=names.NOTE_ORDER)
    async def note_order(self, request: NoteOrder) -> Signed:
        """Do what a governance quorum has ordered; answers with what is remembered, signed."""
        return await self._call(request, Signed)

    @activity.defn(name=names.STOP_SERVING)
    async def stop_serving(self, request: StopServing) -> Signed:
        """Remember a custodian's order to stop; answers with what is remembered, signed."""
        return await self._call(request, Signed)

    @activity.defn(name=names.REPORT_STATE)
    async def report_state(self, request: ReportState) -> Signed:
        """What this worker remembers, signed."""
        return await self._call(request, Signed)

    async def _call(self, request: KeystoreRequest, result: type[M]) -> M:
        try:
            if request.keystore != self._terms.name:
                raise ConfigurationInvalid(f"this worker serves {self._terms.name}, not {request.keystore}")
            async with heartbeating():
                process = await self._pool.take()
                try:
                    return await process.ask(KeystoreCall.of(request, terms=self._terms), result)
                finally:
                    # Also when the activity is cancelled: an SDK that hangs is ended with its process.
                    self._pool.release(process)
        except MasterKeyError as error:
            raise as_failure(error) from None
