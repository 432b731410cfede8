"""Which topologies are possible, and keep the rules of custody. After `plan` and `roster`."""

from __future__ import annotations

from workflows.contracts.trust.errors import PlanInvalid
from workflows.contracts.trust.plan import Target
from workflows.contracts.trust.roster import Roster


def check_target(target: Target, master_key: str, roster: Roster) -> None:
    """Check that a topology is possible and keeps the rules of custody.

    Raises:
        PlanInvalid: M > N, M < 2 in `sss`, N > 255, a keystore or KMS key twice, overlapping or unknown
            custody, an unknown keystore, or a threshold below the roster's minimum.
    """
    m, n, mode = target.threshold, target.count, target.mode
    if n != len(target.shards) or [s.index for s in target.shards] != list(range(1, n + 1)):
        raise PlanInvalid(f"the plan lists {len(target.shards)} shards, but N is {n}")
    if m > n:
        raise PlanInvalid(f"threshold {m} is more than the {n} shards: the MasterKey could never be recovered")
    if mode == "sss" and m < 2:
        raise PlanInvalid("an sss protection needs a threshold of 2 or more", next_step="use --mode seal for one")
    if mode == "seal" and m != 1:
        raise PlanInvalid("in seal mode any one keystore suffices, so the threshold is 1")
    minimum = roster.governance_of(master_key).minimum_threshold
    if mode == "sss" and m < minimum:
        raise PlanInvalid(f"threshold {m} is below the roster's minimum of {minimum} for {master_key}")
    _check_distinct([s.keystore for s in target.shards], "keystore")
    _check_distinct([s.key_id for s in target.shards], "KMS key")
    for shard in target.shards:
        if roster.keystore(shard.keystore) is None:
            raise PlanInvalid(f"keystore {shard.keystore} is not in the roster", subject=shard.keystore)
        if (mode == "sss") != bool(shard.custodians):
            raise PlanInvalid(
                f"shard {shard.index} in {shard.keystore} has {'no' if mode == 'sss' else 'a'} custodian",
                next_step="in sss every shard has custodians (--keystore NAME:CUSTODIAN), in seal none",
            )
        for name in shard.custodians:
            if roster.custodian(name) is None:
                raise PlanInvalid(f"custodian {name} is not in the roster", subject=name)
    _check_distinct([name for s in target.shards for name in s.custodians], "custodian")


def _check_distinct(values: list[str], what: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise PlanInvalid(
                f"{what} {value} stands behind more than one shard",
                next_step=f"give every shard a {what} of its own, or one loss counts twice",
                subject=value,
            )
