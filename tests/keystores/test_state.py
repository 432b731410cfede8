"""What a keystore worker remembers: numbers only rise, nothing is lost between processes, and no lift is undone."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from activities.keystores.state import MasterKeyState, StateDirectory, WorkerState
from tests.strongroom.test_session import Ceremony, as_epoch, manifest_of
from tests.world import World
from workflows.contracts.trust.errors import ConfigurationInvalid, ManifestInvalid
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.service_errors import Stopped

FIRST, SECOND = "sha256:" + "1" * 64, "sha256:" + "2" * 64


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state")


@pytest.fixture(scope="module")
def ceremony(tmp_path_factory: pytest.TempPathFactory) -> Ceremony:
    return Ceremony(World.make(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="module")
def manifests(ceremony: Ceremony) -> dict[int, Manifest]:
    """The same MasterKey's manifest in three epochs."""
    stored = ceremony.protect("seal", 1, 1)
    return {epoch: manifest_of(as_epoch(ceremony, stored, epoch)) for epoch in (1, 2, 3)}


def epochs(state: StateDirectory) -> dict[str, int]:
    return state.read().master_keys["eu10"].epochs


# --- epochs ------------------------------------------------------------------------------------------------


def test_a_commit_raises_the_epoch_and_never_lowers_it(state: StateDirectory, manifests: dict[int, Manifest]) -> None:
    for epoch in (1, 2, 2):
        state.note_commit(manifests[epoch])
        assert epochs(state) == {"primary": epoch}
    with pytest.raises(ManifestInvalid, match="epoch 1; this keystore serves 2 and newer"):
        state.note_commit(manifests[1])
    assert epochs(state) == {"primary": 2}


def test_a_retirement_refuses_its_own_epoch_and_no_later_one(
    state: StateDirectory, manifests: dict[int, Manifest]
) -> None:
    state.note_commit(manifests[1])
    state.note_retired(manifests[1])
    assert epochs(state) == {"primary": 2}
    with pytest.raises(ManifestInvalid):
        state.read().check_manifest(manifests[1])
    with pytest.raises(ManifestInvalid):
        state.note_commit(manifests[1])
    state.read().check_manifest(manifests[2])
    state.note_commit(manifests[3])
    for late in (1, 2):
        state.note_retired(manifests[late])
        assert epochs(state) == {"primary": 3}


def test_a_retirement_is_remembered_by_whoever_never_heard_of_the_masterkey(
    state: StateDirectory, manifests: dict[int, Manifest]
) -> None:
    state.note_retired(manifests[2])
    assert epochs(state) == {"primary": 3}
    assert state.read().master_keys["eu10"].kcv == manifests[2].kcv


def test_one_purpose_says_nothing_of_the_other(state: StateDirectory, manifests: dict[int, Manifest]) -> None:
    emergency = manifests[2].model_copy(update={"purpose": "emergency"})
    state.note_commit(manifests[3])
    state.note_commit(emergency)
    state.note_retired(emergency)
    assert epochs(state) == {"primary": 3, "emergency": 3}
    state.read().check_manifest(manifests[3])


def test_another_masterkey_of_the_same_name_is_refused_in_every_way(
    state: StateDirectory, manifests: dict[int, Manifest]
) -> None:
    state.note_commit(manifests[1])
    other = manifests[2].model_copy(update={"kcv": "0" * 32})
    for note in (state.note_commit, state.note_key, state.note_retired):
        with pytest.raises(ManifestInvalid, match="another MasterKey"):
            note(other)
    assert epochs(state) == {"primary": 1}


def test_a_release_pins_the_masterkey_and_retires_nothing(
    state: StateDirectory, manifests: dict[int, Manifest]
) -> None:
    state.note_key(manifests[2])
    assert state.read().master_keys["eu10"] == MasterKeyState(kcv=manifests[2].kcv)
    state.read().check_manifest(manifests[1])
    state.note_commit(manifests[1])
    state.note_key(manifests[3])
    assert epochs(state) == {"primary": 1}


def test_the_newest_roster_is_remembered_and_no_older_one(state: StateDirectory) -> None:
    for number, known in ((2, 2), (1, 2), (3, 3)):
        state.note_roster(number)
        assert state.read().roster_number == known


# --- stops -------------------------------------------------------------------------------------------------


def test_a_stop_is_in_force_until_it_is_lifted_and_stays_lifted(state: StateDirectory) -> None:
    state.read().check_serving("eu10")
    state.note_stop("eu10", FIRST)
    for _ in range(2):
        state.note_stop("eu10", FIRST)
        assert state.read().stops_in_force("eu10") == (FIRST,)
    with pytest.raises(Stopped, match="does not serve eu10") as refused:
        state.read().check_serving("eu10")
    assert FIRST in refused.value.message
    state.read().check_serving("eu11")
    state.note_lift("eu10", [FIRST])
    state.note_stop("eu10", FIRST)
    state.read().check_serving("eu10")


def test_a_lift_of_one_leaves_the_other_and_one_that_comes_first_counts(state: StateDirectory) -> None:
    for stop in (FIRST, SECOND):
        state.note_stop("eu10", stop)
    state.note_lift("eu10", [SECOND])
    assert state.read().stops_in_force("eu10") == (FIRST,)
    state.note_lift("eu11", [FIRST])
    assert state.read().stops_in_force("eu10") == (FIRST,)
    # Told in the other order.
    state.note_stop("eu11", FIRST)
    state.note_stop("eu11", SECOND)
    assert state.read().stops_in_force("eu11") == (SECOND,)


def test_a_lift_of_nothing_changes_nothing(state: StateDirectory) -> None:
    state.note_stop("eu10", FIRST)
    state.note_lift("eu10", [])
    assert state.read().stops_in_force("eu10") == (FIRST,)


def test_stops_and_commits_do_not_wipe_each_other_out(state: StateDirectory, manifests: dict[int, Manifest]) -> None:
    state.note_stop("eu10", FIRST)
    state.note_commit(manifests[1])
    state.note_roster(4)
    state.note_retired(manifests[1])
    state.note_stop("eu11", SECOND)
    found = state.read()
    assert (found.roster_number, epochs(state)) == (4, {"primary": 2})
    assert (found.stops_in_force("eu10"), found.stops_in_force("eu11")) == ((FIRST,), (SECOND,))


# --- the file ----------------------------------------------------------------------------------------------


def hammer(folder: str, place: int) -> None:
    """What one of several processes notes."""
    state = StateDirectory(Path(folder))
    for number in range(10):
        state.note_stop(f"mk-{place}", f"sha256:{number:064x}")
        state.note_lift("shared", [f"sha256:{place * 10 + number:064x}"])
        state.note_roster(place * 10 + number)


def test_what_several_processes_note_at_once_is_all_remembered(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=hammer, args=(str(tmp_path), place)) for place in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    found = StateDirectory(tmp_path).read()
    assert [len(found.stops_in_force(f"mk-{place}")) for place in range(4)] == [10] * 4
    assert len(found.stops["shared"]) == 40
    assert found.roster_number == 39


def test_a_state_that_was_written_before_there_were_stops_is_read(state: StateDirectory, tmp_path: Path) -> None:
    kcv = "3b5d9c1f0a2e4d6b8c7a9e0f1d2c3b4a"
    old = '{"roster_number":2,"master_keys":{"eu10":{"kcv":"' + kcv + '","epochs":{"primary":3}}}}'
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.json").write_text(old)
    found = state.read()
    assert found == WorkerState(
        roster_number=2, master_keys={"eu10": MasterKeyState(kcv=kcv, epochs={"primary": 3})}
    )  # fmt: skip
    found.check_serving("eu10")
    state.note_stop("eu10", FIRST)
    assert epochs(state) == {"primary": 3}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"roster_number":"x"}',
        '{"stops":{"eu10":{"sha256:1":"perhaps"}}}',
        '{"stops":["eu10"]}',
        '{"master_keys":{"eu10":{"epochs":{}}}}',
    ],
)
def test_a_state_that_cannot_be_read_is_never_started_anew(state: StateDirectory, tmp_path: Path, text: str) -> None:
    state.note_stop("eu10", FIRST)
    (tmp_path / "state" / "state.json").write_text(text)
    for call in (state.read, lambda: state.note_stop("eu10", SECOND), lambda: state.note_roster(9)):
        with pytest.raises(ConfigurationInvalid, match="cannot be read"):
            call()
    assert (tmp_path / "state" / "state.json").read_text() == text


def test_a_directory_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file is in the way")
    with pytest.raises(ConfigurationInvalid, match=r"cannot be (written|read)"):
        StateDirectory(tmp_path / "state").note_stop("eu10", FIRST)


def test_what_is_acknowledged_survives_a_power_cut(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    # The bytes, and then the name in the directory, reach the disk before anybody is told.
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    state.note_stop("eu10", FIRST)
    assert synced == ["file", "directory"]


def test_a_write_that_is_cut_short_leaves_the_state_as_it_was(
    state: StateDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.note_stop("eu10", FIRST)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationInvalid, match="No space left on device"):
        state.note_stop("eu10", SECOND)
    assert state.read().stops_in_force("eu10") == (FIRST,)
    assert json.loads((tmp_path / "state" / "state.json").read_text())["stops"] == {"eu10": {FIRST: "in-force"}}
