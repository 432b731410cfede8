"""Memory of each worker role, after the unseals of this run, beside a bare worker of the same queues.

*Alone* is the private memory (USS) of the worker's own process; *in all* adds its fork server and spare, each
shared page counted once (sum of PSS).
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import psutil

from tests.bench.measure import Row, Series
from tests.bench.oneshot import MEBI
from workers.local.process import Service

ROLES = {"orchestrator": "orchestrator", "strongroom": "strongroom", "keystore-bao-1": "keystore-1"}
"""Roles of the product, and their bare counterparts."""


def _alone(process: psutil.Process) -> float:
    return float(process.memory_full_info().uss / MEBI)


def _in_all(process: psutil.Process) -> float:
    family = [process, *process.children(recursive=True)]
    return sum(member.memory_full_info().pss for member in family) / MEBI


def measure(product: Mapping[str, Service], bare: Mapping[str, Service]) -> list[Row]:
    """One row for each role and way of counting."""
    rows = []
    for role, counterpart in ROLES.items():
        ours, theirs = psutil.Process(product[role].process.pid), psutil.Process(bare[counterpart].process.pid)
        for how, count in (("alone", _alone), ("in all", _in_all)):
            values = []
            for _ in range(3):
                values.append((count(ours), count(theirs)))
                time.sleep(0.2)
            subject, baseline = (Series(tuple(column)) for column in zip(*values, strict=True))
            name = role.removesuffix("-bao-1")
            rows.append(Row("worker memory", f"{name}, {how}", "MiB", subject, baseline, "bare worker"))
    return rows
