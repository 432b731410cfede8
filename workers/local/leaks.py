"""Looks for a MasterKey everywhere that it must not be: run by `masterkey unseal --exec`, which hands it over.

It derives the key check value, waits until it is told to look, then searches workflow histories, every file
of the installation (ledger, Temporal's database, logs, working folders), and the memory of every process
that is named, for the key as raw bytes, hexadecimal, base64 and base64url at any alignment. It writes
counts, never the key. A process that searches must first find the key in its own memory: a blind search
proves nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from activities.crypto.envelope import key_check_value

_CHUNK = 8 * 1024 * 1024
_PATIENCE_SECONDS = 300


def patterns(key: bytes) -> list[bytes]:
    """Everything that gives a 32-byte key away.

    Base64 is searched at all three alignments, without the first and last characters that depend on the
    neighbouring bytes; both alphabets.
    """
    found = [key, key.hex().encode(), key.hex().upper().encode()]
    for before in range(3):
        text = base64.b64encode(b"\0" * before + key)
        first = (before * 8 + 5) // 6
        last = (before + len(key)) * 8 // 6
        found += [text[first:last], base64.urlsafe_b64encode(b"\0" * before + key)[first:last]]
    return list(dict.fromkeys(found))


def count(data: bytes, searched: Sequence[bytes]) -> int:
    """How often any of the patterns occurs in `data`."""
    return sum(data.count(pattern) for pattern in searched)


def count_in_file(path: Path, searched: Sequence[bytes]) -> int:
    """How often any pattern occurs in a file, read in overlapping chunks."""
    overlap, total, tail = max(map(len, searched)) - 1, 0, b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            total += count(tail + chunk, searched) - count(tail, searched)
            tail = (tail + chunk)[-overlap:]
    return total


def count_in_memory(pid: int, searched: Sequence[bytes]) -> int:
    """How often any pattern occurs in the readable memory of a process.

    Raises:
        PermissionError: this process may not look there.
        FileNotFoundError, ProcessLookupError: it has ended.
    """
    total = 0
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in _readable(Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")):
            for offset in range(start, end, _CHUNK):
                try:
                    memory.seek(offset)
                    # 64 bytes further than the chunk: what straddles two chunks is found in the first.
                    data = memory.read(min(_CHUNK + 64, end - offset))
                except (OSError, ValueError):
                    continue
                total += count(data, searched)
    return total


def _readable(maps: str) -> Iterator[tuple[int, int]]:
    for line in maps.splitlines():
        span, permissions, *_ = line.split()
        if "r" in permissions and not line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
            start, _, end = span.partition("-")
            yield int(start, 16), int(end, 16)


async def histories(searched: Sequence[bytes]) -> tuple[int, int]:
    """How many workflow histories there are, and how often a pattern occurs in them, payloads decoded."""
    from workers.connection import connect

    client = await connect()
    number = total = 0
    async for execution in client.list_workflows():
        handle = client.get_workflow_handle(execution.id, run_id=execution.run_id)
        history = await handle.fetch_history()
        number += 1
        # Payload data is raw in the protobuf form, and base64 in the JSON form.
        total += sum(count(event.SerializeToString(), searched) for event in history.events)
        total += count(history.to_json().encode(), searched)
    return number, total


def search(key: bytes, folder: Path, pids: Iterable[int]) -> dict[str, int]:
    """Search everywhere; the answer counts what was looked at and what was found."""
    searched = patterns(key)
    if count_in_memory(os.getpid(), searched) == 0:
        raise SystemExit("this search is blind: it does not find the key where it is")
    number, found = asyncio.run(histories(searched))
    result = {"histories": number, "files": 0, "processes": 0, "unreadable": 0, "found": found}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            result["files"] += 1
            result["found"] += count_in_file(path, searched)
    for pid in pids:
        try:
            result["found"] += count_in_memory(pid, searched)
            result["processes"] += 1
        except PermissionError:
            result["unreadable"] += 1
        except (FileNotFoundError, ProcessLookupError):
            continue
    return result


def main() -> None:
    """Receive a key, say its check value at once, and search when the file with the process ids appears."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="name of the MasterKey")
    parser.add_argument("folder", type=Path, help="the installation")
    parser.add_argument("say", type=Path, help="file for the key check value; outside the installation")
    parser.add_argument("go", type=Path, help="when this file exists, search the processes it lists")
    parser.add_argument("result", type=Path, help="file for the counts")
    options = parser.parse_args()
    key = os.read(int(os.environ["MASTERKEY_FD"]), 64)
    _write(options.say, {"kcv": key_check_value(key, options.name), "bytes": len(key)})
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not options.go.exists():
        if time.monotonic() > deadline:
            raise SystemExit("nobody asked for the search")
        time.sleep(0.05)
    # The command line that received the delivery is searched too: it passed the key on without holding it.
    pids = [*json.loads(options.go.read_text(encoding="utf-8")), os.getppid()]
    _write(options.result, search(key, options.folder, pids))


def _write(path: Path, data: Mapping[str, int | str]) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(data), encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
