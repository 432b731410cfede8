"""Proof that a keystore can still give back a data key: asked with a nonce, answered with a signature."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

from temporalio import workflow

from workflows.calls.keystores import call_keystore
from workflows.contracts import names
from workflows.contracts.messages.keystore import CheckDataKey
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.keystore import CheckResponse
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.signatures import open_signed

Ask = Callable[[CheckDataKey], Awaitable[Signed]]


async def prove_data_key(
    stored: StoredProtection,
    index: int,
    roster: Roster,
    *,
    patience: timedelta,
    attempts: int,
    ask: Ask | None = None,
) -> Signed:
    """Let the keystore of one shard prove that it can give back its data key; nothing is released.

    Args:
        stored: the protection.
        index: of the shard, from 1.
        roster: names the keystore workers' identities.
        patience: limit of all attempts.
        attempts: how often a retryable failure is tried again.
        ask: asks somebody else than the keystore's worker: the custodian of an offline keystore.

    Returns:
        The keystore worker's signed answer.

    Raises:
        MasterKeyError: it cannot, by type.
        ApprovalInvalid: the answer is not signed by that keystore's worker, or answers something else.
    """
    row, nonce = stored.shards[index - 1], workflow.uuid4().hex
    request = CheckDataKey(
        keystore=row.keystore, index=index, manifest=stored.manifest, wrapped_dek=row.wrapped_dek, nonce=nonce
    )
    if ask is not None:
        signed = await ask(request)
    else:
        signed = await call_keystore(
            names.CHECK_DATA_KEY, row.keystore, request, Signed, patience=patience, attempts=attempts
        )
    answer, signer = open_signed(CheckResponse, signed)
    worker = roster.keystore(row.keystore)
    said = (answer.keystore, answer.index, answer.nonce, answer.manifest, answer.matches)
    wanted = (row.keystore, index, nonce, stored.manifest.digest, True)
    if worker is None or signer != worker.fingerprint or said != wanted:
        raise ApprovalInvalid(f"{row.keystore} did not prove its data key", subject=row.keystore)
    return signed
