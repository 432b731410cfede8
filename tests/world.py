"""A small world for tests: people, workers, a roster, and what they sign."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from activities.crypto.context import Context, context_bytes
from activities.identity import Identity, generate_identity
from activities.keystores.context import CallContext, KeystoreTerms
from activities.keystores.kinds.age_keys import AgeIdentity, write_identity
from activities.keystores.kinds.base import KeyRef, Keystore, WrappedKey
from activities.keystores.kinds.offline import Offline, OfflineSettings
from activities.keystores.state import StateDirectory
from activities.roster import RosterSource
from workers.client.ssh import sign_with_key
from workflows.contracts.messages.protection import StoredProtection
from workflows.contracts.trust.canonical import Signed, seconds
from workflows.contracts.trust.chain import RosterChain, RosterFile, RosterVersion, verify_chain
from workflows.contracts.trust.errors import CiphertextInvalid
from workflows.contracts.trust.fields import SUITE, Action
from workflows.contracts.trust.plan import Approval, Plan, PlanRecipient, RecipientRequest, Source, Target, TargetShard
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.roster import (
    ChangeQuorum,
    Custodian,
    Governance,
    KeystoreWorker,
    Recipient,
    Roster,
    Strongroom,
)
from workflows.contracts.trust.stop import Stop

NAMES = ("alice", "bob", "carol", "dave", "erin")
KEYSTORES = ("ks-1", "ks-2", "ks-3", "ks-4", "ks-5")
CEREMONY = "eu10.init.0123456789ab"
UNSEAL = "eu10.unseal.0123456789ab"
RESHARD = "eu10.reshard.0123456789ab"
CUSTODIAN_OF = dict(zip(KEYSTORES, NAMES, strict=True))
"""Who releases the shard in a keystore, unless a test says otherwise."""


def now() -> datetime:
    """The time, whole seconds, UTC."""
    return seconds(datetime.now(UTC))


def acting(plan: Plan, action: Action, **changes: Any) -> Plan:
    """A plan with another action, and a ceremony id that fits it."""
    ceremony = f"{changes.get('master_key', plan.master_key)}.{action}.{plan.ceremony.rpartition('.')[2]}"
    return plan.model_copy(update={"action": action, "ceremony": ceremony, **changes})


class MemoryKeystore:
    """A keystore in memory, with a real AES-GCM key: for tests of what stands around keystores."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = AESGCM.generate_key(256)
        self.ref = KeyRef(f"memory:{name}", "1")

    def describe(self) -> KeyRef:
        """Its key."""
        return self.ref

    def wrap(self, dek: bytes, context: Context) -> WrappedKey:
        """Wrap a DEK, bound to its context."""
        return WrappedKey(b"\0" * 12 + AESGCM(self.key).encrypt(b"\0" * 12, dek, context_bytes(context)), self.ref)

    def unwrap(self, wrapped: bytes, context: Context, key: KeyRef) -> bytes:
        """Give back a DEK."""
        try:
            return AESGCM(self.key).decrypt(wrapped[:12], wrapped[12:], context_bytes(context))
        except InvalidTag:
            raise CiphertextInvalid("wrong key, context or ciphertext", subject=self.name) from None


@dataclass
class World:
    """Everybody's keys, and the roster that names them."""

    folder: Path
    custodians: dict[str, Identity] = field(default_factory=dict)
    keystores: dict[str, Identity] = field(default_factory=dict)
    memory: dict[str, MemoryKeystore] = field(default_factory=dict)
    roster: Roster = None  # type: ignore[assignment]
    strongroom: Identity = None  # type: ignore[assignment]
    recipient: Identity = None  # type: ignore[assignment]
    stranger: Identity = None  # type: ignore[assignment]

    @classmethod
    def make(cls, folder: Path, *, quorum: int = 3, minimum_threshold: int = 2, offline: Sequence[str] = ()) -> World:
        """Make everybody's keys, age keys for the keystores that are offline, and a roster of one version."""
        world, recipients = cls(folder), {}
        for name in offline:
            age = AgeIdentity.generate()
            write_identity(folder / "age" / name, age, None)
            recipients[name] = age.recipient
        for name in NAMES:
            world.custodians[name] = generate_identity(folder / "custodians" / name)
        for name in KEYSTORES:
            world.keystores[name] = generate_identity(folder / "keystores" / name)
            world.memory[name] = MemoryKeystore(name)
        world.strongroom = generate_identity(folder / "strongroom")
        world.recipient = generate_identity(folder / "recipient")
        world.stranger = generate_identity(folder / "stranger")
        world.roster = Roster(
            number=1,
            previous=None,
            issued=now(),
            custodians=tuple(Custodian(name=n, public_key=i.public_key) for n, i in world.custodians.items()),
            recipients=(Recipient(name="crypto", public_key=world.recipient.public_key, master_keys=("eu10",)),),
            keystores=tuple(
                KeystoreWorker(
                    name=name,
                    public_key=identity.public_key,
                    custodians=(custodian,),
                    offline=recipients.get(name),
                )
                for (name, identity), custodian in zip(world.keystores.items(), NAMES, strict=True)
            ),
            strongrooms=(Strongroom(name="vault", public_key=world.strongroom.public_key),),
            governance=(
                Governance(master_key="*", custodians=NAMES, quorum=quorum, minimum_threshold=minimum_threshold),
            ),
            change=ChangeQuorum(custodians=NAMES, quorum=3),
        )
        world.write_roster()
        return world

    @property
    def roster_file(self) -> Path:
        """Where the roster file is."""
        return self.folder / "roster.json"

    @property
    def source(self) -> RosterSource:
        """The roster as a host has it configured."""
        return RosterSource(self.roster_file, self.roster.digest)

    @property
    def chain(self) -> RosterChain:
        """The verified chain."""
        return self.source.load()

    def write_roster(self, *versions: RosterVersion) -> None:
        """Write the roster file: the first version and those given."""
        first = RosterVersion(document=self.roster.canonical().decode())
        self.roster_file.write_text(RosterFile(versions=(first, *versions)).model_dump_json(), encoding="utf-8")

    def next_version(self, signers: Sequence[str], **changes: Any) -> RosterVersion:
        """A second roster version with changes, signed by custodians."""
        roster = self.roster.model_copy(
            update={"number": 2, "previous": self.roster.digest, "issued": now(), **changes}
        )
        roster = Roster.model_validate(roster.model_dump())
        document = roster.canonical()
        return RosterVersion(
            document=document.decode(),
            signatures=tuple(self.custodians[name].sign_bytes(document, Roster.TYPE) for name in signers),
        )

    # --- what people sign ------------------------------------------------------------------------------

    def target(self, mode: str = "sss", threshold: int = 3, count: int = 5, **changes: Any) -> Target:
        """A topology over the first keystores."""
        shards = tuple(
            TargetShard(
                index=index,
                keystore=KEYSTORES[index - 1],
                key_id=self.memory[KEYSTORES[index - 1]].ref.key_id,
                custodians=(NAMES[index - 1],) if mode == "sss" else (),
            )
            for index in range(1, count + 1)
        )
        fields: dict[str, Any] = {
            "purpose": "primary",
            "mode": mode,
            "epoch": 1,
            "threshold": threshold if mode == "sss" else 1,
            "count": count,
            "shards": shards,
        }
        return Target(**{**fields, **changes})

    def target_over(
        self, keystores: Sequence[str], mode: str = "sss", threshold: int = 2, epoch: int = 2, **changes: Any
    ) -> Target:
        """A topology over these keystores, for a protection that follows the first one."""
        shards = tuple(
            TargetShard(
                index=index,
                keystore=name,
                key_id=self.key_id(name),
                custodians=(CUSTODIAN_OF[name],) if mode == "sss" else (),
            )
            for index, name in enumerate(keystores, start=1)
        )
        return self.target(mode, threshold, len(shards), **{"shards": shards, "epoch": epoch, **changes})

    def key_id(self, keystore: str) -> str:
        """The id of a keystore's key."""
        worker = self.roster.keystore(keystore)
        return worker.offline_key_id if worker and worker.offline else self.memory[keystore].ref.key_id

    def is_offline(self, keystore: str) -> bool:
        """Whether a keystore has a custodian with an age key, and no worker."""
        worker = self.roster.keystore(keystore)
        return worker is not None and worker.offline is not None

    def init_plan(self, target: Target | None, **changes: Any) -> Plan:
        """A plan to create `eu10`."""
        fields: dict[str, Any] = {
            "action": "init",
            "master_key": "eu10",
            "ceremony": CEREMONY,
            "governance_quorum": self.roster.governance[0].quorum,
            "source": None,
            "target": target,
            "recipient": None,
            "strongroom": self.strongroom.fingerprint,
            "roster": self.roster.digest,
            "created": now(),
            "expires": now() + timedelta(hours=72),
        }
        return Plan(**{**fields, **changes})

    def unseal_plan(self, stored: StoredProtection, request: RecipientRequest, **changes: Any) -> Plan:
        """A plan to release a protection to whoever requested it."""
        recipient = PlanRecipient(name="crypto", fingerprint=request.recipient, hpke_key=request.hpke_key)
        fields = {"ceremony": UNSEAL, "recipient": recipient, "expires": now() + timedelta(minutes=4)}
        return self._plan_about(stored, **{"action": "unseal", **fields, **changes})

    def reshard_plan(self, stored: StoredProtection, target: Target, **changes: Any) -> Plan:
        """A plan to open a protection and to make another; of the same purpose, it replaces the one that is opened."""
        purpose = Manifest.parse(stored.manifest.document.encode()).purpose
        if target.purpose == purpose and target.predecessor is None:
            target = target.model_copy(update={"predecessor": stored.manifest.digest})
        return self._plan_about(stored, **{"action": "reshard", "ceremony": RESHARD, "target": target, **changes})

    def order_plan(self, action: Action, about: StoredProtection | Sequence[str], **changes: Any) -> Plan:
        """A plan to retire or destroy a protection, or to lift stops, given by their digests."""
        fields = {"ceremony": f"{changes.get('master_key', 'eu10')}.{action}.0123456789ab", **changes}
        if isinstance(about, StoredProtection):
            return self._plan_about(about, **{"action": action, **fields})
        return self.init_plan(None, **{"action": action, "stops": tuple(about), **fields})

    def _plan_about(self, stored: StoredProtection, **changes: Any) -> Plan:
        manifest = Manifest.parse(stored.manifest.document.encode())
        source = Source(
            manifest=stored.manifest.digest,
            epoch=manifest.epoch,
            mode=manifest.mode,
            threshold=manifest.threshold,
            count=manifest.count,
        )
        fields: dict[str, Any] = {
            "master_key": manifest.master_key,
            "governance_quorum": self.roster.governance[0].quorum,
            "source": source,
            "target": None,
            "recipient": None,
            "strongroom": self.strongroom.fingerprint,
            "roster": self.roster.digest,
            "created": now(),
            "expires": now() + timedelta(hours=72),
        }
        return Plan(**{**fields, **changes})

    def stop(self, name: str, **changes: Any) -> Signed:
        """A custodian's signed order to stop `eu10`."""
        identity = self.custodians[name]
        fields: dict[str, Any] = {
            "master_key": "eu10",
            "ceremony": f"eu10.seal.{secrets.token_hex(6)}",
            "reason": "a laptop was stolen",
            "custodian": identity.fingerprint,
            "issued": now(),
        }
        return identity.sign(Stop(**{**fields, **changes}))

    def request(self, stored: StoredProtection, hpke_public_key: str, **changes: Any) -> RecipientRequest:
        """A recipient's request for a protection."""
        manifest = Manifest.parse(stored.manifest.document.encode())
        fields: dict[str, Any] = {
            "master_key": manifest.master_key,
            "ceremony": UNSEAL,
            "manifest": stored.manifest.digest,
            "epoch": manifest.epoch,
            "recipient": self.recipient.fingerprint,
            "suite": SUITE,
            "hpke_public_key": hpke_public_key,
            "strongroom": self.strongroom.fingerprint,
            "nonce": "00" * 16,
            "issued": now(),
            "expires": now() + timedelta(minutes=4),
        }
        return RecipientRequest(**{**fields, **changes})

    def approval(self, name: str, plan: Plan, **changes: Any) -> Signed:
        """A custodian's signed decision."""
        identity = self.custodians[name]
        fields: dict[str, Any] = {
            "decision": "approve",
            "plan": plan,
            "plan_digest": plan.digest,
            "custodian": identity.fingerprint,
            "issued": now(),
            "expires": plan.expires,
        }
        return identity.sign(Approval(**{**fields, **changes}))

    def authority(self, plan: Plan, approvers: Sequence[str], request: Signed | None = None) -> Authority:
        """A plan with the approvals of these custodians."""
        return Authority(
            plan=plan.canonical().decode(),
            approvals=tuple(self.approval(name, plan) for name in approvers),
            request=request,
        )

    # --- keystore workers --------------------------------------------------------------------------------

    def desk(
        self, name: str, *, keystore: Keystore | None = None, modes: Sequence[str] = ("sss", "seal")
    ) -> CallContext:
        """What a one-shot process of this keystore's worker works with."""
        terms = KeystoreTerms(
            name=name,
            settings={"type": "memory"},
            identity=str(self.folder / "keystores" / name),
            state=str(self.folder / "state" / name),
            roster_file=str(self.roster_file),
            roster_genesis=self.roster.digest,
            roster_minimum=1,
            modes=tuple(modes),
        )
        state = StateDirectory(Path(terms.state))
        return CallContext(terms, keystore or self._keystore(name), self.keystores[name], state, self.chain)

    def _keystore(self, name: str) -> Keystore:
        worker = self.roster.keystore(name)
        if worker is None or worker.offline is None:
            return self.memory[name]
        return Offline(name, OfflineSettings(recipient=worker.offline, identity_file=self.folder / "age" / name))


def rsa_custodian(folder: Path, name: str, bits: int = 2048) -> Path:
    """An RSA key made by ssh-keygen."""
    path = folder / name
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "rsa", "-b", str(bits), "-N", "", "-C", name, "-f", str(path)], check=True
    )
    return path


def sign_file(key: Path, data: bytes, namespace: str) -> str:
    """A signature by ssh-keygen itself."""
    return sign_with_key(data, key, namespace)


__all__ = ["CEREMONY", "KEYSTORES", "NAMES", "UNSEAL", "MemoryKeystore", "World", "now", "verify_chain"]
