"""The one hierarchy of errors: what went wrong, and what the operator can do next.

Workflows decide by type, never by text. No message carries key material or a keystore's response body.
The name of the class is the `type` of the Temporal failure that it becomes.
"""

from __future__ import annotations

from typing import ClassVar

_LONGEST = 2000


def _one_line(text: str) -> str:
    # Part of a message may come from whoever sent something wrong: it goes into the ledger and to terminals.
    return "".join(c if c.isprintable() else " " for c in text[:_LONGEST])


class MasterKeyError(Exception):
    """Base of all errors of this product.

    Args:
        message: one line: what happened, to what, without secrets.
        next_step: one line: what the operator can do next; shown after the message.
        subject: the keystore, custodian, shard or file that it is about, if one.
    """

    retryable: ClassVar[bool] = False
    travels_as: ClassVar[str] = ""
    """Name of an older, wider class under which it travels and is recorded: whoever knows only that one still decides
    rightly. What is known newer understands goes along as a detail of the failure."""
    default_next_step: ClassVar[str] = "read the message, correct it and try again"

    def __init__(self, message: str, *, next_step: str = "", subject: str = "") -> None:
        self.message = _one_line(message)
        self.next_step = _one_line(next_step) or self.default_next_step
        self.subject = _one_line(subject)
        super().__init__(self.message)

    @property
    def failure_type(self) -> str:
        """The name under which it travels as a Temporal failure, and is recorded in events."""
        return self.travels_as or type(self).__name__

    @property
    def diagnostics(self) -> str:
        """The message and the next step in one line."""
        return f"{self.message}; {self.next_step}"


class KeystoreError(MasterKeyError):
    """A keystore could not do what was asked; `subject` is the keystore's configured name."""


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


class CiphertextInvalid(KeystoreError):
    """Wrong key, altered ciphertext or another context: this shard does not open."""

    default_next_step = "quarantine the shard, compare the ledger with a bundle, and reshard"


class ApprovalInvalid(MasterKeyError):
    """What people signed does not authorise it: another plan, an expiry, a signer who may not, too few of them."""

    default_next_step = "look at what was signed with `masterkey ceremony statement` and sign again"


class ManifestInvalid(ApprovalInvalid):
    """A manifest that no strongroom of the roster signed, or that is older than what is served."""

    default_next_step = "compare the ledger with a bundle; do not use this manifest"


class DocumentInvalid(ApprovalInvalid):
    """What was given does not parse or verify as the document that it claims to be, whoever is said to have signed it.

    It travels as `ApprovalInvalid`, which it was before it had a name: decisions and recorded histories know that one.
    """

    travels_as = "ApprovalInvalid"
    default_next_step = "it was altered on its way, or made by another version: get it again from whoever made it"


class AnswerInvalid(ApprovalInvalid):
    """A worker's answer that its identity key did not sign, or that answers something else; `subject` is the keystore.

    It travels as `ApprovalInvalid`, as before it had a name.
    """

    travels_as = "ApprovalInvalid"
    default_next_step = (
        "nobody need sign again: compare the identity key of that worker with `masterkey roster show`; "
        "if it is the right one, do not trust its host until you know why"
    )


class AuthorityInvalid(ApprovalInvalid):
    """What is asked for is not what the plan presented with it authorises, whatever was signed.

    It travels as `ApprovalInvalid`, as before it had a name.
    """

    travels_as = "ApprovalInvalid"
    default_next_step = "start the ceremony anew; if it is refused again, run `masterkey audit verify` on the ledger"


class Stopped(MasterKeyError):
    """Somebody has ordered that this MasterKey is served to nobody; only the governance quorum can lift that."""

    default_next_step = "find out who ordered it and why; the quorum lifts it with `masterkey seal NAME --lift`"


class QuorumUnreachable(MasterKeyError):
    """Fewer shards or custodians than needed can ever answer."""

    default_next_step = "start disaster recovery, or restore a keystore"


class PlanInvalid(MasterKeyError):
    """What was asked for can never be done: numbers, names or custody are wrong."""


class NameTaken(PlanInvalid):
    """A MasterKey of this name exists already; a MasterKey is never overwritten."""

    default_next_step = "choose another name, or reshard the one that exists"


class NotKnown(MasterKeyError):
    """No MasterKey, ceremony or protection of this name exists."""

    default_next_step = "list them with `masterkey status` or `masterkey ceremony list`"


class RosterInvalid(MasterKeyError):
    """The roster's chain does not verify from the pinned digest, or was rolled back."""

    default_next_step = "get the current roster file and compare `masterkey roster show` with your colleagues"


class ConfigurationInvalid(MasterKeyError):
    """A configuration file or value is missing or wrong."""


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


class SessionLost(MasterKeyError):
    """The one-shot process died or its time ran out before it answered."""

    retryable = True
    default_next_step = "nothing: a new session is opened"


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
