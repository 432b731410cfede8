"""The structure of the house, as its README of rooms draws it: what may import what, and how large anything may be."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("workflows", "activities", "workers")
"""From the bottom up: each imports itself and what lies below it."""
MOST_LINES = 400
MOST_STRONGROOM, MOST_SESSION = 680, 3_000
"""Lines of `activities/strongroom`, and of everything of ours that a session imports: an hour's reading."""
_STRONGROOM = "activities/strongroom"
_SESSION = "activities.strongroom.session"


def _sources(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def _modules() -> dict[str, Path]:
    return {_module(path): path for path in _sources(*FLOORS, "deploy")}


@cache
def _imports(path: Path, *, lazily: bool = True) -> frozenset[str]:
    """Modules of ours that a file imports; with `lazily` also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(f)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if not lazily and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found & _modules().keys())


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_room_imports_from_a_floor_above_it() -> None:
    up = [
        f"{_module(path)} -> {name}"
        for floor, room in enumerate(FLOORS)
        for path in _sources(room)
        for name in _imports(path)
        if name.split(".")[0] in FLOORS[floor + 1 :]
    ]
    assert not up


def test_nothing_but_the_command_line_knows_the_command_line() -> None:
    rooms = _sources("workers/client", "workers/audit", "workers/local")
    assert not [path for path in rooms if any(f"{name}.".startswith("workers.cli.") for name in _imports(path))]


def test_no_circle_of_imports() -> None:
    # A package's own module re-exports what lies in it: that arrow alone is no circle.
    graph = {
        name: {other for other in _imports(path) if not name.startswith(f"{other}.") and other != name}
        for name, path in _modules().items()
    }
    circles, done = [], set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circles.append(" -> ".join((*trail[trail.index(name) :], name)))
        elif name not in done:
            for other in sorted(graph[name]):
                walk(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        walk(name, ())
    assert not circles


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    long = {_module(path): _lines(path) for path in _sources(*FLOORS, "deploy") if _lines(path) > MOST_LINES}
    assert not long


def test_no_two_classes_have_one_name() -> None:
    names = Counter(
        node.name
        for path in _sources(*FLOORS, "deploy")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert not {name: count for name, count in names.items() if count > 1}


def _closure(start: str, *, lazily: bool = False) -> set[str]:
    seen, todo = set(), [start]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        parents = [".".join(name.split(".")[:i]) for i in range(1, name.count(".") + 1)]
        todo += [*_imports(_modules()[name], lazily=lazily), *parents]
    return seen


def test_the_strongroom_can_be_read_in_an_hour() -> None:
    assert sum(map(_lines, _sources(_STRONGROOM))) <= MOST_STRONGROOM
    closure = _closure(_SESSION)
    assert sum(_lines(_modules()[name]) for name in closure) <= MOST_SESSION


def _reading() -> list[tuple[Path, str]]:
    """The rows of the strongroom's reading list: a file, and the test that breaks."""
    text = (ROOT / _STRONGROOM / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+\.py)` \|.*\| `([\w/]+\.py::\w+)` \|$", text, re.MULTILINE)
    return [(ROOT / file, test) for file, test in rows]


def test_the_strongrooms_reading_list_names_exactly_what_a_session_imports() -> None:
    files = [file for file, _ in _reading()]
    closure = {_modules()[name] for name in _closure(_SESSION, lazily=True)}
    assert sorted(files) == sorted(path for path in closure if path.name != "__init__.py")
    # What the list leaves out holds a line of text and no code.
    assert [path for path in closure - set(files) if ast.parse(path.read_text(encoding="utf-8")).body[1:]] == []


def test_the_strongrooms_reading_list_is_in_an_order_in_which_it_can_be_read() -> None:
    read: set[str] = set()
    for file, _ in _reading():
        unread = {name for name in _imports(file) - read if _modules()[name].name != "__init__.py"}
        assert not unread, f"{_module(file)} needs {unread} first"
        read.add(_module(file))


def test_every_test_that_the_strongrooms_reading_list_names_is_there() -> None:
    for _, test in _reading():
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in functions, test


@pytest.mark.parametrize("room", ["activities/strongroom", "activities/crypto", "activities/oneshot"])
def test_the_rooms_that_hold_keys_import_no_sdk_no_database_and_no_network(room: str) -> None:
    forbidden = {"boto3", "azure", "google", "hvac", "pkcs11", "sqlalchemy", "psycopg", "requests", "socket", "http"}
    for path in _sources(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not {name.split(".")[0] for name in names} & forbidden, path


_PAGES = ("README.md", "*/README.md", "*/*/README.md", "deploy/runbooks/*.md")
PAGES = sorted({page for pattern in _PAGES for page in ROOT.glob(pattern) if ".venv" not in page.parts})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_every_test_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    files = re.findall(r"`((?:workflows|activities|workers|tests|deploy)/[\w./*-]+)`", text)
    files += [str((page.parent / link).resolve().relative_to(ROOT)) for link in re.findall(r"\]\(([\w./-]+)\)", text)]
    assert [name for name in files if not list(ROOT.glob(name))] == []
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in tests] == []
