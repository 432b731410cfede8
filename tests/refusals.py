"""Every refusal in the code, and whether a test run met it: to compare one version with another.

    python -m pytest -m "not slow" --cov=workflows --cov=activities --cov=workers --cov-branch --cov-report=json
    python -m tests.refusals coverage.json > now.txt
    python -m tests.refusals coverage.json --against before.txt

A refusal is a `raise` of an error with a text of ours, named by its type and its text, with `{}` where values stand:
so that one that only moved to another module is the same. By hand, after a change that moves code or tests.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOMS = ("workflows", "activities", "workers")


class Refusal(NamedTuple):
    """One `raise`.

    Attributes:
        error: the type.
        text: what it says, with `{}` for values.
        met: whether a test came here; None where nothing was measured.
        place: file and function, to find it.
    """

    error: str
    text: str
    met: bool | None
    place: str

    @property
    def line(self) -> str:
        """As it stands in the list."""
        mark = {True: "met", False: "not met", None: "not measured"}[self.met]
        return f"{self.error}\t{self.text}\t{mark}\t{self.place}"


def refusals(tree: Path, report: Path | None) -> list[Refusal]:
    """All refusals of a tree.

    Args:
        tree: the checkout.
        report: of coverage, in JSON, made in that checkout.
    """
    files = json.loads(report.read_text(encoding="utf-8"))["files"] if report else {}
    found = []
    for room in ROOMS:
        for file in sorted((tree / room).rglob("*.py")):
            name = str(file.relative_to(tree))
            met = set(files[name]["executed_lines"]) if name in files else None
            found += [
                Refusal(error, text, None if met is None else line in met, f"{name} {where}")
                for error, text, line, where in _raised(ast.parse(file.read_text(encoding="utf-8")), "")
            ]
    return sorted(found)


def _raised(node: ast.AST, where: str) -> Iterator[tuple[str, str, int, str]]:
    for child in ast.iter_child_nodes(node):
        inside = where
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inside = f"{where}.{child.name}".lstrip(".")
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call) and child.exc.args:
            name = ast.unparse(child.exc.func)
            text = _text(child.exc.args[0])
            if text is not None and name[:1].isupper():
                yield name, text, child.lineno, inside
        yield from _raised(child, inside)


def _text(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return None if left is None or right is None else left + right
    return None


def _keys(lines: list[str]) -> dict[tuple[str, str], str]:
    """The best mark of each refusal: one that is raised in two places is met when either is."""
    best: dict[tuple[str, str], str] = {}
    for line in lines:
        error, text, mark, _ = line.split("\t")
        if best.get((error, text)) != "met":
            best[error, text] = mark
    return best


def main() -> int:
    """Print the list, or what differs from another; the exit code says whether one is met no more."""
    parser = argparse.ArgumentParser(prog="python -m tests.refusals", description=__doc__)
    parser.add_argument("report", type=Path, help="the JSON report of coverage")
    parser.add_argument("--tree", type=Path, default=Path(__file__).resolve().parents[1], help="the checkout")
    parser.add_argument("--against", type=Path, help="the list of another version")
    options = parser.parse_args()
    lines = [one.line for one in refusals(options.tree, options.report)]
    if options.against is None:
        print("\n".join(lines))
        return 0
    now, before = _keys(lines), _keys(options.against.read_text(encoding="utf-8").splitlines())
    lost = [key for key in sorted(before) if before[key] == "met" and now.get(key) != "met"]
    for key in lost:
        print("met no more" if key in now else "gone", *key, sep="\t")
    for key in sorted(now):
        if now[key] == "met" and before.get(key) != "met":
            print("met now" if key in before else "new, and met", *key, sep="\t")
    for key in sorted(set(now) - set(before)):
        if now[key] != "met":
            print(f"new, and {now[key]}", *key, sep="\t")
    met = sum(mark == "met" for mark in now.values())
    print(f"{met} of {len(now)} refusals are met; before, {sum(m == 'met' for m in before.values())} of {len(before)}")
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
