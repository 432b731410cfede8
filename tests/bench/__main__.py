"""`python -m tests.bench [--quick] [--json]`: run everything, print one table or one JSON object."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from tests.bench import oneshot, roles, sharing, startup, unseals
from tests.bench.measure import Row, Series
from tests.conftest import Installation, start_installation


async def _on_an_installation(installation: Installation, quick: bool) -> list[Row]:
    assert installation.stack.temporal is not None
    client = await Client.connect(installation.stack.temporal.endpoint, data_converter=pydantic_data_converter)
    bare = unseals.start_bare_workers(installation)
    subject = unseals.Unseals(installation, client)
    rows = await unseals.measure(subject, rounds=8 if quick else 30)
    rows += await oneshot.measure(subject, await subject.init("seal"), rounds=4 if quick else 12)
    rows += roles.measure(installation.stack.services, bare)
    return rows + startup.measure(installation.stack, rounds=4 if quick else 10)


def _table(rows: Sequence[Row]) -> Table:
    table = Table("", "what", "median", "quartiles", "baseline", "against", "ratio", "aim", box=None)
    group = ""
    for row in rows:
        if group and row.group != group:
            table.add_section()
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        aim = f"{row.aim} {'reached' if row.reached else 'missed'}" if row.aim else ""
        table.add_row(
            row.group if row.group != group else "",
            row.name,
            f"{row.subject.median:,.1f} {row.unit}",
            _quartiles(row.subject),
            f"{row.baseline.median:,.1f}" if row.baseline else "",
            row.against,
            ratio,
            aim,
        )
        group = row.group
    return table


def _quartiles(series: Series) -> str:
    low, high = series.quartiles
    return f"{low:,.1f} to {high:,.1f}"


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    options = parser.parse_args()
    start, load = time.monotonic(), os.getloadavg()[0]
    rows = sharing.measure(rounds=5 if options.quick else 15)
    with tempfile.TemporaryDirectory(prefix="masterkey-bench-") as folder:
        installation = start_installation(Path(folder), one_keystore_process=False)
        try:
            rows += asyncio.run(_on_an_installation(installation, options.quick))
        finally:
            installation.stack.stop()
    seconds, loads = time.monotonic() - start, (load, os.getloadavg()[0])
    if options.json:
        found = {
            "seconds": round(seconds, 1),
            "cores": os.cpu_count(),
            "load": loads,
            "rows": [r.as_json() for r in rows],
        }
        sys.stdout.write(json.dumps(found) + "\n")
        return
    console = Console(width=160 if not sys.stdout.isatty() else None)
    console.print(_table(rows))
    console.print(f"\n{seconds:.0f} s, {os.cpu_count()} cores, load {loads[0]:.1f} before and {loads[1]:.1f} after")


main()
