"""Signing as a custodian: with `ssh-keygen -Y sign`, so that keys in files and in agents both work."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from workflows.contracts.trust.errors import ConfigurationInvalid
from workflows.contracts.trust.signatures import normal_public_key


def sign_with_key(data: bytes, key: Path, namespace: str) -> str:
    """An armoured SSH signature over `data`.

    Args:
        data: what is signed.
        key: a private key file, or the public half of a key that an agent holds.
        namespace: type of the document.

    Raises:
        ConfigurationInvalid: ssh-keygen is missing, or could not sign.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "statement"
        file.write_bytes(data)
        command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", namespace, str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
        except FileNotFoundError:
            raise ConfigurationInvalid("ssh-keygen is not installed", next_step="install openssh-client") from None
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ConfigurationInvalid(f"ssh-keygen could not sign with {key}: {reason}")
        return file.with_name("statement.sig").read_text(encoding="ascii")


def public_key_of(key: Path) -> str:
    """The public half of a key file: from FILE.pub, or FILE itself if it is a public key, or by ssh-keygen.

    Raises:
        ConfigurationInvalid: there is none, or it is malformed.
    """
    for path in (key.with_name(key.name + ".pub"), key):
        try:
            return normal_public_key(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    command = ["ssh-keygen", "-y", "-P", "", "-f", str(key)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell
        if done.returncode == 0:
            return normal_public_key(done.stdout)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigurationInvalid(f"{key} is not a usable SSH key: {error}") from None
    raise ConfigurationInvalid(
        f"cannot find the public half of {key}", next_step=f"write it to {key}.pub with ssh-keygen -y"
    )
