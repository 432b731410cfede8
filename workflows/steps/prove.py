"""What a keystore's worker says of its key in signed words: which one it is, and that it still opens a shard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

from temporalio import workflow

from workflows.calls.keystores import call_keystore
from workflows.contracts import names
from workflows.contracts.messages.keystore import CheckDataKey, DescribeKey
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import AnswerInvalid
from workflows.contracts.trust.keystore import CheckResponse, KeyDescription
from workflows.contracts.trust.roster import Roster

Ask = Callable[[CheckDataKey], Awaitable[Signed]]
"""Asks whoever can prove a data key, and brings back the signed answer."""


async def describe_key(name: str, roster: Roster, *, within: timedelta, attempts: int) -> KeyDescription:
    """Which key a keystore uses, in its worker's own signed words.

    Raises:
        KeystoreError: it cannot be used now.
        AnswerInvalid: the answer is not signed by that keystore's worker.
    """
    signed = await call_keystore(
        names.DESCRIBE_KEY, name, DescribeKey(keystore=name), Signed, within=within, attempts=attempts
    )
    return roster.open(KeyDescription, signed, of=name)[0]


def worker(within: timedelta, attempts: int) -> Ask:
    """Asks a keystore's worker."""

    async def ask(request: CheckDataKey) -> Signed:
        return await call_keystore(
            names.CHECK_DATA_KEY, request.keystore, request, Signed, within=within, attempts=attempts
        )

    return ask


async def prove_data_key(stored: StoredProtection, index: int, roster: Roster, ask: Ask) -> Signed:
    """Let the keystore of one shard prove that it can give back its data key; nothing is released.

    Args:
        stored: the protection.
        index: of the shard, from 1.
        roster: names the keystore workers' identities.
        ask: asks its keystore's worker, or the custodian of an offline keystore.

    Returns:
        The keystore worker's signed answer.

    Raises:
        MasterKeyError: it cannot, by type.
        AnswerInvalid: the answer is not signed by that keystore's worker, or answers something else.
    """
    row, nonce = stored.shards[index - 1], workflow.uuid4().hex
    request = CheckDataKey(
        keystore=row.keystore, index=index, manifest=stored.manifest, wrapped_dek=row.wrapped_dek, nonce=nonce
    )
    signed = await ask(request)
    answer, _ = roster.open(CheckResponse, signed, of=row.keystore)
    said = (answer.index, answer.nonce, answer.manifest, answer.matches)
    if said != (index, nonce, stored.manifest.digest, True):
        raise AnswerInvalid(f"{row.keystore} did not prove its data key", subject=row.keystore)
    return signed
