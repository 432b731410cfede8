"""What the custodians of offline keystores contribute: presence, proofs, and data keys for an open session.

An offline keystore has no worker that waits. Its custodian runs `masterkey contribute` at their own machine, which
asks here what is wanted, does it there, and sends the signed answer. A session lives for minutes, so it is opened
only once enough custodians have said that they are present.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError
from temporalio import workflow

from workflows.calls.failures import as_failure
from workflows.contracts.messages.keystore import CheckDataKey, UnwrapDataKey
from workflows.contracts.messages.protection import DekAnswer, StoredProtection
from workflows.contracts.messages.requests import Contribution, Wanted
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.errors import AnswerInvalid, AuthorityInvalid, DocumentInvalid, MasterKeyError
from workflows.contracts.trust.fields import Action
from workflows.contracts.trust.keystore import CheckResponse
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.service_errors import KeystoreUnavailable
from workflows.contracts.trust.session import DekResponse
from workflows.steps.ceremony import Ceremony
from workflows.steps.prove import Ask, prove_data_key

UNWRAP_TIMEOUT = timedelta(seconds=120)
"""How long an open session waits for the data key of an offline keystore, whose custodian is present."""


class Contributing(Ceremony):
    """A ceremony in which offline keystores may take part."""

    def __init__(self, ceremony: str, action: Action, master_key: str) -> None:
        super().__init__(ceremony, action, master_key)
        self._offline: dict[str, Roster] = {}
        """Offline keystores by name, and the roster that says who answers for them."""
        self._present: set[str] = set()
        self._checks: dict[str, CheckDataKey] = {}
        self._unwraps: dict[str, UnwrapDataKey] = {}
        self._proofs: dict[str, Signed] = {}
        self._deks: dict[str, DekAnswer] = {}

    # --- messages --------------------------------------------------------------------------------------------

    @workflow.update(name="contribute")
    def contribute(self, contribution: Any = None, *extra: Any) -> Wanted:
        """What a custodian of an offline keystore has done; the answer says what is wanted still."""
        given = _as_contribution(contribution, extra)
        # Custodians say again and again that they are there: that alone starts no other attempt.
        if given.present and given.keystore not in self._present:
            self._present.add(given.keystore)
            self.changed()
        if given.check is not None:
            self._proofs[CheckResponse.parse(given.check.document.encode()).nonce] = given.check
            self.changed()
        if given.dek is not None:
            response = DekResponse.parse(given.dek.response.document.encode())
            self._deks[_place(response.keystore, response.session)] = given.dek
            self.changed()
        return self.wanted()

    @contribute.validator
    def check_contribution(self, contribution: Any = None, *extra: Any) -> None:
        """Refuse what nobody asked for, or what the keystore's own identity did not sign."""
        try:
            self.check_open()
            given = _as_contribution(contribution, extra)
            roster = self._offline.get(given.keystore)
            if roster is None or given.keystore not in self.wanted_of():
                raise AuthorityInvalid(
                    f"this ceremony wants nothing of {given.keystore}",
                    next_step="look at `masterkey ceremony show`",
                    subject=given.keystore,
                )
            if given.check is not None:
                self._check_proof(given.check, given.keystore, roster)
            if given.dek is not None:
                self._check_dek(given.dek, given.keystore, roster)
        except MasterKeyError as error:
            raise as_failure(error) from None

    @workflow.query(name="wanted")
    def wanted(self) -> Wanted:
        """What is wanted of the custodians of offline keystores."""
        return Wanted(
            keystores=self.wanted_of(),
            checks=tuple(one for nonce, one in self._checks.items() if nonce not in self._proofs),
            unwraps=tuple(one for place, one in self._unwraps.items() if place not in self._deks),
        )

    def wanted_of(self) -> tuple[str, ...]:
        """Offline keystores whose custodians could contribute something: those asked for a proof, or for a shard."""
        checks = {one.keystore for nonce, one in self._checks.items() if nonce not in self._proofs}
        return tuple(sorted(checks | {one.keystore for place, one in self._unwraps.items() if place not in self._deks}))

    # --- asking ----------------------------------------------------------------------------------------------

    def know_offline(self, roster: Roster, keystores: Iterable[str]) -> None:
        """Remember which of these keystores are offline ones."""
        for name in keystores:
            keystore = roster.keystore(name)
            if keystore is not None and keystore.offline is not None:
                self._offline[name] = roster

    def is_offline(self, keystore: str) -> bool:
        """Whether a keystore has a custodian instead of a worker."""
        return keystore in self._offline

    def is_present(self, keystore: str) -> bool:
        """Whether the custodian of an offline keystore has said that they are there."""
        return keystore in self._present

    async def prove_shard(
        self,
        stored: StoredProtection,
        index: int,
        roster: Roster,
        key: str,
        worker: Ask,
        offline_until: datetime,
    ) -> Signed:
        """As `prove_data_key`, and an event of this key that holds the proof.

        The custodian of an offline keystore is asked instead of a worker, and waited for as for an approval.
        """

        async def custodian(request: CheckDataKey) -> Signed:
            return await self._ask_for_proof(request, offline_until)

        keystore = stored.shards[index - 1].keystore
        signed = await prove_data_key(stored, index, roster, custodian if self.is_offline(keystore) else worker)
        self.signed(f"proven.{key}.{index}", "data-key-proven", signed, keystore=keystore)
        return signed

    async def _ask_for_proof(self, request: CheckDataKey, until: datetime) -> Signed:
        nonce = request.nonce
        self._checks[nonce] = request
        self.changed()
        try:
            await self._wait(lambda: nonce in self._proofs, until - self.now())
            return self._proofs[nonce]
        except TimeoutError:
            raise _silent(request.keystore) from None
        finally:
            self._checks.pop(nonce, None)
            self._proofs.pop(nonce, None)

    async def ask_for_data_key(self, request: UnwrapDataKey) -> DekAnswer:
        """Ask a custodian who is present for a data key, while the session lives.

        Raises:
            KeystoreUnavailable: they did not answer; they are not counted as present any more.
        """
        place = _place(request.keystore, request.session.digest)
        self._unwraps[place] = request
        try:
            await self._wait(lambda: place in self._deks, UNWRAP_TIMEOUT)
            return self._deks[place]
        except TimeoutError:
            self._present.discard(request.keystore)
            raise _silent(request.keystore) from None
        finally:
            self._unwraps.pop(place, None)
            self._deks.pop(place, None)

    async def _wait(self, there: Callable[[], bool], within: timedelta) -> None:
        until = workflow.now() + within
        while not there():
            seen, left = self._changes, until - workflow.now()
            if left <= timedelta(0):
                raise TimeoutError
            await workflow.wait_condition(lambda seen=seen: there() or self._changes != seen, timeout=left)  # type: ignore[misc]
            self.check_course()

    def _check_proof(self, signed: Signed, keystore: str, roster: Roster) -> None:
        answer, _ = roster.open(CheckResponse, signed, of=keystore)
        wanted = self._checks.get(answer.nonce)
        if wanted is None or (wanted.keystore, answer.matches) != (keystore, True):
            raise AnswerInvalid(
                f"this is not the proof that {keystore} was asked for",
                next_step="answer what is asked now",
                subject=keystore,
            )

    def _check_dek(self, answer: DekAnswer, keystore: str, roster: Roster) -> None:
        response, _ = roster.open(DekResponse, answer.response, of=keystore)
        wanted = self._unwraps.get(_place(response.keystore, response.session))
        if wanted is None:
            raise AnswerInvalid(
                f"this is not the data key that {keystore} was asked for, or its session is gone",
                next_step="answer what is asked now",
                subject=keystore,
            )


def _place(keystore: str, session: str) -> str:
    # A session asks a keystore once, for the one shard that it has.
    return f"{keystore} {session}"


def _silent(keystore: str) -> KeystoreUnavailable:
    return KeystoreUnavailable(
        f"the custodian of {keystore} did not contribute in time",
        next_step="let them run `masterkey contribute CEREMONY` and keep it running",
        subject=keystore,
    )


def _as_contribution(value: Any, extra: tuple[Any, ...]) -> Contribution:
    try:
        if extra:
            raise DocumentInvalid("one contribution is expected, not several values")
        return Contribution.model_validate(value)
    except ValidationError:
        raise DocumentInvalid("a contribution names its keystore and holds a proof or a data key") from None
