"""Child processes of the embedded stack: started, waited for until ready, and surely stopped.

Each service runs in its own process group with its output in a log file. When the process that started it
dies, the kernel kills the service (Linux, `PR_SET_PDEATHSIG`), so nothing is left running.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from workflows.contracts.trust.errors import ConfigurationInvalid, MasterKeyError

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class ServiceFailed(MasterKeyError):
    """A service of the embedded stack ended, or did not become ready in time."""


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def port_answers(port: int) -> bool:
    """Whether something accepts connections on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass(frozen=True)
class Service:
    """A running service.

    Attributes:
        name: what it is called in messages.
        process: the child process, leader of its own process group.
        endpoint: where it answers, in its own notation (URL, host:port); "" if nowhere.
        log: the file that holds its output.
    """

    name: str
    process: subprocess.Popen[bytes]
    endpoint: str
    log: Path

    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children; harmless when they are gone."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return

    def stop(self, grace_seconds: float = 5.0) -> None:
        """SIGTERM, wait, then SIGKILL; returns when the process has ended."""
        if self.running():
            self.signal_group(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_seconds)
        self.kill()

    def kill(self) -> None:
        """SIGKILL for the whole group; returns when the process has ended."""
        self.signal_group(signal.SIGKILL)
        self.process.wait()


def start_service(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    ready: Callable[[], bool],
    endpoint: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_seconds: float = 30.0,
) -> Service:
    """Start a service and return when `ready()`, asked every 50 ms, says so.

    The other arguments are those of `launch_service`.

    Raises:
        ServiceFailed: it ended, or was not ready in time; the message quotes the end of its log.
        ConfigurationInvalid: the program is not installed.
    """
    service = launch_service(name, command, log=log, endpoint=endpoint, env=env, cwd=cwd)
    wait_until_ready(service, ready, timeout_seconds)
    return service


def launch_service(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    endpoint: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Service:
    """Start a service and do not wait.

    The kernel ends it with the *thread* that started it, so call this from a thread that stays.

    Args:
        name: for messages.
        command: program and arguments; the program is looked up beside the interpreter and on PATH.
        log: its output is appended here.
        endpoint: where it will answer.
        env: variables set on top of this process's own.
        cwd: the folder it runs in.

    Raises:
        ConfigurationInvalid: the program is not installed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # The servers come as Python packages: they stand beside the interpreter, which need not be on PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = shutil.which(command[0], path=path)
    if program is None:
        raise ConfigurationInvalid(
            f"{name}: the program {command[0]!r} is not installed", next_step="run `make test` once to install it"
        )
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - programs of our own choice, no shell
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path, **(env or {})},
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    return Service(name=name, process=process, endpoint=endpoint, log=log)


def wait_until_ready(service: Service, ready: Callable[[], bool], timeout_seconds: float = 30.0) -> None:
    """Wait until a launched service is ready, and kill it if that takes too long.

    Raises:
        ServiceFailed: it ended, or was not ready in time; the message quotes the end of its log.
    """
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline and service.running():
        if ready():
            return
        time.sleep(0.05)
    ended = service.process.poll()
    service.kill()
    tail = service.log.read_text(encoding="utf-8", errors="replace")[-800:].strip()
    reason = f"ended with exit code {ended}" if ended is not None else f"was not ready after {timeout_seconds:g} s"
    raise ServiceFailed(f"{service.name} {reason}: {tail}", next_step=f"read {service.log}")
