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


class PlanInvalid(MasterKeyError):
    """What was asked for can never be done: numbers, names or custody are wrong."""


class RosterInvalid(MasterKeyError):
    """The roster's chain does not verify from the pinned digest, or was rolled back."""

    default_next_step = "get the current roster file and compare `masterkey roster show` with your colleagues"


class ConfigurationInvalid(MasterKeyError):
    """A configuration file or value is missing or wrong."""


class SessionLost(MasterKeyError):
    """The one-shot process died or its time ran out before it answered."""

    retryable = True
    default_next_step = "nothing: a new session is opened"
