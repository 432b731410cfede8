"""What a new protection changes, in words: who loses, who gains, which keystores come and go."""

from __future__ import annotations

from workflows.contracts.trust.plan import Target
from workflows.contracts.trust.protection import Manifest


def shape(mode: str, threshold: int, count: int) -> str:
    """How many of how many, in words."""
    if mode == "seal":
        return f"seal, any one of {count} keystores"
    return f"Shamir, any {threshold} of {count} shards"


def difference(before: Manifest | None, after: Target) -> tuple[str, ...]:
    """What changes between the protection that is replaced, if one is, and the one that is made.

    Returns:
        One line for each change; a line that says so if nothing but the data keys does.
    """
    if before is None:
        return (f"adds {after.purpose}: {shape(after.mode, after.threshold, after.count)}; nothing is retired",)
    lines = []
    old, new = shape(before.mode, before.threshold, before.count), shape(after.mode, after.threshold, after.count)
    if old != new:
        lines.append(f"{old} -> {new}")
    was = {shard.binding.keystore: shard for shard in before.shards}
    now = {shard.keystore: shard for shard in after.shards}
    for name in sorted(set(was) - set(now)):
        lines.append(f"loses   {name} ({was[name].binding.key_id}){_held_by(was[name].custodians)}")
    for name in sorted(set(now) - set(was)):
        lines.append(f"gains   {name} ({now[name].key_id}){_held_by(now[name].custodians)}")
    for name in sorted(set(now) & set(was)):
        if was[name].binding.key_id != now[name].key_id:
            lines.append(f"re-keys {name}: {was[name].binding.key_id} -> {now[name].key_id}")
        if was[name].custodians != now[name].custodians:
            lines.append(f"custody {name}: {_names(was[name].custodians)} -> {_names(now[name].custodians)}")
    return tuple(lines) or ("same keystores and custodians; all data keys and shards are made anew",)


def _held_by(custodians: tuple[str, ...]) -> str:
    return f", released by {_names(custodians)}" if custodians else ""


def _names(custodians: tuple[str, ...]) -> str:
    return " or ".join(custodians) or "policy"
