"""SoftHSM 2: a PKCS#11 module that keeps its tokens in files. A library, not a service: nothing runs.

Whoever uses a token needs `SOFTHSM2_CONF` in the environment, see `SoftToken.env`. What loads the module here does
so in a process of its own (this module, run as a program), so that no process that forks has it loaded.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from activities.oneshot.installed import python
from activities.private import write_private
from workers.local.process import ServiceFailed
from workflows.contracts.trust.errors import ConfigurationInvalid

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
"""Where most packages put the library; some have it in `/usr/lib/ARCHITECTURE/softhsm`."""

_CONFIGURATION = """\
directories.tokendir = {tokens}
objectstore.backend = file
log.level = ERROR
slots.removable = false
"""


@dataclass(frozen=True)
class SoftToken:
    """A token.

    Attributes:
        module: path of SoftHSM's library.
        label: its label.
        serial: its serial number.
        pin_file: file of the user PIN; only its owner may read it.
        env: variables that a process needs to see the token.
    """

    module: Path
    label: str
    serial: str
    pin_file: Path
    env: Mapping[str, str]

    def settings(self, key_label: str) -> dict[str, Any]:
        """The table that configures a keystore with a key of this token."""
        return {
            "type": "pkcs11",
            "module": str(self.module),
            "token_serial": self.serial,
            "key_label": key_label,
            "pin_file": str(self.pin_file),
        }

    def make_key(self, label: str, kind: str = "aes", *, identifier: str = "", **attributes: object) -> None:
        """Make a key that cannot leave the token.

        Args:
            label: its label.
            kind: `aes` (256 bits) or `rsa` (3072 bits, about a second).
            identifier: its CKA_ID, hexadecimal; random unless set.
            attributes: PKCS#11 attributes that are to be other than they should: `EXTRACTABLE=True`.

        Raises:
            ServiceFailed: SoftHSM refused.
        """
        key = {"label": label, "kind": kind, "id": identifier or secrets.token_hex(8), "attributes": attributes}
        pin = self.pin_file.read_text(encoding="ascii")
        _run({"module": str(self.module), "serial": self.serial, "user": pin, "keys": [key]}, self.env)


def find_module() -> Path:
    """SoftHSM's library.

    Raises:
        ConfigurationInvalid: it is not installed.
    """
    for path in (MODULE, *sorted(Path("/usr/lib").glob("*/softhsm/libsofthsm2.so"))):
        if path.is_file():
            return path
    raise ConfigurationInvalid("SoftHSM is not installed", next_step="install the package softhsm2")


def make_token(
    folder: Path, label: str = "masterkey", *, name: str = "", aes: Sequence[str] = ("wrap",), rsa: Sequence[str] = ()
) -> SoftToken:
    """Make a token with new keys, or find the one that was made below `folder` by this name before.

    Args:
        folder: gets SoftHSM's configuration, the files of all tokens made in it, and their PINs.
        label: the token's label; more than one may have it.
        name: what its files are called; its label unless set.
        aes: labels of AES-256 keys to make.
        rsa: labels of RSA-3072 keys to make.

    Raises:
        ServiceFailed: SoftHSM refused.
        ConfigurationInvalid: it is not installed.
    """
    folder = folder.resolve()
    module, tokens, configuration = find_module(), folder / "tokens", folder / "softhsm2.conf"
    tokens.mkdir(parents=True, exist_ok=True)
    configuration.write_text(_CONFIGURATION.format(tokens=tokens), encoding="utf-8")
    env = {"SOFTHSM2_CONF": str(configuration)}
    described, pin_file = folder / f"{name or label}.json", folder / f"{name or label}.pin"
    if not described.exists():
        kinds = [("aes", key) for key in aes] + [("rsa", key) for key in rsa]
        keys = [{"label": key, "kind": kind, "id": secrets.token_hex(8), "attributes": {}} for kind, key in kinds]
        pin = secrets.token_hex(8)
        pin_file.unlink(missing_ok=True)
        write_private(pin_file, pin.encode())
        # `softhsm2-util` takes PINs on its command line, where all may read them: these two do not outlive this call.
        first, so_pin = secrets.token_hex(8), secrets.token_hex(8)
        slot = _initialise(["--label", label, "--so-pin", so_pin, "--pin", first], env)
        task = {"module": str(module), "slot": slot, "so": so_pin, "user": first, "new": pin, "keys": keys}
        described.write_text(json.dumps(_run(task, env)), encoding="utf-8")
    serial = json.loads(described.read_text(encoding="utf-8"))["serial"]
    return SoftToken(module, label, serial, pin_file, env)


def _initialise(words: list[str], env: Mapping[str, str]) -> int:
    """Initialise a free slot; returns the number that it has from now on."""
    command = ["softhsm2-util", "--init-token", "--free", *words]
    try:
        done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    except FileNotFoundError:
        raise ConfigurationInvalid("softhsm2-util is not installed", next_step="install the package softhsm2") from None
    found = re.search(r"reassigned to slot ([0-9]+)", done.stdout)
    if found is None:
        raise ServiceFailed(f"SoftHSM made no token: {done.stderr.strip()[-200:]}")
    return int(found[1])


def _run(task: Mapping[str, object], env: Mapping[str, str]) -> dict[str, Any]:
    """Have a task done in a process of its own, that hears of it, and of the PIN in it, by its standard input."""
    done = subprocess.run(  # noqa: S603 - our own module
        python("workers.local.softhsm"),
        input=json.dumps(task),
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ServiceFailed(f"SoftHSM refused: {done.stderr.strip().rpartition(chr(10))[2]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> None:
    """Change the PINs of a new token, make keys on it, and print its serial number: the task is on standard input."""
    # Here and not above: the embedded stack may run without this kind of keystore, and its SDK.
    import pkcs11

    task = json.load(sys.stdin)
    library = pkcs11.lib(task["module"])
    tokens = [slot.get_token() for slot in library.get_slots(token_present=True)]
    token = next(t for t in tokens if task.get("slot") == t.slot.slot_id or task.get("serial") == t.serial.decode())
    if "new" in task:
        with token.open(rw=True, so_pin=task["so"]) as session:
            session.set_pin(task["so"], secrets.token_hex(16))
        with token.open(rw=True, user_pin=task["user"]) as session:
            session.set_pin(task["user"], task["new"])
    with token.open(rw=True, user_pin=task.get("new", task["user"])) as session:
        for key in task["keys"]:
            _make_key(session, key)
    json.dump({"serial": token.serial.decode()}, sys.stdout)
    library.finalize()


def _make_key(session: Any, key: Mapping[str, Any]) -> None:
    import pkcs11

    changed = {pkcs11.Attribute[name]: value for name, value in key["attributes"].items()}
    secret = {pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False, **changed}
    common = {
        "id": bytes.fromhex(key["id"]),
        "label": key["label"],
        "store": True,
        "capabilities": pkcs11.MechanismFlag.ENCRYPT | pkcs11.MechanismFlag.DECRYPT,
    }
    if key["kind"] == "aes":
        session.generate_key(pkcs11.KeyType.AES, 256, template=secret, **common)
    else:
        session.generate_keypair(pkcs11.KeyType.RSA, 3072, private_template=secret, **common)


if __name__ == "__main__":
    main()
