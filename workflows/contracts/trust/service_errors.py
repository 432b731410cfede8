"""Errors that no verification raises: a service that is away, a stop, the ledger, a ceremony's end. After `errors`.

Here too is every error by its name, as it comes back from another process.
"""

from __future__ import annotations

from workflows.contracts.trust.errors import KeystoreError, MasterKeyError, PlanInvalid


class KeystoreUnavailable(KeystoreError):
    """Outage, refused connection, time-out or a 5xx answer: may pass by itself."""

    retryable = True
    default_next_step = "wait or restore the network path; another shard is used meanwhile"


class KeystoreThrottled(KeystoreError):
    """The service asks to slow down (429 and its like): passes by itself."""

    retryable = True
    default_next_step = "wait, or raise the service's request quota"


class KeystoreAccessDenied(KeystoreError):
    """Credentials or policy do not allow the call."""

    default_next_step = "check the worker's credentials and the key's policy"


class KeyDisabled(KeystoreError):
    """The key exists and is disabled."""

    default_next_step = "enable the key, unless somebody disabled it to stop releases"


class KeyPendingDeletion(KeystoreError):
    """The key is scheduled for deletion: cancel that before it is gone for good."""

    default_next_step = "cancel the deletion now, then reshard away from this key"


class KeyNotFound(KeystoreError):
    """The key, or the version that wrapped, does not exist."""

    default_next_step = "check the configured key id; if the key was deleted, recover into a replacement"


class Stopped(MasterKeyError):
    """Somebody has ordered that this MasterKey is served to nobody; only the governance quorum can lift that."""

    default_next_step = "find out who ordered it and why; the quorum lifts it with `masterkey seal NAME --lift`"


class QuorumUnreachable(MasterKeyError):
    """Fewer shards or custodians than needed can ever answer."""

    default_next_step = "start disaster recovery, or restore a keystore"


class NameTaken(PlanInvalid):
    """A MasterKey of this name exists already; a MasterKey is never overwritten."""

    default_next_step = "choose another name, or reshard the one that exists"


class NotKnown(MasterKeyError):
    """No MasterKey, ceremony or protection of this name exists."""

    default_next_step = "list them with `masterkey status` or `masterkey ceremony list`"


class BundleInvalid(MasterKeyError):
    """A bundle that was altered, is older than what it would replace, or is of another installation."""

    default_next_step = "do not use this file; get another copy and run `masterkey bundle verify` on it"


class BundleUnavailable(MasterKeyError):
    """A place where bundles are kept cannot be written or read at this moment; `subject` is the place."""

    retryable = True
    default_next_step = "check [bundle] in the orchestrator's configuration, and the folder or bucket that it names"


class LedgerConflict(MasterKeyError):
    """The ledger refuses a write that contradicts what it holds."""

    default_next_step = "look at `masterkey status`; somebody else changed this MasterKey"


class LedgerCorrupt(MasterKeyError):
    """The hash chain or a stored hash does not match: the ledger was altered."""

    default_next_step = "stop, keep the database as evidence, and compare it with a bundle"


class Unserved(MasterKeyError):
    """A ceremony does not answer: no orchestrator of the build that began it runs. It waits, and loses nothing."""

    retryable = True
    default_next_step = "start an orchestrator of that build; see `masterkey worker builds`"


class CeremonyEnded(MasterKeyError):
    """The ceremony was rejected, ran out of time or is over already."""

    default_next_step = "start a new ceremony"


class DeadlinePassed(CeremonyEnded):
    """Nobody, or not enough custodians, decided in time."""


def _subclasses(cls: type[MasterKeyError]) -> list[type[MasterKeyError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _subclasses(child))]


BY_NAME: dict[str, type[MasterKeyError]] = {cls.__name__: cls for cls in _subclasses(MasterKeyError)}
"""Every error by the name of its class."""


def narrowest(failure_type: str, narrow: str) -> type[MasterKeyError] | None:
    """The class of a failure.

    Args:
        failure_type: the name under which it travelled (`failure_type`).
        narrow: the name of its own class, if that is another one, as its sender says: unknown to older parties, and
            believed only if that class travels so.

    Returns:
        The class; none if this version knows no failure of this type.
    """
    found = BY_NAME.get(narrow)
    return found if found is not None and found.travels_as == failure_type else BY_NAME.get(failure_type)
