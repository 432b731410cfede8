"""Takes one security rule after the other out of a copy of the code, and expects a test to fail each time.

    python -m tests.mutations [--only WORD]... [--tests KEY] [--tree FOLDER] [--list]

By hand or nightly, not in `make test`: it takes some ten minutes. The copy has an interpreter of its own, so that the
copy's code is what runs in every child process too. Each selection of tests is first run on the unaltered copy: a
failure counts only where there was none before.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutations.rules import MUTATIONS, SELECTIONS, Mutation

ROOMS = ("workflows", "activities", "workers", "deploy")
_LIMIT_SECONDS = 600.0
_FAILED = 1
"""The exit code of pytest when tests failed; any other says that they could not even run."""


@dataclass(frozen=True)
class Copy:
    """A copy of the code with an interpreter of its own."""

    folder: Path

    @property
    def python(self) -> Path:
        """Finds the copy's packages before all others, and the libraries of the interpreter that runs this."""
        return self.folder / ".venv" / "bin" / "python"

    def test(self, selection: Sequence[str]) -> int:
        """Run tests until the first that fails; pytest's exit code, or 1 when they hang."""
        path = os.pathsep.join([str(self.python.parent), str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        try:
            return subprocess.run(
                [str(self.python), "-m", "pytest", "-x", "-q", "-m", "", "-p", "no:cacheprovider", *selection],
                cwd=self.folder,
                env={**own, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_LIMIT_SECONDS,
                # Without a terminal, whoever starts this: tests that look for one must not stop it.
                start_new_session=True,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return _FAILED

    def imports(self, name: str) -> Path:
        """Where the copy's interpreter finds a package."""
        said = subprocess.run(
            [str(self.python), "-c", f"import {name}; print({name}.__file__)"],
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
        return Path(said.stdout.strip())


@contextmanager
def copy_of(tree: Path) -> Iterator[Copy]:
    """A copy of what git knows of a tree, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        folder = Path(name).resolve()
        listed = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for file in subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split("\0"):
            if file and (tree / file).is_file():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(tree / file, folder / file)
        venv.create(folder / ".venv", with_pip=False, symlinks=True)
        libraries = Path(sysconfig.get_paths(vars={"base": str(folder / ".venv")})["purelib"])
        # The copy itself first: what is installed in editable form names the tree that it was made from.
        ours = sysconfig.get_paths()["purelib"]
        (libraries / "copy.pth").write_text(f"{folder}\n{ours}\n", encoding="utf-8")
        made = Copy(folder)
        for room in ROOMS:
            assert made.imports(room).is_relative_to(folder), f"{room} is not imported from the copy"
        yield made


def find(folder: Path, mutation: Mutation) -> tuple[Path, str, str]:
    """Where a rule is enforced.

    Returns:
        The file, its text, and its text without the rule.

    Raises:
        LookupError: the words stand nowhere, or in several places: the list of rules must follow the code.
    """
    pattern = re.compile(r"\s*".join(re.escape(word) for word in _words(mutation.old)))
    found = []
    for room in ROOMS:
        for file in sorted((folder / room).rglob("*.py")):
            if mutation.file not in str(file.relative_to(folder)):
                continue
            text = file.read_text(encoding="utf-8")
            found += [(file, text, match) for match in pattern.finditer(text)]
    if len(found) != 1:
        places = ", ".join(str(file.relative_to(folder)) for file, _, _ in found) or "nowhere"
        raise LookupError(f"{mutation.harm!r}: {mutation.old!r} stands {places}")
    file, text, match = found[0]
    return file, text, text[: match.start()] + _laid_out(mutation.new, text, match.start()) + text[match.end() :]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def _laid_out(new: str, text: str, start: int) -> str:
    """`new` with its lines indented as the line that it begins in."""
    line = text[text.rfind("\n", 0, start) + 1 :]
    return new.replace("\n", "\n" + line[: len(line) - len(line.lstrip())])


def main() -> int:
    """Run them; the exit code says whether every one was caught."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="only rules with this word in them")
    parser.add_argument("--tests", choices=SELECTIONS, help="only rules that these tests guard")
    parser.add_argument("--tree", type=Path, default=Path(__file__).resolve().parents[2], help="of another version")
    parser.add_argument("--list", action="store_true", help="only find the places of the rules")
    options = parser.parse_args()
    chosen = [
        one
        for one in MUTATIONS
        if all(word in f"{one.harm} {one.old}" for word in options.only) and options.tests in (None, one.tests)
    ]
    with copy_of(options.tree.resolve()) as copy:
        lost = _lost(copy, chosen)
        for line in lost:
            print(line)
        if options.list or lost:
            return bool(lost)
        return _run(copy, chosen)


def _lost(copy: Copy, chosen: Sequence[Mutation]) -> list[str]:
    lost = []
    for mutation in chosen:
        try:
            file, _, altered = find(copy.folder, mutation)
            compile(altered, str(file), "exec")
        except (LookupError, SyntaxError) as error:
            lost.append(f"{mutation.harm}: {error}" if isinstance(error, SyntaxError) else str(error.args[0]))
    return lost


def _run(copy: Copy, chosen: Sequence[Mutation]) -> int:
    for key in dict.fromkeys(mutation.tests for mutation in chosen):
        if (code := copy.test(SELECTIONS[key])) != 0:
            print(f"the tests {key!r} fail (exit code {code}) although nothing was altered")
            return 1
    caught = 0
    for mutation in chosen:
        file, text, altered = find(copy.folder, mutation)
        file.write_text(altered, encoding="utf-8")
        started = time.monotonic()
        try:
            code = copy.test(SELECTIONS[mutation.tests])
        finally:
            file.write_text(text, encoding="utf-8")
        caught += code == _FAILED
        verdict = "caught" if code == _FAILED else "MISSED" if code == 0 else f"tests did not run ({code})"
        where = file.relative_to(copy.folder)
        print(
            f"{verdict:<8} {time.monotonic() - started:5.1f} s  {mutation.harm}  [{where}; {mutation.tests}]",
            flush=True,
        )
    print(f"{caught} caught of {len(chosen)}")
    return int(caught != len(chosen))


if __name__ == "__main__":
    sys.exit(main())
