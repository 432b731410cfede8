"""Memories that keystore workers have written: today's code reads each, goes on writing it, and forgets nothing.

`tests/data/state` holds a file of every format that was ever written; files are added to it, never changed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from activities.keystores.state import FORMAT, StateDirectory
from workflows.contracts.trust.errors import ConfigurationInvalid

KEPT = sorted((Path(__file__).parent.parent / "data" / "state").iterdir())
KCV = "41b2465ffe2c7af5b1003bc4f59f88da"
FIRST, SECOND, THIRD, FOURTH, FIFTH = ("sha256:" + digit * 64 for digit in "12345")
IN_EACH = {
    "roster_number": 4,
    "master_keys": {
        "eu10": {"kcv": KCV, "epochs": {"primary": 4, "emergency": 3}},
        "us20": {"kcv": KCV, "epochs": {}},
    },
    "stops": {"eu10": {FIRST: "lifted", SECOND: "lifted", THIRD: "in-force"}, "de30": {FOURTH: "in-force"}},
}
"""What every kept file says, in the words of today."""


@pytest.fixture(params=KEPT, ids=[path.name for path in KEPT])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A worker's folder with a kept file in it."""
    shutil.copy(request.param, tmp_path / "state.json")
    return tmp_path


def test_there_is_a_file_of_todays_format() -> None:
    assert f"format-{FORMAT}.json" in [path.name for path in KEPT]


def test_a_kept_memory_is_read(kept: Path) -> None:
    assert StateDirectory(kept).read().model_dump(exclude={"format"}) == IN_EACH


def test_a_kept_memory_is_written_on_and_forgets_nothing(kept: Path) -> None:
    state = StateDirectory(kept)
    state.note_stop("us20", FIFTH)
    state.note_stop("eu10", SECOND)
    state.note_roster(3)
    stops = {**IN_EACH["stops"], "us20": {FIFTH: "in-force"}}  # type: ignore[dict-item]
    assert json.loads((kept / "state.json").read_text()) == {"format": FORMAT, **IN_EACH, "stops": stops}


def test_a_memory_that_a_newer_version_wrote_is_refused_and_left_alone(tmp_path: Path) -> None:
    newer = json.dumps({"format": FORMAT + 1, **IN_EACH, "leases": {"eu10": "what this version does not know"}})
    (tmp_path / "state.json").write_text(newer)
    state = StateDirectory(tmp_path)
    for call in (state.read, lambda: state.note_stop("eu10", FIFTH), lambda: state.note_roster(9)):
        with pytest.raises(ConfigurationInvalid, match=f"is of format {FORMAT + 1}; this version") as refused:
            call()
        assert "run the newer version that wrote it" in refused.value.diagnostics
    assert (tmp_path / "state.json").read_text() == newer


@pytest.mark.parametrize("inside", [False, True])
def test_a_field_that_nobody_knows_is_never_dropped(tmp_path: Path, inside: bool) -> None:
    content = json.loads(json.dumps(IN_EACH))
    (content["master_keys"]["eu10"] if inside else content)["retired"] = 7
    (tmp_path / "state.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationInvalid, match="cannot be read"):
        StateDirectory(tmp_path).note_roster(9)
    assert json.loads((tmp_path / "state.json").read_text()) == content
