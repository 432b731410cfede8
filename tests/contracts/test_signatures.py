"""SSH signatures: those that `ssh-keygen` makes are accepted, and nothing that merely resembles them."""

from __future__ import annotations

import base64
import hashlib
import struct
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from activities.identity import Identity, check_private, generate_identity
from tests.world import rsa_custodian, sign_file
from workflows.contracts.trust.errors import ApprovalInvalid, ConfigurationInvalid
from workflows.contracts.trust.signatures import armour, check, fingerprint, normal_public_key

DATA = b'{"a":1}'
NAMESPACE = "masterkey-approval"


@pytest.fixture
def identity() -> Identity:
    return Identity(Ed25519PrivateKey.generate())


@pytest.mark.parametrize("bits", [2048, 3072])
def test_a_signature_by_ssh_keygen_with_an_rsa_key_is_accepted(tmp_path: Path, bits: int) -> None:
    key = rsa_custodian(tmp_path, "bob", bits)
    public = normal_public_key((tmp_path / "bob.pub").read_text())
    assert check(DATA, sign_file(key, DATA, NAMESPACE), NAMESPACE) == fingerprint(public)


def test_a_signature_by_ssh_keygen_with_an_ed25519_key_is_accepted(tmp_path: Path) -> None:
    made = generate_identity(tmp_path / "alice")
    assert check(DATA, sign_file(tmp_path / "alice", DATA, NAMESPACE), NAMESPACE) == made.fingerprint
    listed = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(tmp_path / "alice.pub")], capture_output=True, text=True, check=True
    )
    assert made.fingerprint in listed.stdout


def test_ssh_keygen_accepts_our_signatures(tmp_path: Path) -> None:
    made = generate_identity(tmp_path / "vault")
    (tmp_path / "allowed").write_text(f'vault namespaces="{NAMESPACE}" {made.public_key}\n')
    (tmp_path / "sig").write_text(made.sign_bytes(DATA, NAMESPACE))
    words = [
        "-Y",
        "verify",
        "-f",
        str(tmp_path / "allowed"),
        "-I",
        "vault",
        "-n",
        NAMESPACE,
        "-s",
        str(tmp_path / "sig"),
    ]
    subprocess.run(["ssh-keygen", *words], input=DATA, check=True, capture_output=True)


def test_other_data_namespace_or_key_is_refused(identity: Identity) -> None:
    signature = identity.sign_bytes(DATA, NAMESPACE)
    assert check(DATA, signature, NAMESPACE) == identity.fingerprint
    for data, namespace in ((DATA + b" ", NAMESPACE), (DATA, "masterkey-manifest"), (b"", NAMESPACE)):
        with pytest.raises(ApprovalInvalid, match="not a valid"):
            check(data, signature, namespace)


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def forged(identity: Identity, *, hash_name: str = "sha512", reserved: bytes = b"", tail: bytes = b"") -> str:
    """A signature that is right but for one thing."""
    message = hashlib.new(hash_name, DATA).digest()
    parts = (NAMESPACE.encode(), b"", hash_name.encode(), message)
    raw = identity._key.sign(b"SSHSIG" + b"".join(map(string, parts)))
    public = string(b"ssh-ed25519") + string(identity._key.public_key().public_bytes_raw())
    blob = (public, NAMESPACE.encode(), reserved, hash_name.encode(), string(b"ssh-ed25519") + string(raw))
    return armour(b"SSHSIG" + struct.pack(">I", 1) + b"".join(map(string, blob)) + tail)


@pytest.mark.parametrize("hash_name", ["md5", "sha1", "sha3_256"])
def test_weak_and_unusual_hashes_are_refused(identity: Identity, hash_name: str) -> None:
    assert check(DATA, forged(identity), NAMESPACE) == identity.fingerprint
    with pytest.raises(ApprovalInvalid, match="hash or an encoding"):
        check(DATA, forged(identity, hash_name=hash_name), NAMESPACE)


def test_other_encodings_of_a_good_signature_are_refused(identity: Identity) -> None:
    good = identity.sign_bytes(DATA, NAMESPACE)
    for bad in (
        forged(identity, reserved=b"x"),
        forged(identity, tail=b"x"),
        "x" + good,
        good + "x",
        good.replace("BEGIN SSH SIGNATURE", "BEGIN PGP SIGNATURE"),
    ):
        with pytest.raises(ApprovalInvalid):
            check(DATA, bad, NAMESPACE)


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        "x",
        "\ud7ff",
        armour(b""),
        armour(b"SSHSIG"),
        armour(b"SSHSIG\0\0\0\1"),
        armour(b"SSHSIG\0\0\0\2" + b"\0" * 64),
        armour(b"SSHSIG\0\0\0\1" + b"\xff" * 64),
        armour(b"\0" * 4096),
    ],
)
def test_garbage_is_one_kind_of_error(garbage: str) -> None:
    with pytest.raises(ApprovalInvalid):
        check(DATA, garbage, NAMESPACE)


def test_small_rsa_keys_are_refused(tmp_path: Path) -> None:
    key = rsa_custodian(tmp_path, "weak", 1024)
    public = (tmp_path / "weak.pub").read_text()
    with pytest.raises(ValueError, match="2048 to 8192 bits, not 1024"):
        normal_public_key(public)
    with pytest.raises(ApprovalInvalid):
        check(DATA, sign_file(key, DATA, NAMESPACE), NAMESPACE)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 !!!!",
        "ecdsa-sha2-nistp256 AAAAE2VjZHNh",
        "ssh-rsa " + base64.b64encode(string(b"ssh-ed25519") + string(b"\1" * 32)).decode(),
    ],
)
def test_malformed_public_keys_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"OpenSSH|not accepted"):
        normal_public_key(line)


def test_an_identity_file_must_be_private_ed25519_and_unencrypted(tmp_path: Path) -> None:
    generate_identity(tmp_path / "good")
    assert Identity.load(tmp_path / "good").public_key == normal_public_key((tmp_path / "good.pub").read_text())
    with pytest.raises(ConfigurationInvalid, match="exists already"):
        generate_identity(tmp_path / "good")
    rsa = rsa_custodian(tmp_path, "rsa")
    (tmp_path / "garbage").write_text("x")
    (tmp_path / "garbage").chmod(0o600)
    words = ["-q", "-t", "ed25519", "-N", "passphrase", "-f", str(tmp_path / "locked")]
    subprocess.run(["ssh-keygen", *words], check=True)
    for path, complaint in (
        (rsa, "not an Ed25519 key"),
        (tmp_path / "garbage", "not an unencrypted OpenSSH private key"),
        (tmp_path / "locked", "not an unencrypted OpenSSH private key"),
        (tmp_path / "missing", "cannot read"),
    ):
        with pytest.raises(ConfigurationInvalid, match=complaint):
            Identity.load(path)
    (tmp_path / "good").chmod(0o640)
    with pytest.raises(ConfigurationInvalid, match="can be read by others"):
        check_private(tmp_path / "good")
