"""Histories of a version are append-only: none is changed, none is lost; each folder names the build that made it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.workflows import record_histories
from tests.workflows.record_histories import BUILD, FOLDER, RELEASES, SUMS, checksums, to_replay
from workers.builds import product_version

VERSIONS = sorted(path for path in RELEASES.iterdir() if path.is_dir())


def test_this_version_is_recorded() -> None:
    assert FOLDER in VERSIONS, "run: python -m tests.workflows.record_histories"
    assert [path for path in to_replay() if path.parent == FOLDER] == sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_a_recorded_history_is_never_changed_and_none_is_taken_away(folder: Path) -> None:
    assert checksums(folder) == (folder / SUMS).read_text(encoding="ascii")
    build = (folder / BUILD).read_text(encoding="ascii")
    assert re.fullmatch(re.escape(folder.name) + r"-[0-9a-f]{12}\n", build)


def test_recording_never_writes_over_what_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = tmp_path / product_version()
    kept.mkdir()
    shutil.copy(FOLDER / SUMS, kept)
    monkeypatch.setattr("sys.argv", ["record_histories", str(kept)])
    with pytest.raises(SystemExit, match="recorded already"):
        record_histories.main()
    assert [path.name for path in kept.iterdir()] == [SUMS]


def test_of_earlier_versions_only_gated_workflows_must_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_histories, "FOLDER", RELEASES / "99.0.0")
    names = {path.stem for path in to_replay() if path.parent.name == "0.1.0"}
    assert {"seal", "order-lift", "drill", "collect", "hold-stopped"} <= names
    assert not names & {"init-sss", "unseal-sss", "reshard-sss", "recover-lost-key"}
