"""The command line in this process: a command costs what it does, not the start of an interpreter.

It goes through the command line's own entry, with its own standard output, standard error and options, so that
several may run at once. What needs a process (an exit by a signal, a terminal, an inherited descriptor) starts one.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn, TextIO

from workers.cli import app
from workers.local.process import ServiceFailed
from workers.local.stack import Stack
from workers.output import OPTIONS, Options


class Running:
    """A command that runs in a thread of this process, with the face of a `subprocess.Popen` for text."""

    def __init__(self, words: tuple[str, ...], env: Mapping[str, str]) -> None:
        self._env = env
        self._words = words
        self._out = io.StringIO()
        reading, writing = os.pipe()
        self.stderr: TextIO = os.fdopen(reading, encoding="utf-8")
        self._err = os.fdopen(writing, "w", encoding="utf-8", buffering=1)
        self.returncode: int | None = None
        self._thread = threading.Thread(target=self._run, name=f"masterkey {' '.join(words[:4])}", daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self.returncode

    def wait(self, timeout: float) -> int:
        """The exit code, once it has ended; raises TimeoutExpired."""
        self._thread.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(list(self._words), timeout)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """All that it has said, once it has ended; raises TimeoutExpired."""
        self.wait(timeout)
        with self.stderr:
            return self._out.getvalue(), self.stderr.read()

    def _run(self) -> None:
        _STDOUT.set(self._out)
        _STDERR.set(self._err)
        _CONFIG.set(Path("masterkey.toml"))
        _JSON.set(False)
        code = 1
        try:
            with _environment(self._env):
                app.main(self._words)
        except _Exited as exited:
            code = exited.code
        except BaseException:  # noqa: BLE001 - a process would show it, and exit with 1
            code = 1
            traceback.print_exc(file=self._err)
        finally:
            self._err.close()
            self.returncode = code


def start(*words: str, env: Mapping[str, str] | None = None) -> Running:
    """Start `masterkey` with these words."""
    _install()
    return Running(words, env or {})


def masterkey(
    *words: str, env: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `masterkey` with these words to its end; nobody is at its terminal."""
    running = start(*words, env=env)
    out, err = running.communicate(timeout)
    return subprocess.CompletedProcess(list(words), running.wait(0), out, err)


class QuickStack(Stack):
    """A stack whose processes are real, and whose commands run here."""

    def masterkey(self, *words: str, config: str = "client", timeout: float = 120) -> dict[str, Any]:
        """As the stack's own."""
        done = masterkey(*self._options(config), *words, env=self.environment(), timeout=timeout)
        if done.returncode != 0:
            raise ServiceFailed(f"masterkey {' '.join(words[:2])}: {done.stderr.strip()[-600:]}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def background(self, *words: str, config: str = "client") -> Any:
        """As the stack's own; one that hands a descriptor on is a process."""
        if words[0] == "unseal":
            return super().background(*words, config=config)
        return start(*self._options(config), *words, env=self.environment())

    def _options(self, config: str) -> tuple[str, ...]:
        return "--json", "--config", str(self.folder / f"{config}.toml")


# --- one process, several command lines ------------------------------------------------------------------------


class _Exited(BaseException):
    """The command line wants to end its process."""

    def __init__(self, code: int) -> None:
        self.code = code


_STDOUT: ContextVar[TextIO | None] = ContextVar("stdout", default=None)
_STDERR: ContextVar[TextIO | None] = ContextVar("stderr", default=None)
_CONFIG: ContextVar[Path] = ContextVar("config")
_JSON: ContextVar[bool] = ContextVar("json")


class _Stream:
    """A standard stream that is the command's own where a command runs, and the process's elsewhere."""

    def __init__(self, own: ContextVar[TextIO | None], name: str) -> None:
        self._own = own
        self._name = name
        self._before = getattr(sys, name)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._own.get() or self._before, attribute)


class _OptionsOfItsOwn(Options):
    """The options of the command that runs in this context."""

    @property
    def config(self) -> Path:
        return _CONFIG.get(Path("masterkey.toml"))

    @config.setter
    def config(self, value: Path) -> None:
        _CONFIG.set(value)

    @property
    def json(self) -> bool:
        return _JSON.get(False)

    @json.setter
    def json(self, value: bool) -> None:
        _JSON.set(value)


def _install() -> None:
    # Anew for each command: pytest changes the streams from test to test.
    for name, own in (("stdout", _STDOUT), ("stderr", _STDERR)):
        if not isinstance(getattr(sys, name), _Stream):
            setattr(sys, name, _Stream(own, name))
    if not isinstance(OPTIONS, _OptionsOfItsOwn):
        OPTIONS.__class__ = _OptionsOfItsOwn
    app._exit = _exit


def _exit(code: int) -> NoReturn:
    raise _Exited(code)


_HELD: dict[str, tuple[str, int, str | None]] = {}
_LOCK = threading.Lock()


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process while commands run that want them so; two that differ cannot run at once."""
    with _LOCK:
        for name, value in wanted.items():
            held, count, before = _HELD.get(name, (value, 0, os.environ.get(name)))
            assert held == value, f"another command runs with {name}={held}"
            _HELD[name] = value, count + 1, before
            os.environ[name] = value
    try:
        yield
    finally:
        with _LOCK:
            for name in wanted:
                value, count, before = _HELD.pop(name)
                if count > 1:
                    _HELD[name] = value, count - 1, before
                elif before is None:
                    del os.environ[name]
                else:
                    os.environ[name] = before
