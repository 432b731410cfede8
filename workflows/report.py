"""`ReportWorkflow`: what the ledger says, for whoever has Temporal but no database."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from workflows.calls.failures import as_failure, from_failure
    from workflows.contracts import names
    from workflows.contracts.messages import Report, ReportRequest


@workflow.defn
class ReportWorkflow:
    """One read of the ledger; it changes nothing."""

    @workflow.run
    async def run(self, request: ReportRequest) -> Report:
        """Read and return; the caller verifies the manifests in it."""
        try:
            report: Report = await workflow.execute_activity(
                names.READ_REPORT,
                request,
                result_type=Report,
                start_to_close_timeout=timedelta(seconds=10),
                schedule_to_close_timeout=timedelta(seconds=20),
                retry_policy=RetryPolicy(maximum_attempts=3),
            )
        except ActivityError as error:
            # As one of our errors, so that a corrupt ledger is told from one that does not answer.
            raise as_failure(from_failure(error)) from None
        return report
