"""`masterkey contribute` on a running installation: one keystore has a custodian instead of a worker."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from activities.keystores.kinds.age_keys import write_identity
from tests.cli.terminal import on_terminal
from tests.conftest import Installation, run_installation
from tests.driving.site import NAMES, SharedTemporal, Site
from tests.support import eventually
from workers.local.stack import Stack, to_toml

KEYSTORE = "offline-carol"


@dataclass
class House:
    """A running installation of two Transit keystores, and one that carol keeps offline."""

    installation: Installation

    @property
    def folder(self) -> Path:
        """Where everything is."""
        return self.installation.folder

    def masterkey(self, *words: str, config: str = "client") -> dict[str, Any]:
        """Run a command, which succeeds."""
        return self.installation.stack.masterkey(*words, config=config)

    def contribute(self, ceremony: str, *words: str) -> subprocess.Popen[str]:
        """Start carol's command at her own machine."""
        return self.installation.stack.background(
            "contribute", ceremony, "--keystore", KEYSTORE, "--yes", *words, config="carol"
        )

    def phase(self, ceremony: str, *phases: str) -> dict[str, Any]:
        """Wait until a ceremony is in one of these phases."""

        def there() -> dict[str, Any] | None:
            found = self.masterkey("ceremony", "show", ceremony)
            assert found["phase"] in phases or found["phase"] not in ("refused", "failed", "expired"), found
            return found if found["phase"] in phases else None

        found = eventually(there)
        assert found is not None
        return found

    def start_init(self) -> tuple[str, str]:
        """An init over all three keystores that was approved: MasterKey and ceremony."""
        name = self.installation.fresh_name()
        words = [word for keystore in ("bao-1", "bao-2", KEYSTORE) for word in ("--keystore", keystore)]
        running = self.masterkey("init", name, "--mode", "sss", "--threshold", "2", *words, "--no-wait")
        self.phase(running["ceremony"], "quorum")
        self.installation.approve(running["ceremony"], ("alice", "bob", "dave"))
        return name, running["ceremony"]

    def init(self) -> str:
        """A MasterKey that stands."""
        name, ceremony = self.start_init()
        finished(self.contribute(ceremony))
        self.installation.finish_init(name, ceremony)
        return name

    def start_unseal(self, name: str, file: Path) -> tuple[subprocess.Popen[str], str]:
        """An unseal that writes the MasterKey's digest to a file; the process and the ceremony's id."""
        script = f"sha256sum </dev/fd/$MASTERKEY_FD >{file}"
        child = self.installation.stack.background("unseal", name, "--exec", "--", "sh", "-c", script)

        def found() -> list[str]:
            listed = self.masterkey("ceremony", "list")["ceremonies"]
            return [one["ceremony"] for one in listed if one["master_key"] == name and ".unseal." in one["ceremony"]]

        ceremony = eventually(found)[0]
        self.phase(ceremony, "quorum")
        return child, ceremony


def finished(child: subprocess.Popen[str], code: int = 0, limit: float = 60) -> dict[str, Any]:
    out, err = child.communicate(timeout=limit)
    assert child.returncode == code, err
    answer: dict[str, Any] = json.loads(out)
    return answer | {"err": err}


class Described(Site):
    """A site whose roster is made from a description, which then grows."""

    def make_roster(self, *, quorum: int = 3, master_keys: Sequence[str] = NAMES) -> None:
        """With the command line."""
        Stack.make_roster(self, quorum=quorum, master_keys=master_keys)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, temporal: SharedTemporal) -> Iterator[House]:
    installation = run_installation(tmp_path_factory.mktemp("offline"), temporal, 2, Described)
    try:
        stack, folder = installation.stack, installation.folder
        made = stack.masterkey("offline", "keygen", KEYSTORE, "--out", str(folder / "carols"), "--custodian", "carol")
        description = folder / "roster.toml"
        description.write_text(description.read_text() + "\n" + made["roster"])
        stack.masterkey("roster", "propose", str(description))
        for name in ("alice", "bob", "carol"):
            stack.masterkey("roster", "sign", "--key", str(folder / "keys" / name), "--yes")
        roster = {"file": "roster.json", "genesis": stack.genesis, "minimum_version": 2}
        (folder / "carol.toml").write_text(to_toml({"roster": roster}) + "\n\n" + made["configuration"])
        yield House(installation)
    finally:
        installation.stack.stop()


@pytest.mark.slow
def test_a_masterkey_is_made_with_an_offline_shard_and_comes_back_through_it(house: House, tmp_path: Path) -> None:
    name, ceremony = house.start_init()
    waiting = house.phase(ceremony, "proving")
    assert waiting["wanted"] == [KEYSTORE]
    assert house.masterkey("status", name)["protections"] == []
    given = finished(house.contribute(ceremony))
    assert (given["ceremony"], given["keystore"], given["contributed"]) == (ceremony, KEYSTORE, ["check of shard 3"])
    protection = house.installation.finish_init(name, ceremony)
    assert protection["classical_shards"] == 1
    assert [shard["mechanism"] for shard in protection["shards"]] == ["aes-gcm", "aes-gcm", "age-x25519"]

    # Without carol: shards 1 and 2. Then with her, because bob does not approve.
    digests = []
    for approvers, with_carol in ((("alice", "bob", "dave"), False), (("alice", "carol", "dave"), True)):
        child, unseal = house.start_unseal(name, tmp_path / "digest")
        house.installation.approve(unseal, approvers)
        if with_carol:
            assert house.phase(unseal, "waiting", "releasing")["wanted"] == [KEYSTORE]
            assert finished(house.contribute(unseal))["contributed"] == ["data-key of shard 3"]
        served = finished(child)["served_by"]
        assert (KEYSTORE in served) is with_carol
        digests.append((tmp_path / "digest").read_text())
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_a_custodian_may_come_before_the_quorum_and_stay(house: House, tmp_path: Path) -> None:
    name = house.init()
    child, unseal = house.start_unseal(name, tmp_path / "digest")
    waiting = house.contribute(unseal)
    house.installation.approve(unseal, ("alice", "carol", "dave"))
    assert finished(waiting)["contributed"] == ["data-key of shard 3"]
    assert KEYSTORE in finished(child)["served_by"]


@pytest.mark.slow
def test_a_ceremony_that_is_refused_ends_the_contribution_with_its_reason(house: House, tmp_path: Path) -> None:
    name = house.init()
    child, unseal = house.start_unseal(name, tmp_path / "digest")
    waiting = house.contribute(unseal)
    for who in ("alice", "bob"):
        # Without both, no two shards can be released.
        house.masterkey("reject", unseal, "--key", str(house.folder / "keys" / who), "--yes")
    told = finished(waiting, code=1)
    assert (told["error"], told["ok"]) == ("CeremonyEnded", False)
    assert "refused by alice, bob" in told["err"]
    finished(child, code=1)
    late = finished(house.contribute(unseal), code=1)
    assert "is over (refused)" in late["message"]


@pytest.mark.slow
def test_a_drill_asks_the_custodian_and_gets_a_proof_alone(house: House) -> None:
    name = house.init()
    from workflows.contracts.messages.requests import DrillRequest
    from workflows.contracts.names import new_ceremony_id

    request = DrillRequest(master_key=name, ceremony=new_ceremony_id(name, "drill"), offline_seconds=60)
    start_drill(house, request)
    given = finished(house.contribute(str(request.ceremony), "--check-only"))
    assert given["contributed"] == ["check of shard 3"]
    shards = house.phase(str(request.ceremony), "done")["detail"]
    assert shards.startswith("all 3 shards open")


def start_drill(house: House, request: Any) -> None:
    import asyncio

    from workers.client import ceremonies as ceremony_client

    async def start() -> None:
        assert isinstance(house.installation.stack, Site)
        client = await house.installation.stack.connect()
        await ceremony_client.start(client, "DrillWorkflow", request)

    asyncio.run(start())


@pytest.mark.slow
def test_carols_key_stays_at_her_machine(house: House, tmp_path: Path) -> None:
    # Under a passphrase: it is asked for on the terminal, by the one-shot processes alone, and is not shown.
    from activities.keystores.kinds.age_keys import read_identity

    identity = read_identity(house.folder / "carols" / f"{KEYSTORE}.agekey", str)
    write_identity(tmp_path / "locked.agekey", identity, "sesame")
    config = (house.folder / "carol.toml").read_text()
    table = [line for line in config.splitlines() if not line.startswith("identity_file")]
    (house.folder / "locked.toml").write_text("\n".join([*table, f'identity_file = "{tmp_path}/locked.agekey"', ""]))
    name, ceremony = house.start_init()
    house.phase(ceremony, "proving")
    asked = f"Passphrase of the age key of {KEYSTORE}:"
    words = ("contribute", ceremony, "--keystore", KEYSTORE, "--config", str(house.folder / "locked.toml"))
    environment = house.installation.stack.environment()

    code, shown = on_terminal(words, (("to this. .y/N.:", "n"),), folder=tmp_path, env=environment)
    assert (code, asked in shown) == (1, False)
    assert f"CREATE a new MasterKey named {name}" in shown
    code, shown = on_terminal(words, (("to this. .y/N.:", "y"), (asked, "open")), folder=tmp_path, env=environment)
    assert code == 1
    assert "the passphrase is another one" in " ".join(shown.split())
    assert house.phase(ceremony, "proving")["wanted"] == [KEYSTORE]
    code, shown = on_terminal(
        words, (("to this. .y/N.:", "y"), (asked, "sesame"), (asked, "sesame")), folder=tmp_path, env=environment
    )
    assert code == 0, shown
    assert "sesame" not in shown
    assert identity.secret not in shown
    house.installation.finish_init(name, ceremony)


def test_nobody_is_asked_where_there_is_no_terminal(house: House) -> None:
    done = subprocess.run(
        house.installation.stack.command(
            "contribute", "eu10.unseal.0123456789ab", "--keystore", KEYSTORE, config="carol"
        ),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert json.loads(done.stdout)["next_step"] == "add --yes to contribute without asking"


def test_a_ceremony_that_is_not_known_is_said(house: House) -> None:
    told = finished(house.contribute("mk-1.unseal.0123456789ab"), code=1)
    assert told["error"] == "NotKnown"


def test_a_keystore_with_a_worker_takes_no_contributions(house: House) -> None:
    child = house.installation.stack.background(
        "contribute", "mk-1.unseal.0123456789ab", "--keystore", "bao-1", "--yes", config="keystores"
    )
    assert "its worker answers for it" in finished(child, code=1)["err"]
