"""Field types that several documents share, each with the form that a reader can rely on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

SUITE = "HPKE-v1/MLKEM768-X25519/HKDF-SHA256/AES-256-GCM"
"""RFC 9180 with the hybrid KEM of draft-ietf-hpke-pq; the one suite in use."""
Suite = Literal["HPKE-v1/MLKEM768-X25519/HKDF-SHA256/AES-256-GCM"]
Action = Literal["init", "unseal", "drill", "seal", "lift", "reshard", "recover", "retire", "destroy"]
Mode = Literal["sss", "seal"]
Purpose = Literal["primary", "emergency"]
Work = Literal["protect", "release", "reshard"]
"""What a session does: draw a MasterKey and protect it, release one, or open one protection and make another."""
Mechanism = Literal["aes-gcm", "rsa-oaep", "age-x25519"]
CLASSICAL = ("rsa-oaep", "age-x25519")
"""Mechanisms that a quantum computer could break; `status` counts the shards that are wrapped so."""
CeremonyId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}\.[a-z]+\.[0-9a-f]{12}$")]
KeyId = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,1024}$")]
"""Printable ASCII without spaces: custodians read it in the statement that they sign, so it can hide nothing."""
Index = Annotated[int, Field(ge=1, le=255)]
Number = Annotated[int, Field(ge=1, le=2_147_483_647)]
Check = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Line = Annotated[str, StringConstraints(pattern=r"^[ -~]{0,200}$")]
"""Printable ASCII, one line: custodians and operators read it on terminals."""
Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
