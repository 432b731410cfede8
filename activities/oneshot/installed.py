"""Trusted processes run only the installed code: nothing is imported from the working folder (DESIGN, invariant 15).

`python -c` and `python -m` put the working folder first on the path of imports, and `multiprocessing` starts its fork
server and its resource tracker with `-c`. So a folder `activities/`, or a file `random.py`, in a directory that others
can write would run inside the parent of the processes that hold keys. Python's safe path (`-P`, `PYTHONSAFEPATH`)
takes that entry away: `run_only_installed_code` sets it for every process that is started from here, and refuses a
path on which others could put code. See https://docs.python.org/3/using/cmdline.html#cmdoption-P.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from workflows.contracts.trust.errors import ConfigurationInvalid

VARIABLE = "PYTHONSAFEPATH"
_GIVEN = os.environ.get(VARIABLE)


def python(module: str, *words: str) -> list[str]:
    """The command that runs an installed module, whatever the working folder holds."""
    return [sys.executable, "-P", "-m", module, *words]


def run_only_installed_code() -> None:
    """Keep the working folder off the path of this process's children, and check the path of this one.

    Raises:
        ConfigurationInvalid: others can write where this process finds code.
    """
    os.environ[VARIABLE] = "1"
    # `python -c` and an interactive session: children of `multiprocessing` would be given it as an absolute path.
    sys.path[:] = [entry for entry in sys.path if entry]
    check_path(sys.path, os.environ.get("PYTHONPATH", ""))


def check_path(entries: Sequence[str], variable: str = "") -> None:
    """Refuse a path of imports on which somebody else could put code.

    Args:
        entries: as in `sys.path`.
        variable: the value of `PYTHONPATH`: an empty or relative entry in it means the working folder.

    Raises:
        ConfigurationInvalid: it names the entry.
    """
    for entry in variable.split(os.pathsep) if variable else ():
        if not Path(entry).is_absolute():
            raise ConfigurationInvalid(
                f"PYTHONPATH has the entry '{entry}', which means whatever folder this is started in",
                next_step="name absolute folders in PYTHONPATH, or unset it",
            )
    for entry in entries:
        path = Path(entry).absolute()
        for place in (path, *path.parents):
            if why := _writable(place, itself=place == path):
                raise ConfigurationInvalid(
                    f"Python would import code from {entry}, and {place} {why}",
                    next_step=f"run: chmod go-w {place} (and let its owner be root or this user), or install elsewhere",
                )


def environment_of_others() -> dict[str, str]:
    """The environment for a program that is not ours: as this process found it."""
    environment = dict(os.environ)
    environment.pop(VARIABLE, None)
    return environment if _GIVEN is None else {**environment, VARIABLE: _GIVEN}


def _writable(place: Path, *, itself: bool) -> str:
    """Why somebody else can put code there; empty if nobody can, or nothing is there."""
    try:
        found = place.stat()
    except OSError:
        return ""
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to another user (uid {found.st_uid})"
    # In a folder with the sticky bit others cannot replace what they do not own, but they can add to it.
    shared = found.st_mode & stat.S_IWOTH and (itself or not found.st_mode & stat.S_ISVTX)
    return "can be written by everybody" if shared else ""
