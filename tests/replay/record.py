"""`python -m tests.replay.record`: run every workflow for real, and keep its history for the replay test.

Histories hold ciphertext and signed documents only. Names of the recording machine are taken out.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from tests.conftest import Installation, start_installation
from tests.support import eventually
from workflows.contracts.names import workflow_id

FOLDER = Path(__file__).parent / "histories"


def scrubbed(value: Any) -> Any:
    """Without the identities of workers and clients, and stack traces: they name the machine and its folders."""
    if isinstance(value, dict):
        named = ("identity", "stackTrace")
        return {key: "recorded" if key in named else scrubbed(item) for key, item in value.items()}
    if isinstance(value, str):
        # Sticky task queues are named after the worker: its process id and its host.
        return re.sub(rf"[0-9]+@{re.escape(socket.gethostname())}", "recorded", value)
    return [scrubbed(item) for item in value] if isinstance(value, list) else value


def decide(installation: Installation, ceremony: str, word: str, names: tuple[str, ...]) -> None:
    """Let custodians approve or reject."""
    for name in names:
        key = str(installation.folder / "keys" / name)
        installation.stack.masterkey(word, ceremony, "--key", key, "--yes")


def ended(installation: Installation, ceremony: str) -> bool:
    """Whether a ceremony is over."""
    return installation.stack.masterkey("ceremony", "show", ceremony)["phase"] in ("done", "refused", "failed")


def unseal(installation: Installation, name: str, approvers: tuple[str, ...] = ()) -> str:
    """Unseal; the ceremony's id."""
    stack = installation.stack
    child = stack.background("unseal", name, "--exec", "--", "true")
    if approvers:
        ceremony = eventually(
            lambda: [
                entry["ceremony"]
                for entry in stack.masterkey("ceremony", "list")["ceremonies"]
                if entry["master_key"] == name and entry["phase"] == "quorum"
            ]
        )[0]
        decide(installation, ceremony, "approve", approvers)
    out, err = child.communicate(timeout=90)
    if child.returncode != 0:
        raise SystemExit(err)
    return str(json.loads(out)["ceremony"])


def ceremonies(installation: Installation) -> dict[str, str]:
    """Run one of each; ceremony ids by the name of the history."""
    stack, found = installation.stack, {}
    found["init-sss"] = str(installation.init("mk-0")["ceremony"])
    found["init-seal"] = str(installation.init("mk-1", "seal", count=2)["ceremony"])
    refused = stack.masterkey("init", "mk-2", "--mode", "seal", "--keystore", "bao-1", "--no-wait")["ceremony"]
    eventually(lambda: stack.masterkey("ceremony", "show", refused)["phase"] == "quorum")
    decide(installation, refused, "reject", ("alice", "bob", "carol"))
    eventually(lambda: ended(installation, refused))
    found["init-rejected"] = refused
    taken = stack.masterkey("init", "mk-0", "--mode", "seal", "--keystore", "bao-1", "--no-wait")["ceremony"]
    eventually(lambda: ended(installation, taken))
    found["init-name-taken"] = taken
    found["unseal-sss"] = unseal(installation, "mk-0", ("alice", "carol", "erin"))
    found["unseal-seal"] = unseal(installation, "mk-1")
    installation.bao.ask("POST", "transit/keys/wrap-1/rotate", {})
    installation.bao.ask("POST", "transit/keys/wrap-1/config", {"min_decryption_version": 2})
    found["unseal-with-a-keystore-lost"] = unseal(installation, "mk-1")
    child = stack.background("drill", "mk-0")
    found["drill"] = json.loads(child.communicate(timeout=90)[0])["ceremony"]
    return found


async def save(installation: Installation, found: dict[str, str]) -> None:
    """Fetch the histories and write them down."""
    assert installation.stack.temporal is not None
    client = await Client.connect(installation.stack.temporal.endpoint, data_converter=pydantic_data_converter)
    runs = {"report": "ExecutionStatus='Completed' AND WorkflowType='ReportWorkflow'"}
    runs |= {name: f"MasterKeyCeremony='{ceremony}'" for name, ceremony in found.items()}
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, query in sorted(runs.items()):
        async for execution in client.list_workflows(query):
            handle = client.get_workflow_handle(execution.id, run_id=execution.run_id)
            history = scrubbed(json.loads((await handle.fetch_history()).to_json()))
            expected = workflow_id(found[name]) if name in found else execution.id
            text = json.dumps({"workflow_id": expected, "history": history}, indent=1)
            (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
            sys.stderr.write(f"{name}: {len(history['events'])} events, {len(text)} bytes\n")
            break


def main() -> None:
    """Record all histories anew."""
    with tempfile.TemporaryDirectory(prefix="masterkey-record-") as folder:
        installation = start_installation(Path(folder))
        try:
            asyncio.run(save(installation, ceremonies(installation)))
        finally:
            installation.stack.stop()


if __name__ == "__main__":
    main()
