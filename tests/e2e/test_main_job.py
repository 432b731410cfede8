"""The main job, on real components: create a MasterKey, gather a quorum, get the same MasterKey back."""

from __future__ import annotations

import json
import sys

from tests.conftest import Installation
from tests.support import eventually

READ_AND_DERIVE = (
    "import os, sys; from activities.crypto.envelope import key_check_value as k;"
    "d = os.read(int(os.environ['MASTERKEY_FD']), 64); print(len(d), k(d, sys.argv[1]), file=sys.stderr)"
)


def test_an_sss_masterkey_is_released_by_three_custodians(installation: Installation) -> None:
    name = installation.fresh_name()
    made = installation.init(name)
    child = installation.stack.background("unseal", name, "--exec", "--", sys.executable, "-c", READ_AND_DERIVE, name)
    ceremony = eventually(
        lambda: [
            entry["ceremony"]
            for entry in installation.stack.masterkey("ceremony", "list")["ceremonies"]
            if entry["master_key"] == name and entry["phase"] == "quorum"
        ]
    )[0]
    installation.approve(ceremony, ["carol", "dave", "erin"])
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    answer = json.loads(out)
    assert answer["approved_by"] == ["carol", "dave", "erin"]
    assert answer["served_by"] == ["bao-3", "bao-4", "bao-5"]
    assert f"32 {made['kcv']}" in err


def test_a_sealed_masterkey_is_released_to_its_recipient_at_once(installation: Installation) -> None:
    name = installation.fresh_name()
    made = installation.init(name, "seal", count=2)
    child = installation.stack.background("unseal", name, "--exec", "--", sys.executable, "-c", READ_AND_DERIVE, name)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert json.loads(out)["approved_by"] == []
    assert f"32 {made['kcv']}" in err
