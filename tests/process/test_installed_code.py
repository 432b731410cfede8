"""Trusted processes run only the installed code: a working folder full of traps, and not one of them is executed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from activities.oneshot.installed import check_path, environment_of_others, python
from tests.conftest import start_installation
from workers.local.stack import COMMAND
from workflows.contracts.trust.errors import ConfigurationInvalid

PACKAGES = ("workflows", "activities", "workers", "deploy")
LIBRARIES = ("random", "json", "signal", "multiprocessing", "cryptography", "temporalio", "pydantic", "moto", "pkcs11")
_TRAP = """
import os
with open({record!r}, "a") as record:
    record.write({name!r} + " in process " + str(os.getpid()) + " of " + str(os.getppid()) + "\\n")
raise ImportError({name!r} + " was taken from the working folder")
"""


@pytest.fixture
def traps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which a module lies for each of our packages and for libraries; they record who runs them.

    Python's own safe path is not asked for from outside: the product does that by itself.
    """
    folder, record = tmp_path / "traps", tmp_path / "sprung"
    folder.mkdir()
    for name in (*PACKAGES, *LIBRARIES):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(_TRAP.format(record=str(record), name=name), encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return record


def test_the_traps_spring_where_python_is_left_to_itself(traps: Path) -> None:
    subprocess.run([sys.executable, "-c", "import random"], capture_output=True, check=False)
    assert traps.read_text(encoding="utf-8").startswith("random in process")


_POOL = """
import asyncio, sys
from activities.oneshot.process import Pool
async def main():
    pool = Pool("tests.strongroom.oneshots:echo", (), spares=0)
    process = await pool.take()
    print((await process.call(b"hello")).decode())
    pool.release(process)
    await pool.close()
asyncio.run(main())
"""


def test_the_fork_server_and_its_children_import_nothing_from_the_working_folder(traps: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_POOL, encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=False)
    assert done.stdout == "hello\n", done.stderr
    assert not traps.exists()


def test_a_worker_whose_own_path_begins_with_the_working_folder_does_not_hand_that_on(
    traps: Path, tmp_path: Path
) -> None:
    # `python -c` has '' on its path; what is imported before it is taken away comes from here, so not as a trap.
    code = f"import sys; sys.path.remove(''); sys.path.append(''); exec({_POOL!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "hello\n", done.stderr
    assert not traps.exists()


def test_the_commands_of_our_own_modules_leave_the_working_folder_out(traps: Path) -> None:
    help_ = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=False)
    assert help_.returncode == 0, help_.stderr
    subprocess.run(python("workers.audit.replay"), input="", capture_output=True, text=True, check=False)
    subprocess.run(python("deploy.emulators.key_vault", "--help"), capture_output=True, check=True)
    assert not traps.exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_no_role_no_command_no_audit_and_no_break_glass_executes_a_trap(traps: Path, tmp_path: Path) -> None:
    installation = start_installation(tmp_path / "installation", count=2, one_keystore_process=False)
    stack = installation.stack
    try:
        made = installation.init("mk-0", mode="seal", count=2)
        given = "import os, sys; open(sys.argv[1], 'w').write(os.environ.get('PYTHONSAFEPATH', 'not set'))"
        out = tmp_path / "environment.txt"
        # The program that gets the key is not ours: it starts as its owner would start it, traps and all.
        stack.masterkey("unseal", "mk-0", "--exec", "--", sys.executable, "-P", "-c", given, str(out))
        assert out.read_text() == "not set"
        audited = stack.masterkey("audit", "replay", made["ceremony"], config="orchestrator")
        assert audited["ok"]
        bundle = tmp_path / "bundle.json"
        stack.masterkey("bundle", "export", str(bundle), config="orchestrator")
        approvals = []
        for name in ("alice", "bob", "carol"):
            key = str(installation.folder / "keys" / name)
            file = tmp_path / f"{name}.approval"
            stack.masterkey("bundle", "approve", str(bundle), "--key", key, "--yes", "--out", str(file))
            approvals += ["--approval", str(file)]
    finally:
        stack.stop()
        installation.bao.service.stop()
    tables = {
        name: {"identity": f"keys/{name}", "state": f"laptop/{name}", **setup.table}
        for name, setup in stack.keystores.items()
    }
    config = stack.write_configuration("laptop", {"strongroom": {"identity": "keys/strongroom"}, "keystores": tables})
    words = ["recover", "mk-0", "--from-bundle", str(bundle), "--embedded", "--no-wait", *approvals]
    done = subprocess.run(
        [*COMMAND, "--config", str(config), *words, "--folder", str(tmp_path / "glass")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "keystore workers, one strongroom" in done.stdout, done.stderr
    assert not traps.exists(), traps.read_text()


# --- the path of imports -------------------------------------------------------------------------------------------


def test_a_folder_that_everybody_can_write_is_no_place_for_code(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    check_path([str(shared)])
    shared.chmod(0o777)
    with pytest.raises(ConfigurationInvalid, match="can be written by everybody"):
        check_path([str(shared)])


def test_a_folder_in_one_that_everybody_can_write_is_none_unless_only_owners_may_replace_it(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    (parent / "code").mkdir(parents=True)
    parent.chmod(0o777)
    with pytest.raises(ConfigurationInvalid, match=str(parent)):
        check_path([str(parent / "code")])
    parent.chmod(0o1777)
    check_path([str(parent / "code")])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_of_another_user_is_no_place_for_code(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    os.chown(other, 12345, 12345)
    with pytest.raises(ConfigurationInvalid, match="uid 12345"):
        check_path([str(other)])


@pytest.mark.parametrize("variable", [":/usr/lib", "lib", "/usr/lib:", "."])
def test_a_pythonpath_that_means_the_working_folder_is_refused(variable: str) -> None:
    with pytest.raises(ConfigurationInvalid, match="PYTHONPATH"):
        check_path([], variable)


def test_a_path_that_does_not_exist_is_no_danger(tmp_path: Path) -> None:
    check_path([str(tmp_path / "python311.zip")], str(tmp_path))


def test_programs_that_are_not_ours_find_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.oneshot.installed._GIVEN", None)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    assert "PYTHONSAFEPATH" not in environment_of_others()
    monkeypatch.setattr("activities.oneshot.installed._GIVEN", "0")
    assert environment_of_others()["PYTHONSAFEPATH"] == "0"
