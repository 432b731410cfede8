"""What the one-shot processes of the tests run."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import secrets
import time
from pathlib import Path

from activities.crypto.hpke import PrivateKey
from activities.oneshot.child import Channel
from workflows.contracts.trust.service_errors import KeyDisabled


def echo(channel: Channel) -> None:
    """Answer with what was sent."""
    channel.send(channel.receive())


def refuse(channel: Channel) -> None:
    """Answer with one of our errors."""
    channel.receive()
    raise KeyDisabled("the key is disabled", next_step="enable it", subject="aws-fra")


def fail(channel: Channel) -> None:
    """Fail in an unforeseen way, with a text that quotes a secret."""
    raise ValueError(f"cannot use {channel.receive().decode()}")


def die(channel: Channel) -> None:
    """Die without an answer."""
    channel.receive()
    os._exit(9)


def hang(channel: Channel) -> None:
    """Never answer."""
    channel.receive()
    time.sleep(3600)


def describe_itself(channel: Channel) -> None:
    """Say how well this process is protected."""
    channel.receive()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    described = {
        "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "locked": int(fields["VmLck"].split()[0]),
    }
    channel.send(json.dumps(described).encode())


def draw(channel: Channel) -> None:
    """Everything random that a child draws, to compare between children."""
    channel.receive()
    key = PrivateKey().public_key
    channel.send(json.dumps([key, secrets.token_hex(16), os.urandom(16).hex()]).encode())


def take_descriptor(channel: Channel) -> None:
    """Write what was sent to the descriptor that came with it."""
    data = channel.receive()
    descriptor = channel.receive_descriptor()
    os.write(descriptor, data)
    os.close(descriptor)
    channel.send(b"done")
