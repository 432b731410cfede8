"""A terminal for tests: a command with a terminal of its own, and somebody who types what it asks for."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_BECOME = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def on_terminal(
    words: Sequence[str],
    typed: Sequence[tuple[str, str]],
    *,
    folder: Path,
    env: Mapping[str, str] | None = None,
    limit: float = 60.0,
) -> tuple[int, str]:
    """Run `masterkey` on a terminal.

    Args:
        words: the command line.
        typed: pairs of a pattern that the end of the screen matches, and the line to type then; in order.
        folder: where to run it.
        env: more variables.
        limit: seconds.

    Returns:
        Exit code, and everything that the terminal showed.
    """
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", _BECOME, "-m", "workers.cli", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        cwd=folder,
        env={**os.environ, **(env or {})},
    )
    os.close(theirs)
    shown, waiting, answered, deadline = "", list(typed), 0, time.monotonic() + limit
    try:
        while True:
            assert time.monotonic() < deadline, f"it did not end in time: {shown}"
            if not select.select([ours], [], [], 0.5)[0]:
                continue
            try:
                shown += os.read(ours, 4096).decode(errors="replace")
            except OSError:
                break
            if waiting and re.search(waiting[0][0] + r"\s*$", shown[answered:]):
                answered = len(shown)
                # getpass flushes what was typed before it asked.
                time.sleep(0.1)
                os.write(ours, waiting.pop(0)[1].encode() + b"\n")
        return child.wait(max(1.0, deadline - time.monotonic())), shown
    finally:
        child.kill()
        child.wait()
        os.close(ours)
