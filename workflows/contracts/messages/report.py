"""Reports of the ledger."""

from __future__ import annotations

from typing import Literal

from workflows.contracts.messages.results import DrillResult
from workflows.contracts.trust.canonical import Message, Signed


class ReportRequest(Message):
    """Ask the ledger for a report."""

    kind: Literal["status", "ceremonies", "protection"]
    master_key: str | None = None
    limit: int = 100


class CeremonySummary(Message):
    """A line of `ceremony list`."""

    ceremony: str
    workflow_id: str
    action: str
    master_key: str
    phase: str
    outcome: str
    detail: str
    opened_at: str
    closed_at: str | None


class ProtectionSummary(Message):
    """What `status` shows of a protection."""

    manifest: Signed
    status: str
    destroy_after: str | None = None


class Report(Message):
    """A report of the ledger: unverified; the caller checks the manifests."""

    protections: tuple[ProtectionSummary, ...] = ()
    ceremonies: tuple[CeremonySummary, ...] = ()
    drills: tuple[DrillResult, ...] = ()
    stops: tuple[Signed, ...] = ()
    events: int = 0
    head: str = ""
