"""`masterkey dev`, the embedded stack kept up."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from workers.local.components import SPARE
from workers.local.scenario import SSS, bring_up
from workers.local.stack import Stack
from workers.output import answer, say


def run_dev(folder: Path) -> None:
    """Bring the stack up in `folder`, say how to use it, and keep it up until interrupted."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    stack = Stack(folder)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        bring_up(stack, port=7233, ui=True)
        names = " ".join(f"--keystore {name}" for name in stack.keystores if name != SPARE)
        data = {"folder": str(folder), "temporal": "127.0.0.1:7233", "ui": "http://127.0.0.1:8233"}

        def text() -> None:
            say(f"up: Temporal at 127.0.0.1:7233, its web UI at http://127.0.0.1:8233, everything else in {folder}")
            say("try, in another terminal:")
            say(f"  masterkey --config {folder}/client.toml init {SSS} --mode sss --threshold 3 {names}")
            say(f"  masterkey --config {folder}/client.toml approve CEREMONY --key {folder}/keys/alice")
            say("Ctrl-C stops everything; emulated cloud keys are gone then, because the emulators keep none")

        answer(data, text)
        sys.stdout.flush()
        stop.wait()
    finally:
        stack.stop()
