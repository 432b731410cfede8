"""The search for plaintext finds what it must: a search that finds nothing proves something only then."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers.local.leaks import count, count_in_file, count_in_memory, patterns

KEY = bytes(range(100, 132))


@pytest.mark.parametrize("before", range(6))
@pytest.mark.parametrize("after", range(4))
def test_a_key_is_found_in_base64_at_any_alignment(before: int, after: int) -> None:
    inside = b"\xf7" * before + KEY + b"\x0f" * after
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        assert count(b"x" + encode(inside) + b"y", patterns(KEY)) >= 1


@pytest.mark.parametrize("text", [KEY, KEY.hex().encode(), KEY.hex().upper().encode()])
def test_a_key_is_found_raw_and_in_hexadecimal(text: bytes) -> None:
    assert count(b"..." + text + b"...", patterns(KEY)) == 1


def test_another_key_is_not_found() -> None:
    assert count(bytes(reversed(KEY)) + base64.b64encode(KEY[1:]) + KEY[:31], patterns(KEY)) == 0


def test_a_key_that_straddles_two_chunks_of_a_file_is_found_once(tmp_path: Path) -> None:
    file = tmp_path / "large"
    for offset in (0, 8 * 1024 * 1024 - 16, 8 * 1024 * 1024, 9_000_000):
        file.write_bytes(b"\0" * offset + KEY + b"\0" * 100)
        assert count_in_file(file, patterns(KEY)) == 1


def test_a_key_in_another_processs_memory_is_found() -> None:
    program = "import sys; key = bytes(range(100, 132)); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert count_in_memory(child.pid, patterns(KEY)) >= 1
        child.kill()
    assert count_in_memory(os.getpid(), patterns(KEY)) >= 1
