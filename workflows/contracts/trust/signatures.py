"""SSH signatures: the `ssh-keygen -Y sign` format (OpenSSH PROTOCOL.sshsig), verified strictly.

Only Ed25519 and RSA (2,048 bits or more) with SHA-256 or SHA-512 are accepted, and of the signature's bytes
only the one encoding that OpenSSH writes (its armour may be broken into lines in other ways).
Whatever goes wrong is one error, `DocumentInvalid`. Signers are told apart by the
fingerprint of their key, never by the bytes of a signature.
"""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from sshsig import PublicKey, check_signature
from sshsig.sshsig import SshsigSignature, ssh_dearmor_sshsig

from workflows.contracts.trust.canonical import Document, Signed
from workflows.contracts.trust.errors import DocumentInvalid

D = TypeVar("D", bound=Document)

_HASHES = (b"sha256", b"sha512")
_MINIMUM_RSA_BITS = 2048
_MAXIMUM_RSA_BITS = 8192
_BEGIN = "-----BEGIN SSH SIGNATURE-----"
_END = "-----END SSH SIGNATURE-----"


def normal_public_key(text: str) -> str:
    """An OpenSSH public key line without its comment, checked.

    Raises:
        ValueError: not an Ed25519 key or an RSA key of 2,048 to 8,192 bits in OpenSSH form.
    """
    parts = text.split()
    if len(parts) < 2:
        raise ValueError("an OpenSSH public key looks like 'ssh-ed25519 AAAA...'")
    if parts[0] not in ("ssh-ed25519", "ssh-rsa"):
        raise ValueError(f"keys of kind {parts[0][:40]!r} are not accepted; use ssh-ed25519 or ssh-rsa")
    try:
        key = PublicKey.from_openssh_str(f"{parts[0]} {parts[1]}")
        loaded = load_ssh_public_key(f"{parts[0]} {parts[1]}".encode())
    except Exception:  # noqa: BLE001 - five kinds of exception, one meaning
        raise ValueError("the text after the kind is not an OpenSSH public key") from None
    if isinstance(loaded, rsa.RSAPublicKey) and not _MINIMUM_RSA_BITS <= loaded.key_size <= _MAXIMUM_RSA_BITS:
        raise ValueError(f"an RSA key has {_MINIMUM_RSA_BITS} to {_MAXIMUM_RSA_BITS} bits, not {loaded.key_size}")
    normal = key.openssh_str()
    if normal.split()[1] != parts[1]:
        raise ValueError("the key is not in the encoding that OpenSSH writes")
    return normal


def fingerprint(public_key: str) -> str:
    """`SHA256:` and 43 characters, as `ssh-keygen -l` prints it, of an OpenSSH public key line."""
    return PublicKey.from_openssh_str(public_key).sha256_str()


def check(data: bytes, signature: str, namespace: str) -> str:
    """Verify an armoured SSH signature over `data`.

    Returns:
        The fingerprint of the key that signed.

    Raises:
        DocumentInvalid: anything at all is wrong with it.
    """
    try:
        raw = ssh_dearmor_sshsig(signature)
        parsed = SshsigSignature(raw)
        strict = bytes(parsed) == raw and parsed.hash_algo in _HASHES
        strict = strict and signature.lstrip().startswith(_BEGIN) and signature.rstrip().endswith(_END)
        signer = check_signature(data, signature, namespace)
        normal_public_key(signer.openssh_str())
    except Exception:  # noqa: BLE001 - sshsig raises five kinds; a caller needs one
        raise DocumentInvalid(f"the signature is not a valid {namespace!r} SSH signature over this document") from None
    if not strict:
        raise DocumentInvalid("the signature uses a hash or an encoding that is not accepted")
    return signer.sha256_str()


def open_signed(kind: type[D], signed: Signed) -> tuple[D, str]:
    """Verify a signed document and parse it.

    Returns:
        The document, and the fingerprint of the key that signed it: `Roster.open` decides whether it may.

    Raises:
        DocumentInvalid: the signature or the document is not valid.
    """
    data = signed.document.encode()
    signer = check(data, signed.signature, kind.TYPE)
    return kind.parse(data), signer


def armour(raw: bytes) -> str:
    """PEM-like armour of a raw SSHSIG blob, 70 characters a line as OpenSSH writes it."""
    text = base64.b64encode(raw).decode("ascii")
    lines = [text[start : start + 70] for start in range(0, len(text), 70)]
    return "\n".join([_BEGIN, *lines, _END, ""])


_WARM_UP_VECTORS = (
    # Made once with `ssh-keygen -Y sign -n masterkey-warm-up` over b"warm", keys thrown away.
    (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHrU8Pax4FsaDG+8vsXmjVC5Ic5f+U85/LWyiuV9s+9P",
        (
            "U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgetTw9rHgWxoMb7y+xeaNULkhzl/5Tzn8tbKK5X2z708AAAAR"
            "bWFzdGVya2V5LXdhcm0tdXAAAAAAAAAABnNoYTUxMgAAAFMAAAALc3NoLWVkMjU1MTkAAABAOob4ddHInmiiPd1AxxGJ"
            "udabK4dzkZWNzJowuhUSKy7sKy//S/xK+zlQ7nAxRx+QfUGngs+qGz/5JIJV8RMLCw=="
        ),
    ),
    (
        "ssh-rsa "
        "AAAAB3NzaC1yc2EAAAADAQABAAABAQCwK/ROFNl8PkQC9Z9uRWRhqm9iMqYqf5T1vag/HfnyhRiOi6bcZvT07cjAvg5j"
        "+PWnKCRGK78oI4UONQ42klPjSa5CAlNmMDjF4cehPiv5z4nN4MQk8EqX2g1qHLrM7mKn42Squec5X3mGaplOjt0Lq5VF"
        "Pxx4FBiRBYAyMYza5Wgv0UVae7Cj8Is1xAF+xSdL5mzfRKx2bp2oBkp1JRdbeNf2t5SKy6eYQ3AzMEpN5oGilSJH9R2k"
        "qDcWcsGEpy+i0MfwPBVo9N5tsc8osYW1mmhIF4nnXM4t0EkFlqFipDgDodzp+cHaQs/Bn57l0RIqUf4MvFytyN5ioO65"
        "1WCD",
        (
            "U1NIU0lHAAAAAQAAARcAAAAHc3NoLXJzYQAAAAMBAAEAAAEBALAr9E4U2Xw+RAL1n25FZGGqb2Iypip/lPW9qD8d+fKF"
            "GI6Lptxm9PTtyMC+DmP49acoJEYrvygjhQ41DjaSU+NJrkICU2YwOMXhx6E+K/nPic3gxCTwSpfaDWocuszuYqfjZKq5"
            "5zlfeYZqmU6O3QurlUU/HHgUGJEFgDIxjNrlaC/RRVp7sKPwizXEAX7FJ0vmbN9ErHZunagGSnUlF1t41/a3lIrLp5hD"
            "cDMwSk3mgaKVIkf1HaSoNxZywYSnL6LQx/A8FWj03m2xzyixhbWaaEgXiedczi3QSQWWoWKkOAOh3On5wdpCz8GfnuXR"
            "EipR/gy8XK3I3mKg7rnVYIMAAAARbWFzdGVya2V5LXdhcm0tdXAAAAAAAAAABnNoYTUxMgAAARQAAAAMcnNhLXNoYTIt"
            "NTEyAAABAH1F2SwGtxybd3v8O27xiNsCLb/EsAIAm0Czb2QOgJTaS32ZBkAvL6yDRtySAgr/l+SSx6zmtr40OfdleMko"
            "713MF/q15r6jEdNkLqk7IdXEwZ6J+Fj9KokGSzD+HNSW/qK5UX3t9+CRbDmw9QABSbFiplFbGxclf5K//iv5jXXC5lDB"
            "BeMJUnS9ZT94dFroa8KF7tME0tJJ4Uy30MBJaRKfijlAhiCYZnqOxSZp8K5vHqjzHU7zxRxap9xunfnPx+ChRDxQ99Ap"
            "XxNk0yLg74cKcAqhAX3EXsCAX/rAkCiMkMoTswuwsUbI1VfJMBPfbJ1EpfbgKCTD7ShW9NQhpu4="
        ),
    ),
)


def _warm_up() -> None:
    # `cryptography` imports lazily, and the first RSA verification inside a workflow's sandbox would fail:
    # one signature of each kind is verified while this module is imported, outside the sandbox.
    for public_key, blob in _WARM_UP_VECTORS:
        if check(b"warm", armour(binascii.a2b_base64(blob)), "masterkey-warm-up") != fingerprint(public_key):
            raise ImportError("SSH signatures cannot be verified with this installation of cryptography")


_warm_up()
