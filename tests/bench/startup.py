"""How long the command line takes to start, beside a Python that does nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.bench.measure import Row, milliseconds_since, take_turns
from workers.local.stack import Stack

PASS = [sys.executable, "-c", "pass"]
HELP = [sys.executable, "-m", "workers.cli", "--help"]


def measure(stack: Stack, rounds: int) -> list[Row]:
    """`--help`, `status`, and what their imports cost."""
    environment = {**os.environ, **stack.environment()}

    def wall(command: list[str]) -> float:
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True, env=environment)
        return milliseconds_since(start)

    def imports(command: list[str]) -> float:
        run = [command[0], "-X", "importtime", *command[1:]]
        done = subprocess.run(run, capture_output=True, check=True, text=True, env=environment)
        lines = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line]
        return sum(int(line[0]) for line in lines if line[0].strip().isdigit()) / 1000

    status = stack.command("status")
    commands = {"pass": PASS, "--help": HELP, "status": status}
    found = take_turns({name: lambda c=command: wall(c) for name, command in commands.items()}, rounds)  # type: ignore[misc]
    costs = take_turns({name: lambda c=command: imports(c) for name, command in commands.items()}, max(3, rounds // 2))  # type: ignore[misc]
    return [
        *(
            Row("command line", f"masterkey {name}", "ms", found[name], found["pass"], "python -c pass")
            for name in ("--help", "status")
        ),
        *(
            Row("command line", f"masterkey {name}, imports", "ms", costs[name], costs["pass"], "python -c pass")
            for name in ("--help", "status")
        ),
    ]
