"""Gates: an activity stops where a test says, so that something may be ended exactly there; or is cut off there.

A test asks for a gate with a file, `gates/WHOSE.ACTIVITY.before` or `.after` (whose: a MasterKey's name for what
changes it, else a ceremony's id): the next activity of that kind stops before its work, or after its work and before
its answer. It renames the file to `....reached` and waits until the test removes that. What writes down a phase can
be told by it, as `record_events@proving`. A file that says `every` stops also those of that kind that come after it,
the same one tried again among them. One that says `cut` ends the activity there as a worker's death does:
nothing is answered, and the server notices by the time-outs.

Files, so that a role in a process of its own has gates too: `python -m tests.driving.gates GATES CONFIG ROLE
[KEYSTORE...]`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from temporalio import activity
from temporalio.exceptions import ApplicationError
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor, Worker

from workers import roles
from workers.config import Configuration

EVERY, CUT = "every", "cut"
_LONG = timedelta(seconds=20)
_WHOSE = re.compile(r"^masterkey/([a-z0-9-]+)(\.[a-z]+\.[0-9a-f]+)?")


class Gates(Interceptor):
    """Stops activities at gates.

    Attributes:
        on_reach: is told the file of a gate that an activity came to, while it stands there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.on_reach: Callable[[Path], None] | None = None

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        return _Gate(next, self)


class _Gate(ActivityInboundInterceptor):
    def __init__(self, inner: ActivityInboundInterceptor, gates: Gates) -> None:
        super().__init__(inner)
        self._gates = gates
        self._folder = gates.folder

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        phase = getattr(input.args[0], "phase", "") if input.args else ""
        await self._stop("before", phase)
        answer = await super().execute_activity(input)
        await self._stop("after", phase)
        return answer

    async def _stop(self, when: str, phase: str) -> None:
        info = activity.info()
        match = _WHOSE.match(info.workflow_id or "")
        whose = match.group().partition("/")[2] if match else ""
        kinds = [info.activity_type, *([f"{info.activity_type}@{phase}"] if phase else [])]
        reached = next((gate for kind in kinds if (gate := self._reach(f"{whose}.{kind}.{when}"))), None)
        if reached is None:
            return
        if self._gates.on_reach is not None:
            self._gates.on_reach(reached.with_suffix(""))
        if reached.read_text(encoding="ascii") == CUT:
            self._die(info)
        while reached.exists():
            # Not for the ledger's: a heartbeat of an activity in a thread blocks this loop.
            if info.heartbeat_timeout:
                activity.heartbeat()
            await asyncio.sleep(0.05)

    def _die(self, info: activity.Info) -> NoReturn:
        if info.heartbeat_timeout is None and (info.start_to_close_timeout or _LONG) >= _LONG:
            # The server would try it again by itself after half a minute, and the workflow would not notice either.
            raise ApplicationError("its worker died", type="WorkerDied")
        # Nobody ever answers: the server notices by the time-outs that the workflow has set.
        activity.raise_complete_async()

    def _reach(self, name: str) -> Path | None:
        reached = self._folder / f"{name}.reached"
        try:
            return (self._folder / name).rename(reached)
        except FileNotFoundError:
            return reached if reached.exists() and reached.read_text(encoding="ascii") == EVERY else None


@dataclass(frozen=True)
class Gate:
    """A gate that a test has asked for."""

    file: Path
    kind: str = ""

    @property
    def reached(self) -> bool:
        """Whether an activity waits at it."""
        return self.file.with_name(self.file.name + ".reached").exists()

    def close(self) -> None:
        """Ask for it."""
        new = self.file.with_name(self.file.name + ".new")
        new.write_text(self.kind, encoding="ascii")
        new.rename(self.file)

    def open(self) -> None:
        """Let the activity go on, or take the gate away."""
        for path in (self.file, self.file.with_name(self.file.name + ".reached")):
            path.unlink(missing_ok=True)


async def wait_for_gates(gates: Sequence[Gate], limit: float = 30.0) -> None:
    """Wait until an activity stands at each gate."""
    deadline = time.monotonic() + limit
    while not all(gate.reached for gate in gates):
        missing = [gate.file.name for gate in gates if not gate.reached]
        assert time.monotonic() < deadline, f"nobody came to {missing}"
        await asyncio.sleep(0.05)


def main() -> None:
    """Run a role with gates."""
    gates, config, role, *keystores = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    vars(roles)["Worker"] = functools.partial(Worker, interceptors=[Gates(Path(gates))])
    configuration = Configuration.load(Path(config))
    if role == "orchestrator":
        asyncio.run(roles.run_orchestrator(configuration))
    elif role == "strongroom":
        asyncio.run(roles.run_strongroom(configuration))
    else:
        asyncio.run(roles.run_keystores(configuration, keystores))


if __name__ == "__main__":
    main()
