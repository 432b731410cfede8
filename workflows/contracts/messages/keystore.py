"""Inputs of keystore workers' activities; `DekAnswer` is in `protection`."""

from __future__ import annotations

from workflows.contracts.trust.canonical import Base64, Message, Name, Signed
from workflows.contracts.trust.fields import Index, Nonce
from workflows.contracts.trust.quorum import Authority


class KeystoreRequest(Message):
    """Base of what a keystore's workers are asked: which keystore is meant."""

    keystore: Name


class DescribeKey(KeystoreRequest):
    """Ask a keystore worker which key it uses."""


class GenerateDataKey(KeystoreRequest):
    """Ask a keystore worker for a fresh DEK, wrapped, and encrypted to a session."""

    index: Index
    authority: Authority
    session: Signed


class UnwrapDataKey(KeystoreRequest):
    """Ask a keystore worker to unwrap a DEK and encrypt it to a session."""

    index: Index
    authority: Authority
    session: Signed
    manifest: Signed
    wrapped_dek: Base64


class CheckDataKey(KeystoreRequest):
    """Ask a keystore worker to prove that it can still give back a DEK; releases nothing."""

    index: Index
    manifest: Signed
    wrapped_dek: Base64
    nonce: Nonce


class NoteCommit(KeystoreRequest):
    """Tell a keystore worker which manifest is in force, so that it refuses what is older.

    Attributes:
        proofs: of every keystore of that protection, that it can give back its data key (`CheckResponse`).
    """

    manifest: Signed
    proofs: tuple[Signed, ...] = ()


class NoteOrder(KeystoreRequest):
    """Tell a keystore worker what a governance quorum has ordered: a lift, a retirement, or a destruction.

    Attributes:
        manifest: what the order is about; none for a lift.
    """

    authority: Authority
    manifest: Signed | None = None


class StopServing(KeystoreRequest):
    """Tell a keystore worker that a custodian has ordered to stop."""

    stop: Signed


class ReportState(KeystoreRequest):
    """Ask a keystore worker what it remembers."""

    nonce: Nonce
