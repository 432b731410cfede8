"""The Temporal development server with a database file, tuned for short workflows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from workers.local.process import Service, free_port, port_answers, start_service
from workflows.contracts.names import SEARCH_ATTRIBUTES

# The server's default reads each of its queues at most every 50 ms, so a workflow of one activity takes
# 100 ms. Measured with server 1.32: three rounds of activities went from 350 to 76 ms.
_DYNAMIC_CONFIGURATION = (
    "history.transferProcessorMaxPollRPS=5000",
    "history.timerProcessorMaxPollRPS=5000",
    'history.timerProcessorMaxTimeShift="5ms"',
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
)


def start_temporal(
    folder: Path, *, port: int | None = None, ui: bool = False, namespaces: Sequence[str] = ()
) -> Service:
    """Start the development server; its database is `folder`/temporal.db and survives a restart.

    Args:
        folder: holds the database and the log.
        port: of the front end; a free one if none is given.
        ui: also serve the web UI, on the port 1000 higher.
        namespaces: to be created beside `default`.

    Returns:
        The service; its endpoint is host:port.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen = port or free_port()
    command = [
        "temporal",
        "server",
        "start-dev",
        "--ip",
        "127.0.0.1",
        "--port",
        str(chosen),
        "--db-filename",
        str(folder / "temporal.db"),
        "--log-level",
        "warn",
        "--sqlite-pragma",
        "journal_mode=wal",
        "--sqlite-pragma",
        "synchronous=normal",
    ]
    for setting in _DYNAMIC_CONFIGURATION:
        command += ["--dynamic-config-value", setting]
    for key in SEARCH_ATTRIBUTES:
        command += ["--search-attribute", f"{key.name}=Keyword"]
    for namespace in namespaces:
        command += ["--namespace", namespace]
    if not ui:
        command.append("--headless")
    return start_service(
        "temporal",
        command,
        log=folder / "temporal.log",
        ready=lambda: port_answers(chosen),
        endpoint=f"127.0.0.1:{chosen}",
    )
