"""The honest people of an installation: custodians and recipient, with their real keys, signing by themselves."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from activities.identity import Identity
from activities.roster import RosterSource
from tests.world import World
from workers.client.ssh import public_key_of, sign_with_key
from workers.local.stack import CUSTODIANS, Stack
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.canonical import Document, Signed
from workflows.contracts.trust.plan import Plan, RecipientRequest
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.signatures import fingerprint


def manifest_of(stored: StoredProtection) -> Manifest:
    """The manifest of a protection."""
    return Manifest.parse(stored.manifest.document.encode())


class SshCustodian(Identity):
    """A custodian who signs with ssh-keygen: one of them has an RSA key."""

    def __init__(self, key: Path) -> None:
        self._file = key
        self.public_key = public_key_of(key)
        self.fingerprint = fingerprint(self.public_key)

    def sign(self, document: Document) -> Signed:
        """Sign the canonical bytes of a document."""
        data = document.canonical()
        return Signed(document=data.decode(), signature=self.sign_bytes(data, document.TYPE))

    def sign_bytes(self, data: bytes, namespace: str) -> str:
        """An armoured signature made by ssh-keygen."""
        return sign_with_key(data, self._file, namespace)


@dataclass
class People(World):
    """Whoever signs in a running installation. The attacker has only what they send."""

    genesis: str = ""

    @classmethod
    def of(cls, stack: Stack) -> People:
        """The people of a running stack."""
        keys = stack.folder / "keys"
        people = cls(stack.folder, genesis=stack.genesis)
        for name in CUSTODIANS:
            people.custodians[name] = SshCustodian(keys / name) if name == "bob" else Identity.load(keys / name)
        people.recipient = Identity.load(keys / "recipient")
        # Not the private key: nothing in these tests may sign for the strongroom.
        people.strongroom = SshCustodian(keys / "strongroom.pub")
        people.reread()
        return people

    def reread(self) -> None:
        """Look at the roster file again."""
        self.roster = self.chain.current

    @property
    def source(self) -> RosterSource:
        """The roster as everybody has it pinned."""
        return RosterSource(self.roster_file, self.genesis)

    def wish(self, stored: StoredProtection, hpke_public_key: str, **changes: Any) -> RecipientRequest:
        """The recipient's request, for a ceremony of its own."""
        master_key = changes.pop("master_key", manifest_of(stored).master_key)
        fields = {"master_key": master_key, "ceremony": new_ceremony_id(master_key, "unseal")}
        return self.request(stored, hpke_public_key, **{**fields, "nonce": secrets.token_hex(16), **changes})

    def release_plan(self, stored: StoredProtection, request: RecipientRequest, **changes: Any) -> Plan:
        """The plan that an honest orchestrator makes from a request."""
        return self.unseal_plan(stored, request, **{"ceremony": request.ceremony, **changes})
