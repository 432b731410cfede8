"""Break glass: everything is lost but a bundle, access to keystores, and people. Recovery on one machine.

The same workflows, activities, approvals and audit trail as ever, on an embedded Temporal server and SQLite: there is
no second implementation. One configuration file names the pinned roster, a strongroom's identity and the keystores
that are left; all roles run from it, on this machine.

What its owner cannot get past: keystores want the manifest signed by a strongroom of the roster and the quorum's and
their own custodians' signatures, and the session releases nothing to anybody but into the approved new shards or to an
enrolled recipient. What they can: all roles are theirs, so with the credentials of M keystores, this code changed by
them, and no signature at all, they can open M data keys. And the keystore workers' own memory is what lies in their
`state` folders here: without a copy of it, an older bundle or a lifted stop is not noticed. So give this machine to
nobody alone, and take the credentials away afterwards.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from workers.config import Configuration
from workers.local.process import Service, launch_service, wait_until_ready
from workers.local.stack import COMMAND
from workers.local.temporal import start_temporal
from workers.output import say
from workers.roles import READY
from workflows.contracts.trust.errors import ConfigurationInvalid, MasterKeyError

_BEGUN = "imported"
"""A file that says that the bundle is in the ledger."""


class BreakGlassFailed(MasterKeyError):
    """A step of the embedded installation failed; what it said is in the message."""


def run_break_glass(
    config: Path, folder: Path, bundle: Path, approvals: Sequence[Path], work: Callable[[], None]
) -> None:
    """Make a ledger from a bundle, start everything in `folder`, do `work`, and stop everything.

    Called again with the same folder it goes on where it was: database and Temporal's history are kept.

    Args:
        config: with [roster], [strongroom] and [keystores.*]; [ledger] and [bundle] are set here.
        folder: made if it is not there; holds the ledger, Temporal's database, logs and new bundles.
        bundle: the bundle.
        approvals: the governance quorum's approvals of it; not needed when the ledger is there already.
        work: what to do with the running installation; finds Temporal by the environment.

    Raises:
        ConfigurationInvalid: a section is missing.
        BreakGlassFailed: the bundle was refused, or a role did not start.
    """
    configuration = Configuration.load(config)
    configuration.need_strongroom()
    online = [name for name, section in configuration.keystores.items() if section.type != "offline"]
    if not online:
        raise ConfigurationInvalid(f"{config}: no keystore with a worker is configured, so nothing can be opened")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    environment = {
        "MASTERKEY_LEDGER__URL": f"sqlite:///{folder / 'masterkey.db'}",
        "MASTERKEY_BUNDLE__DIRECTORY": str(folder / "bundles"),
    }
    services: list[Service] = []
    begun = (folder / _BEGUN).exists()
    try:
        say(f"break glass: an installation of its own in {folder}; the bundle is all it begins with")
        _masterkey(config, environment, "ledger", "upgrade")
        if begun:
            say("it was begun before: its ledger and its ceremonies go on where they were")
        else:
            words = [word for path in approvals for word in ("--approval", str(path.resolve()))]
            # Nobody is asked yet what keystores serve: they refuse by themselves what is older than they remember.
            say(_masterkey(config, environment, "bundle", "import", str(bundle.resolve()), *words))
            (folder / _BEGUN).touch()
        services.append(start_temporal(folder / "temporal"))
        environment["TEMPORAL_ADDRESS"] = services[0].endpoint
        roles = [["orchestrator"], ["strongroom"], *(["keystore", name] for name in online)]
        waits = [_start(config, folder, environment, role, services) for role in roles]
        for wait in waits:
            wait()
        say(f"up: Temporal at {services[0].endpoint}, {len(online)} keystore workers, one strongroom")
        say(
            f"custodians on this machine: TEMPORAL_ADDRESS={services[0].endpoint} masterkey approve CEREMONY --key FILE"
        )
        say("custodians elsewhere: send them what `masterkey ceremony statement CEREMONY --out FILE` writes; they sign")
        say(
            "with ssh-keygen, and you submit it with `masterkey approve CEREMONY --statement FILE --signature FILE.sig`"
        )
        os.environ.update(environment)
        work()
        say(f"the new ledger is {folder / 'masterkey.db'}; its bundles are in {folder / 'bundles'}")
        say("import the newest bundle where the next orchestrator will run (`masterkey bundle import`), then take the")
        say("credentials off this machine")
    finally:
        for service in reversed(services):
            service.stop()


def _masterkey(config: Path, environment: Mapping[str, str], *words: str) -> str:
    command = [*COMMAND, "--config", str(config), *words]
    done = subprocess.run(  # noqa: S603 - our own command line
        command,
        capture_output=True,
        text=True,
        check=False,
        # A port where nothing answers: another Temporal must not be asked by accident.
        env={**os.environ, "TEMPORAL_ADDRESS": "127.0.0.1:1", **environment},
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1].removeprefix("masterkey: ")
        message, _, next_step = reason.partition("; ")
        raise BreakGlassFailed(message, next_step=next_step)
    return done.stdout.strip()


def _start(
    config: Path, folder: Path, environment: Mapping[str, str], role: Sequence[str], services: list[Service]
) -> Callable[[], None]:
    log = folder / "logs" / f"{'-'.join(role)}.log"
    start = log.stat().st_size if log.exists() else 0
    service = launch_service(
        " ".join(role), [*COMMAND, "worker", *role, "--config", str(config)], log=log, env=environment
    )
    services.append(service)
    return lambda: wait_until_ready(service, lambda: READY.encode() in log.read_bytes()[start:])
