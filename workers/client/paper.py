"""A page of paper for an offline keystore: what it is, how to use it, and perhaps its secret age key.

Plain text of at most 72 columns, for printing and for typing in again. The key stands on four lines, `K1` to `K4`, in
groups of four; the last group of each is its check, 20 bits of SHA-256 of the line's number and characters, so that a
mistake is found and its line named. The characters are those of Bech32, which has no 1, B, I and O; what is typed in
their place is understood. The key's own checksum then covers the whole.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime

from activities.keystores.kinds.age_keys import SECRET_CHARACTERS, SECRET_PREFIX, AgeIdentity
from workflows.contracts.trust.canonical import digest
from workflows.contracts.trust.errors import MasterKeyError

COLUMNS = 72
"""Longest line of a page."""

_ALPHABET = "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"
_LOOKALIKES = str.maketrans("OI1B", "0LL8")
_GROUP, _LINE, _CHECK = 4, 16, 4
_LINES = -(-SECRET_CHARACTERS // _LINE)
_KEY_LINE = re.compile(r"^\W*K\s*([0-9]+)\b(.*)$")
_RECIPIENT = re.compile(r"\bAGE1[0-9A-Z]+")

_EXPLANATION = """\
WHAT THIS IS
One piece of a MasterKey, kept in the keystore named above, is
encrypted to an age key that only the custodian of this page has.
Nothing else opens that piece. It is used with the program
`masterkey` when the MasterKey must come back.

HOW IT IS USED
1. Somebody starts a ceremony and tells you its id.
2. Read what it will do, and sign it:    masterkey approve CEREMONY
3. Give your piece, at your own machine:
   masterkey contribute CEREMONY --keystore NAME
   Leave it running until it says that nothing more is asked of you.

IF YOUR MACHINE IS LOST
The age key comes back from a page that has it:
   masterkey offline read PAGE --out FILE
where PAGE is a file into which you have typed its lines.
The keystore's other key, with which your answers are signed, is not
on paper: make a new one and let the custodians change the roster.

IF THE AGE KEY IS LOST
This piece opens no more. Say so at once, so that the others move the
MasterKey away from it while enough of them are left."""

_KEY_EXPLANATION = """\
THE SECRET AGE KEY
Whoever reads this page can open the piece, without any passphrase:
keep it in a safe, and neither photograph nor copy it by machine.
The last group of each line is its check and not part of the key.
Without the program: the key is AGE-SECRET-KEY-1 followed by all other
groups, without spaces; `age -d -i FILE` decrypts with it."""


class PageInvalid(MasterKeyError):
    """A page that was typed in again is not right; the message names the lines."""

    default_next_step = "compare these lines with the paper, correct them and read it again"


@dataclass(frozen=True)
class Page:
    """What a page is made of.

    Attributes:
        keystore: its name.
        recipient: the age recipient, 62 characters.
        printed: when.
        identity: the secret key, if it shall stand on the page.
    """

    keystore: str
    recipient: str
    printed: datetime
    identity: AgeIdentity | None = None

    def render(self) -> str:
        """The page, with a newline at its end."""
        parts = [
            "OpenKCM MasterKey: offline keystore",
            "=" * COLUMNS,
            f"keystore   {self.keystore}",
            f"printed    {self.printed:%Y-%m-%d %H:%M} UTC",
            "",
            _EXPLANATION,
            "",
            "THE AGE RECIPIENT",
            "It stands in the roster as `offline`, and is no secret.",
            self.recipient,
            "SHA-256 fingerprint of it:",
            digest(self.recipient.encode()),
        ]
        if self.identity is not None:
            parts += ["", _KEY_EXPLANATION, "", *_key_lines(self.identity.secret)]
        return "\n".join([*parts, "=" * COLUMNS, ""])


def read_page(text: str) -> AgeIdentity:
    """The secret key of a page that was typed in again: all of it, or only its lines K1 to K4.

    Raises:
        PageInvalid: which lines are missing or wrong; or the key is not that of the recipient on the page.
    """
    typed, wrong = {}, []
    for line in text.upper().splitlines():
        if found := _KEY_LINE.match(line):
            number, characters = int(found[1]), re.sub(r"[^0-9A-Z]", "", found[2]).translate(_LOOKALIKES)
            if number in typed:
                wrong.append(f"line K{number} stands twice")
            typed[number] = characters
    wrong += [f"there is no line K{number}" for number in typed if not 1 <= number <= _LINES]
    parts = []
    for number in range(1, _LINES + 1):
        length = min(_LINE, SECRET_CHARACTERS - _LINE * (number - 1))
        whole = typed.get(number)
        if whole is None:
            wrong.append(f"line K{number} is missing")
        elif len(whole) != length + _CHECK:
            wrong.append(f"line K{number} has {len(whole)} characters instead of {length + _CHECK}")
        elif _check(number, whole[:length]) != whole[length:]:
            wrong.append(f"line K{number} has a mistake")
        else:
            parts.append(whole[:length])
    if wrong:
        raise PageInvalid("; ".join(wrong))
    try:
        identity = AgeIdentity.parse(SECRET_PREFIX + "".join(parts))
    except ValueError:
        raise PageInvalid(
            "each line is right by itself, but together they are no key",
            next_step="take all four lines from the same page",
        ) from None
    for named in _RECIPIENT.findall(text.upper()):
        if named.lower() != identity.recipient:
            raise PageInvalid(
                f"the key is that of {identity.recipient}, and the page names another recipient",
                next_step="correct the recipient's line, or take all lines from the same page",
            )
    return identity


def _key_lines(secret: str) -> list[str]:
    characters, lines = secret.removeprefix(SECRET_PREFIX), []
    for number in range(1, _LINES + 1):
        part = characters[_LINE * (number - 1) : _LINE * number]
        groups = " ".join(part[start : start + _GROUP] for start in range(0, len(part), _GROUP))
        lines.append(f"   K{number}   {groups:<19}   {_check(number, part)}")
    return lines


def _check(number: int, characters: str) -> str:
    bits = int.from_bytes(hashlib.sha256(f"masterkey-page K{number} {characters}".encode()).digest()[:3], "big") >> 4
    return "".join(_ALPHABET[bits >> shift & 31] for shift in (15, 10, 5, 0))
