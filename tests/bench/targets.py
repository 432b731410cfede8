"""What the bench's one-shot processes run: the product's own work, then one more frame with their memory."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from activities.keystores import datakey
from activities.oneshot.child import Channel
from activities.strongroom import session

SESSION = f"{__name__}:serve_session"
KEYSTORE = f"{__name__}:serve_keystore"


def serve_session(channel: Channel) -> None:
    """As `session.serve`."""
    _then_memory(session.serve, channel)


def serve_keystore(channel: Channel) -> None:
    """As `datakey.serve`."""
    _then_memory(datakey.serve, channel)


def _then_memory(serve: Callable[[Channel], None], channel: Channel) -> None:
    serve(channel)
    channel.send(str(psutil.Process().memory_full_info().uss).encode())
