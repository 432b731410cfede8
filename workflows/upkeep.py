"""Short workflows that nobody waits for: one clears away, two look.

`CollectWorkflow`, on a schedule: what nobody needs any more. `SurveyWorkflow`: what keystore workers remember.
`ReportWorkflow`: what the ledger says, for whoever has Temporal but no database.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RawValue, RetryPolicy

from workflows.calls.concurrency import gather
from workflows.calls.failures import as_failure
from workflows.calls.keystores import call_keystore
from workflows.calls.ledger import call_ledger
from workflows.contracts import names
from workflows.contracts.messages.keystore import ReportState
from workflows.contracts.messages.ledger import Collect, Collected
from workflows.contracts.messages.report import Report, ReportRequest
from workflows.contracts.messages.requests import CollectRequest, SurveyRequest
from workflows.contracts.messages.results import SurveyResult
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import MasterKeyError
from workflows.contracts.trust.service_errors import NotKnown

_TIMEOUT = timedelta(seconds=15)


@workflow.defn
class CollectWorkflow:
    """Staged leftovers of ceremonies that are over, and retired protections whose time has come."""

    @workflow.run
    async def run(self, request: CollectRequest) -> Collected:
        """Collect, and say what was collected."""
        older_than = workflow.now().replace(microsecond=0) - timedelta(seconds=request.grace_seconds)
        try:
            return await call_ledger(
                names.COLLECT,
                Collect(older_than=older_than),
                Collected,
                attempt=timedelta(seconds=60),
                within=timedelta(minutes=30),
                retry=RetryPolicy(maximum_interval=timedelta(seconds=60)),
            )
        except MasterKeyError as error:
            raise as_failure(error) from None


@workflow.defn
class SurveyWorkflow:
    """What keystore workers remember, in their own signed words; the caller verifies them."""

    @workflow.run
    async def run(self, request: SurveyRequest) -> SurveyResult:
        """Ask all at once."""

        async def ask(name: str) -> Signed | None:
            asked = ReportState(keystore=name, nonce=request.nonce)
            try:
                return await call_keystore(names.REPORT_STATE, name, asked, Signed, within=_TIMEOUT, attempts=2)
            except MasterKeyError as error:
                workflow.logger.info("%s did not say what it remembers: %s", name, error.message)
                return None

        found = await gather([ask(name) for name in request.keystores])
        answered = tuple(signed for signed in found if signed is not None)
        silent = tuple(name for name, signed in zip(request.keystores, found, strict=True) if signed is None)
        return SurveyResult(statements=answered, silent=silent)


@workflow.defn
class ReportWorkflow:
    """One read of the ledger; it changes nothing."""

    @workflow.run
    async def run(self, request: ReportRequest) -> Report:
        """Read and return; the caller verifies the manifests in it."""
        try:
            return await call_ledger(
                names.READ_REPORT,
                request,
                Report,
                attempt=timedelta(seconds=10),
                within=timedelta(seconds=20),
                retry=RetryPolicy(maximum_attempts=3),
            )
        except MasterKeyError as error:
            # As one of our errors, so that a corrupt ledger is told from one that does not answer.
            raise as_failure(error) from None


@workflow.defn(dynamic=True)
class UnknownWorkflow:
    """A start of a type that is none of ours: it fails, where it would hold its workflow id and wait for ever."""

    @workflow.run
    async def run(self, args: Sequence[RawValue]) -> None:
        """Fail with the type of one of our errors."""
        kind = workflow.info().workflow_type[:100]
        raise as_failure(
            NotKnown(
                f"this orchestrator knows no workflow of type {kind!r}",
                next_step="use a command line of the orchestrator's version or an older one",
            )
        )
