"""The inside of a one-shot process: hardened, ready, used once, gone.

It talks to its worker over one pipe in frames of bytes, watches a second pipe for the worker's end, does one thing and
exits. CPython cannot erase memory; the end of the process does.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import threading
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import TypeVar

from workflows.contracts.trust.canonical import Message
from workflows.contracts.trust.errors import MasterKeyError, SessionLost

M = TypeVar("M", bound=Message)

MAXIMUM_FRAME = 16 * 1024 * 1024
"""Bytes of one frame at most, in both directions."""

_PR_SET_DUMPABLE = 4
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_LIBC = ctypes.CDLL(None, use_errno=True)


class Channel:
    """The child's end of the pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def receive(self) -> bytes:
        """The next frame; raises EOFError when the worker has closed the pipe."""
        return self._connection.recv_bytes(MAXIMUM_FRAME)

    def send(self, data: bytes) -> None:
        """Answer with one frame."""
        self._connection.send_bytes(b"+" + data)

    def read(self, kind: type[M]) -> M:
        """The next frame as a message."""
        return kind.model_validate_json(self.receive())

    def reply(self, message: Message) -> None:
        """Answer with a message."""
        self.send(message.model_dump_json().encode())

    def receive_descriptor(self) -> int:
        """The descriptor that the worker passes with `OneShot.call_with_descriptor`."""
        return reduction.recv_handle(self._connection)

    def refuse(self, error: MasterKeyError) -> None:
        """Answer with an error of our own hierarchy."""
        body = [type(error).__name__, error.message, error.next_step, error.subject]
        self._connection.send_bytes(b"-" + json.dumps(body).encode())


def harden() -> list[str]:
    """Close the ways in which this process's memory could reach a disk or another process.

    No core dump (`RLIMIT_CORE` 0), not dumpable and so not traceable by other processes of its user
    (`prctl(2)`, `PR_SET_DUMPABLE`), and memory locked against swapping (`mlockall(2)`) where the limit
    allows.

    Returns:
        A warning for each thing that could not be done.
    """
    warnings = []
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        warnings.append("the process could not be made undumpable")
    # Locking under a small limit would make later allocations fail, so it is all or nothing.
    unlimited = os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] == resource.RLIM_INFINITY
    if not unlimited:
        warnings.append("memory is not locked: raise the limit (LimitMEMLOCK=infinity) or switch swap off")
    elif _LIBC.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        warnings.append(f"memory is not locked: mlockall failed with errno {ctypes.get_errno()}")
    return warnings


def _exit_with(life: Connection) -> None:
    # The worker never writes to this pipe: a read returns only when the worker is gone.
    try:
        life.recv_bytes()
    except (EOFError, OSError):
        os._exit(3)


def child_main(target: str, connection: Connection, life: Connection) -> None:
    """The life of a one-shot process: harden, report ready, run `target` ("module:function"), exit."""
    threading.Thread(target=_exit_with, args=(life,), daemon=True).start()
    channel = Channel(connection)
    warnings = harden()
    module, _, function = target.partition(":")
    run = getattr(importlib.import_module(module), function)
    channel.send(json.dumps(warnings).encode())
    try:
        run(channel)
    except MasterKeyError as error:
        channel.refuse(error)
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001 - its text may quote a secret, so only its kind leaves
        channel.refuse(SessionLost(f"a one-shot process failed with {type(error).__name__}"))
