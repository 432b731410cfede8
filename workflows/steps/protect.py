"""Making a protection: which keys its keystores use, fresh data keys, staging, proof, commit, and telling of it.

What an init, a reshard and a recovery share. Before the commit nothing but a record is left behind; after it the
MasterKey is recoverable, because every keystore has proven that it can give back its data key. Only then, and only
with those proofs in hand, are keystore workers told to refuse what was in force before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta

from temporalio import workflow

from workflows.calls.concurrency import gather
from workflows.calls.keystores import call_keystore
from workflows.contracts import names
from workflows.contracts.messages.keystore import CheckDataKey, DescribeKey, GenerateDataKey, NoteCommit
from workflows.contracts.messages.ledger import BundleExported, Commit, ExportBundle, Stage
from workflows.contracts.messages.protection import DekAnswer, StoredProtection
from workflows.contracts.messages.requests import ShardRequest
from workflows.contracts.messages.strongroom import SessionOpened
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import ApprovalInvalid, KeystoreError, MasterKeyError, PlanInvalid
from workflows.contracts.trust.fields import Mode, Purpose
from workflows.contracts.trust.keystore import KeyDescription, StateStatement
from workflows.contracts.trust.plan import Plan, Target, TargetShard
from workflows.contracts.trust.quorum import Authority
from workflows.contracts.trust.roster import Roster, Strongroom
from workflows.contracts.trust.signatures import open_signed
from workflows.contracts.trust.topology import check_target
from workflows.steps.contribute import Contributing
from workflows.steps.prove import prove_data_key

DESCRIBE_PATIENCE = timedelta(seconds=30)
_PROTECT_PATIENCE = timedelta(seconds=90)
_NOTE_PATIENCE = timedelta(seconds=30)
_NOTE_PATIENCE_IF_AWAY = timedelta(seconds=5)
_EXPORT_PATIENCE = timedelta(minutes=2)


class Topology:
    """What a new protection shall look like, before it is known which keys its keystores use.

    Attributes:
        predecessor: digest of the manifest that it replaces.
    """

    def __init__(
        self,
        *,
        mode: Mode,
        threshold: int,
        shards: Sequence[ShardRequest],
        purpose: Purpose,
        epoch: int,
        predecessor: str | None = None,
        retention_hours: int | None = None,
    ) -> None:
        self.mode = mode
        self.threshold = threshold
        self.shards = tuple(shards)
        self._purpose = purpose
        self._epoch = epoch
        self._predecessor = predecessor
        self._retention_hours = retention_hours

    def target(self, roster: Roster, key_ids: Sequence[str]) -> Target:
        """The target with these key ids; custodians are the roster's unless others were named.

        Raises:
            PlanInvalid: a number is out of range.
        """
        shards = []
        if not 1 <= len(self.shards) <= 255 or not 1 <= self.threshold <= 255:
            raise PlanInvalid(f"{self.threshold} of {len(self.shards)} shards: both must be 1 to 255")
        for index, (wanted, key_id) in enumerate(zip(self.shards, key_ids, strict=True), start=1):
            usual = roster.keystore(wanted.keystore)
            custodians = wanted.custodians or (usual.custodians if usual else ())
            shards.append(
                TargetShard(
                    index=index,
                    keystore=wanted.keystore,
                    key_id=key_id,
                    custodians=custodians if self.mode == "sss" else (),
                )
            )
        return Target(
            purpose=self._purpose,
            mode=self.mode,
            epoch=self._epoch,
            threshold=self.threshold,
            count=len(shards),
            shards=tuple(shards),
            predecessor=self._predecessor,
            retention_hours=self._retention_hours,
        )


def choose_strongroom(roster: Roster, wanted: str) -> Strongroom:
    """The strongroom of this name, or the roster's first.

    Raises:
        PlanInvalid: there is none.
    """
    name = wanted or (roster.strongrooms[0].name if roster.strongrooms else "")
    strongroom = roster.strongroom(name)
    if strongroom is None:
        raise PlanInvalid(f"the roster has no strongroom {name!r}", next_step="see `masterkey roster show`")
    return strongroom


class Protecting(Contributing):
    """A ceremony that makes a protection."""

    async def plan_target(self, topology: Topology, roster: Roster, known: Mapping[str, str] | None = None) -> Target:
        """The target of a topology: every keystore says which key it uses.

        Args:
            topology: what is wanted.
            roster: who there is.
            known: ids of keys by keystore, for those that do not answer at this moment.

        Raises:
            PlanInvalid: it can never be.
            KeystoreError: a keystore cannot be used now.
        """
        keystores = [shard.keystore for shard in topology.shards]
        for name in keystores:
            if roster.keystore(name) is None:
                raise PlanInvalid(f"keystore {name} is not in the roster", subject=name)
        # The numbers are checked before anybody is asked, with stand-ins for the key ids to come.
        check_target(topology.target(roster, keystores), self.master_key, roster)
        self.know_offline(roster, keystores)
        last = known or {}
        key_ids = await gather([self._key_id(name, topology.mode, roster, last.get(name)) for name in keystores])
        target = topology.target(roster, key_ids)
        check_target(target, self.master_key, roster)
        return target

    async def _key_id(self, name: str, mode: Mode, roster: Roster, known: str | None) -> str:
        offline = self._offline.get(name)
        if offline is not None:
            return offline.offline_key_id
        self.progress(name, "asked")
        try:
            key = await describe_key(name, roster, patience=DESCRIBE_PATIENCE, attempts=3)
            if mode not in key.modes:
                raise PlanInvalid(f"{name} does not serve {mode} protections", subject=name)
        except MasterKeyError as error:
            self.progress(name, "failed", error)
            if known is None or not passes(error):
                raise
            return known
        self.progress(name, "waiting")
        return key.key_id

    async def generate_data_keys(
        self, opened: SessionOpened, target: Target, authority: Authority
    ) -> tuple[DekAnswer, ...]:
        """A fresh data key of every keystore that has a worker; the session draws those of offline ones.

        Raises:
            KeystoreError: one could not.
        """

        async def generate(place: TargetShard) -> DekAnswer:
            self.progress(place.keystore, "asked")
            request = GenerateDataKey(
                keystore=place.keystore, index=place.index, authority=authority, session=opened.announcement
            )
            try:
                answer = await call_keystore(
                    names.GENERATE_DATA_KEY,
                    place.keystore,
                    request,
                    DekAnswer,
                    patience=_PROTECT_PATIENCE,
                    attempts=4,
                )
            except MasterKeyError as error:
                self.progress(place.keystore, "failed", error)
                raise
            self.progress(place.keystore, "answered")
            return answer

        online = [place for place in target.shards if not self.is_offline(place.keystore)]
        return tuple(await gather([generate(place) for place in online]))

    async def stage(self, stored: StoredProtection) -> StoredProtection:
        """Store a protection that does not serve yet."""
        await self.ledger(
            names.STAGE_PROTECTION, Stage(ceremony=self.ceremony, attempt=self.attempt, protection=stored)
        )
        return stored

    async def prove(self, stored: StoredProtection, roster: Roster, plan: Plan) -> tuple[Signed, ...]:
        """Let every keystore prove that it can give back its data key; offline ones are waited for as for an approval.

        Raises:
            KeystoreError, ApprovalInvalid: one cannot.
        """

        async def prove(index: int) -> Signed:
            keystore = stored.shards[index - 1].keystore

            async def custodian(request: CheckDataKey) -> Signed:
                return await self.ask_for_proof(request, plan.expires)

            signed = await prove_data_key(
                stored,
                index,
                roster,
                patience=_PROTECT_PATIENCE,
                attempts=6,
                ask=custodian if self.is_offline(keystore) else None,
            )
            self.event(
                f"proven.{self.attempt}.{index}",
                "data-key-proven",
                keystore=keystore,
                document=signed.document,
                signature=signed.signature,
            )
            return signed

        return tuple(await gather([prove(row.index) for row in stored.shards]))

    async def commit(self, retention_hours: int | None = None) -> None:
        """Make what was staged and proven the protection in force; what it replaces is retired, at once."""
        await self.ledger(
            names.COMMIT_PROTECTION,
            Commit(ceremony=self.ceremony, attempt=self.attempt, retention_hours=retention_hours),
        )

    async def tell_of_commit(
        self,
        stored: StoredProtection,
        proofs: tuple[Signed, ...],
        keystores: Sequence[str],
        roster: Roster,
        away: Collection[str] = (),
    ) -> tuple[str, ...]:
        """Tell keystore workers what is in force now, so that they refuse what is older.

        Args:
            stored: what is in force now.
            proofs: of all its keystores.
            keystores: who is told.
            roster: who they are.
            away: those that did not answer a moment ago: they are not waited for as long.

        Returns:
            Names of those that could not be told; the next drill tells them.
        """

        async def tell(keystore: str) -> str | None:
            request = NoteCommit(keystore=keystore, manifest=stored.manifest, proofs=proofs)
            patience = _NOTE_PATIENCE_IF_AWAY if keystore in away else _NOTE_PATIENCE
            try:
                signed = await call_keystore(
                    names.NOTE_COMMIT, keystore, request, Signed, patience=patience, attempts=10
                )
                read_statement(signed, keystore, roster, stored.manifest.digest)
            except MasterKeyError as error:
                self.event(
                    f"not-noted.{stored.manifest.digest[7:19]}.{keystore}",
                    "commit-not-noted",
                    keystore=keystore,
                    error=type(error).__name__,
                    reason=error.message,
                )
                return keystore
            return None

        told = await gather([tell(name) for name in dict.fromkeys(keystores) if not self.is_offline(name)])
        return tuple(name for name in told if name is not None)

    async def export_bundle(self, *, final: bool = False) -> tuple[str, ...]:
        """Write the bundle to its configured places; one that cannot be written is an event, and no reason to fail.

        Args:
            final: the ceremony is closed already, and nothing is recorded of it any more.
        """
        try:
            exported = await self.ledger(
                names.EXPORT_BUNDLE,
                ExportBundle(ceremony=self.ceremony, master_key=self.master_key),
                BundleExported,
                patience=_EXPORT_PATIENCE,
            )
        except MasterKeyError as error:
            if final:
                workflow.logger.warning("the bundle was not exported: %s", error.diagnostics)
                return ()
            self.event("bundle", "bundle-not-exported", error=type(error).__name__, reason=error.diagnostics)
            return ()
        if exported.places and not final:
            self.event("bundle", "bundle-exported", places=list(exported.places), head=exported.digest)
        return exported.places


async def describe_key(name: str, roster: Roster, *, patience: timedelta, attempts: int) -> KeyDescription:
    """Which key a keystore uses, in its worker's own signed words.

    Raises:
        KeystoreError: it cannot be used now.
        ApprovalInvalid: the answer is not signed by that keystore's worker.
    """
    signed = await call_keystore(
        names.DESCRIBE_KEY, name, DescribeKey(keystore=name), Signed, patience=patience, attempts=attempts
    )
    key, signer = open_signed(KeyDescription, signed)
    worker = roster.keystore(name)
    if worker is None or signer != worker.fingerprint or key.keystore != name:
        raise ApprovalInvalid(f"the key of {name} is not described by its worker", subject=name)
    return key


def read_statement(signed: Signed, keystore: str, roster: Roster, about: str) -> StateStatement:
    """What a keystore worker says that it remembers, after it was told something.

    Raises:
        ApprovalInvalid: that keystore's worker did not sign it, or it is about something else.
    """
    statement, signer = open_signed(StateStatement, signed)
    worker = roster.keystore(keystore)
    if worker is None or (signer, statement.keystore, statement.about) != (worker.fingerprint, keystore, about):
        raise ApprovalInvalid(f"{keystore} did not acknowledge what it was told", subject=keystore)
    return statement


def passes(error: MasterKeyError) -> bool:
    """Whether a keystore's failure may pass by itself."""
    return isinstance(error, KeystoreError) and error.retryable
