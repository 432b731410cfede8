"""The plan that needs the fewest changes: what works stays, what is lost is replaced, in its place and custody."""

from __future__ import annotations

from collections.abc import Sequence

from workflows.contracts.messages.requests import ChangedPlan, ShardRequest
from workflows.contracts.trust.errors import PlanInvalid
from workflows.contracts.trust.fields import Mode
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.service_errors import QuorumUnreachable
from workflows.steps.assess import GONE, LOST, USABLE, Assessment
from workflows.steps.protections import StoredManifest


def propose(
    damaged: StoredManifest, requested: ChangedPlan, roster: Roster, found: Assessment, in_use: Sequence[str]
) -> tuple[Mode, int, tuple[ShardRequest, ...]]:
    """Mode, threshold and shards of the new protection.

    A lost keystore is replaced by the first keystore that was named as a replacement and answers; else by itself,
    if it answers with another key by now; else by the first of the roster that answers and holds no shard of this
    MasterKey. Where none is left the shard is dropped, as long as the threshold allows it. Custodians stay.

    Args:
        damaged: the protection that is to be made whole.
        requested: what people said; a whole topology is taken as it is.
        roster: who there is.
        found: how everything is.
        in_use: keystores that hold a shard of any active protection of this MasterKey.

    Raises:
        PlanInvalid: nothing is lost, or too few keystores are left.
    """
    manifest = damaged.manifest
    mode, threshold = requested.mode or manifest.mode, requested.threshold or manifest.threshold
    if requested.shards:
        return mode, threshold if mode == "sss" else 1, requested.shards
    health = found.of(damaged)
    lost = [name for name, one in health.items() if one.state in LOST]
    if requested.replacements:
        # Whoever names replacements does not want to wait for those that are only away.
        lost = [name for name, one in health.items() if one.state not in USABLE]
    if not lost and threshold == manifest.threshold:
        raise PlanInvalid(
            f"nothing of the {manifest.purpose} protection is lost",
            next_step="an unseal just works; name a keystore with --replace to move away from one that is only away",
        )
    named = [one for one in requested.replacements if one.keystore in found.keys]
    taken = {*in_use, *(one.keystore for one in named)}
    spare = [
        ShardRequest(keystore=one.name)
        for one in roster.keystores
        if one.name not in taken and mode in found.modes.get(one.name, ())
    ]
    shards, dropped = [], []
    for shard in manifest.shards:
        name, custodians = shard.binding.keystore, shard.custodians
        if name not in lost:
            shards.append(ShardRequest(keystore=name, custodians=custodians))
        elif named:
            first = named.pop(0)
            shards.append(ShardRequest(keystore=first.keystore, custodians=first.custodians or custodians))
        elif found.keys.get(name, shard.binding.key_id) != shard.binding.key_id:
            shards.append(ShardRequest(keystore=name, custodians=custodians))
        elif spare:
            shards.append(ShardRequest(keystore=spare.pop(0).keystore, custodians=custodians))
        else:
            dropped.append(name)
    if len(shards) < max(threshold, 2 if mode == "sss" else 1):
        raise PlanInvalid(
            f"{', '.join(dropped)} cannot be replaced, and {len(shards)} shards are too few for a threshold of "
            f"{threshold}",
            next_step="name keystores of the roster that work, with --replace NAME, or a whole topology",
        )
    return mode, threshold, tuple(shards)


def best_source(
    active: Sequence[StoredManifest], damaged: StoredManifest, requested: ChangedPlan, found: Assessment
) -> StoredManifest:
    """The protection to open: the one that can best be opened, and of two that can the one that is to be made whole.

    Raises:
        PlanInvalid: the one that was asked for is not there.
        QuorumUnreachable: so much is gone for good that none can ever be opened.
    """
    candidates = [one for one in active if requested.source in (None, one.manifest.purpose)]
    if not candidates:
        raise PlanInvalid(f"there is no active {requested.source} protection to open")

    def rank(one: StoredManifest) -> tuple[bool, bool, int]:
        threshold = one.manifest.threshold
        usable = found.usable(one)
        return (usable >= threshold, one is damaged, usable - threshold)

    best = max(candidates, key=rank)
    if found.usable(best) < best.manifest.threshold:
        best = max(candidates, key=lambda one: found.possible(one) - one.manifest.threshold)
        if found.possible(best) < best.manifest.threshold:
            gone = sorted(name for name, one in found.of(best).items() if one.state in GONE)
            raise QuorumUnreachable(
                f"of the {best.manifest.purpose} protection {found.possible(best)} of {best.manifest.count} shards are "
                f"left, and {best.manifest.threshold} are needed; gone for good: {', '.join(gone)}",
                next_step="look for an older bundle, a backup of a keystore, or a key version that was not destroyed",
            )
    return best
