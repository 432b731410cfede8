"""Notifying keystore workers of a stop, an order or a commit: taken in only when they say so in signed words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta

from workflows.calls.concurrency import gather
from workflows.calls.keystores import call_keystore
from workflows.contracts import names
from workflows.contracts.messages.keystore import NoteCommit
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.messages.results import KeystoreTold
from workflows.contracts.trust.canonical import Message, Signed
from workflows.contracts.trust.errors import AnswerInvalid, MasterKeyError
from workflows.contracts.trust.keystore import KeystoreState, StateStatement
from workflows.contracts.trust.roster import Roster
from workflows.steps.contribute import Contributing
from workflows.steps.record import RecordedWorkflow

_COMMIT_TIMEOUT = timedelta(seconds=30)
_COMMIT_TIMEOUT_IF_AWAY = timedelta(seconds=5)
_COMMIT_ATTEMPTS = 10


async def notify_keystores(
    activity: str,
    request: Callable[[str], Message],
    roster: Roster,
    *,
    about: str,
    within: timedelta,
    keys: Mapping[str, tuple[str, ...]],
    acknowledged: Callable[[KeystoreState | None], bool],
    master_key: str,
) -> tuple[KeystoreTold, ...]:
    """Notify every keystore worker of the roster, and check from its signed answer that it has taken it in.

    Args:
        activity: how it is notified.
        request: what is sent to a keystore.
        roster: who is notified.
        about: digest of what they are notified of.
        within: how long each may take.
        keys: for each keystore, the keys to disable by hand if it cannot be notified.
        acknowledged: whether what it says that it remembers of this MasterKey is as it should be.
        master_key: which.
    """

    async def notify(name: str) -> KeystoreTold:
        try:
            said = await statement_of(activity, name, request(name), roster, about, within=within, attempts=0)
            if not acknowledged(state_in(said, master_key)):
                raise AnswerInvalid(f"{name} answered, but remembers something else", subject=name)
        except MasterKeyError as error:
            return KeystoreTold(
                keystore=name,
                acknowledged=False,
                error=error.failure_type,
                detail=error.diagnostics,
                keys=keys.get(name, ()),
            )
        return KeystoreTold(keystore=name, acknowledged=True)

    return tuple(await gather([notify(one.name) for one in roster.keystores if one.offline is None]))


def record_notified(ceremony: RecordedWorkflow, notified: Sequence[KeystoreTold], type_: str) -> list[str]:
    """An event for each keystore; `type_` is the one of those that have acknowledged.

    Returns:
        Names of those that have not.
    """
    for one in notified:
        kind = type_ if one.acknowledged else "keystore-not-told"
        ceremony.event(f"told.{one.keystore}", kind, keystore=one.keystore, error=one.error)
    return [one.keystore for one in notified if not one.acknowledged]


async def notify_of_commit(
    ceremony: Contributing,
    stored: StoredProtection,
    proofs: tuple[Signed, ...],
    keystores: Sequence[str],
    roster: Roster,
    away: Collection[str] = (),
) -> tuple[str, ...]:
    """Notify keystore workers of what is in force now, so that they refuse what is older.

    Args:
        ceremony: who records those that do not acknowledge, and knows the offline ones, which have no worker.
        stored: what is in force now.
        proofs: of all its keystores.
        keystores: who is notified.
        roster: who they are.
        away: those that did not answer a moment ago: they are not waited for as long.

    Returns:
        Names of those that did not acknowledge; the next drill notifies them again.
    """
    digest = stored.manifest.digest

    async def notify(name: str) -> str | None:
        request = NoteCommit(keystore=name, manifest=stored.manifest, proofs=proofs)
        within = _COMMIT_TIMEOUT_IF_AWAY if name in away else _COMMIT_TIMEOUT
        try:
            await statement_of(
                names.NOTE_COMMIT, name, request, roster, digest, within=within, attempts=_COMMIT_ATTEMPTS
            )
        except MasterKeyError as error:
            ceremony.failed(f"not-noted.{digest[7:19]}.{name}", "commit-not-noted", error, keystore=name)
            return name
        return None

    found = await gather([notify(name) for name in dict.fromkeys(keystores) if not ceremony.is_offline(name)])
    return tuple(name for name in found if name is not None)


async def statement_of(
    activity: str, keystore: str, request: Message, roster: Roster, about: str, *, within: timedelta, attempts: int
) -> StateStatement:
    """Ask or notify a keystore worker, and get what it says that it remembers.

    Raises:
        MasterKeyError: it refused, or did not answer, by type.
        AnswerInvalid: the answer is not signed by that keystore's worker, or is about something else.
    """
    signed = await call_keystore(activity, keystore, request, Signed, within=within, attempts=attempts)
    statement, _ = roster.open(StateStatement, signed, of=keystore)
    if statement.about != about:
        raise AnswerInvalid(f"{keystore} did not acknowledge what it was told", subject=keystore)
    return statement


def state_in(statement: StateStatement, master_key: str) -> KeystoreState | None:
    """What a keystore worker says that it remembers of a MasterKey; None: nothing."""
    return next((one for one in statement.master_keys if one.master_key == master_key), None)
