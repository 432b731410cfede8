"""The plan of a ceremony: the one place that makes one, and what a new protection shall look like."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from workflows.contracts.messages.requests import ShardRequest
from workflows.contracts.trust.errors import PlanInvalid
from workflows.contracts.trust.fields import Mode, Purpose
from workflows.contracts.trust.plan import Plan, PlanRecipient, Target, TargetShard
from workflows.contracts.trust.roster import Roster, Strongroom
from workflows.steps.protections import StoredManifest
from workflows.steps.record import RecordedWorkflow


def make_plan(
    asking: RecordedWorkflow,
    roster: Roster,
    strongroom: str,
    seconds: int,
    *,
    no_later_than: datetime | None = None,
    source: StoredManifest | None = None,
    target: Target | None = None,
    recipient: PlanRecipient | None = None,
    stops: tuple[str, ...] | None = None,
) -> Plan:
    """What a ceremony asks people for.

    Args:
        asking: the ceremony.
        roster: who decides.
        strongroom: fingerprint of the one whose sessions do it.
        seconds: how long people may take to decide.
        no_later_than: when it must end in any case.
        source: the protection that it opens, retires or destroys.
        target: the protection that it makes.
        recipient: who receives the MasterKey.
        stops: digests of the stops that it lifts.
    """
    now, quorum = asking.now(), roster.governance_of(asking.master_key).quorum
    expires = now + timedelta(seconds=seconds)
    return Plan(
        action=asking.action,
        master_key=asking.master_key,
        ceremony=asking.ceremony,
        # Neither a roster nor a manifest of less can take away what the other demands.
        governance_quorum=max(quorum, source.manifest.governance_quorum) if source else quorum,
        source=source.as_source() if source else None,
        target=target,
        recipient=recipient,
        strongroom=strongroom,
        roster=roster.digest,
        created=now,
        expires=min(expires, no_later_than) if no_later_than else expires,
        stops=stops,
    )


@dataclass(frozen=True)
class Topology:
    """What a new protection shall look like, before it is known which keys its keystores use.

    Attributes:
        predecessor: digest of the manifest that it replaces.
    """

    mode: Mode
    threshold: int
    shards: tuple[ShardRequest, ...]
    purpose: Purpose
    epoch: int
    predecessor: str | None = None
    retention_hours: int | None = None

    def target(self, roster: Roster, key_ids: list[str]) -> Target:
        """The target with these key ids; custodians are the roster's unless others were named.

        Raises:
            PlanInvalid: a number is out of range.
        """
        if not 1 <= len(self.shards) <= 255 or not 1 <= self.threshold <= 255:
            raise PlanInvalid(f"{self.threshold} of {len(self.shards)} shards: both must be 1 to 255")
        shards = []
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
            purpose=self.purpose,
            mode=self.mode,
            epoch=self.epoch,
            threshold=self.threshold,
            count=len(shards),
            shards=tuple(shards),
            predecessor=self.predecessor,
            retention_hours=self.retention_hours,
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
