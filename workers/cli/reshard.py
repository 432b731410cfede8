"""`masterkey reshard` and `masterkey destroy`: other protections of the same MasterKey, and the end of old ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from workers.cli.progress import live
from workers.cli.topology import manifests, say_result, shard_requests, told_result, validated
from workers.output import answer, run, say
from workflows.contracts.trust.errors import NotKnown, PlanInvalid

if TYPE_CHECKING:
    from workflows.contracts.messages.requests import OrderRequest
    from workflows.contracts.messages.results import OrderResult

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, showing progress.")]
Deadline = Annotated[float, typer.Option(help="How long the quorum may take.")]


def reshard(
    name: Annotated[str, typer.Argument(help="Name of the MasterKey.")],
    mode: Annotated[str | None, typer.Option(help="sss or seal; as now by default.")] = None,
    keystore: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:CUSTODIAN[+DEPUTY...], once for each shard; as now by default."),
    ] = None,
    threshold: Annotated[int | None, typer.Option(help="M, how many shards recover it; as now by default.")] = None,
    purpose: Annotated[str, typer.Option(help="Of the new protection: primary or emergency.")] = "primary",
    source: Annotated[str | None, typer.Option(help="Which protection to open: primary or emergency.")] = None,
    retention_hours: Annotated[
        int | None, typer.Option(help="Destroy the old ciphertexts after so long; by default when that is ordered.")
    ] = None,
    drop: Annotated[str | None, typer.Option(help="Retire this protection (emergency) and make none.")] = None,
    strongroom: Annotated[str, typer.Option(help="Name of the strongroom; the roster's first by default.")] = "",
    deadline_hours: Deadline = 72.0,
    wait: Wait = True,
) -> None:
    """Protect a MasterKey anew: other numbers, keystores, custodians or mode, or only newer key versions."""
    if drop is not None:
        if keystore or mode or threshold:
            raise typer.BadParameter("--drop makes no new protection")
        run(_drop(name, drop, strongroom, deadline_hours, wait))
        return
    wishes = {
        "mode": mode,
        "threshold": threshold,
        "shards": shard_requests(keystore or []),
        "purpose": purpose,
        "source": source,
        "retention_hours": retention_hours,
        "strongroom": strongroom,
        "quorum_timeout_seconds": round(deadline_hours * 3600),
    }
    run(_reshard(name, wishes, wait))


async def _reshard(name: str, wishes: dict[str, Any], wait: bool) -> None:
    from workers.client import ceremonies as ceremony_client
    from workers.connection import connect
    from workflows.contracts.messages.requests import ReshardRequest, ShardRequest
    from workflows.contracts.messages.results import ReshardResult
    from workflows.contracts.names import new_ceremony_id

    client = await connect()
    active = {m.purpose: m for m, _, status in await manifests(client, name) if status == "active"}
    like = active.get(wishes["purpose"]) or next(iter(active.values()), None)
    if like is None:
        raise NotKnown(f"{name} has no active protection")
    # What is not said stays as it is.
    mode = wishes["mode"] or like.mode
    if not wishes["shards"]:
        wishes["shards"] = tuple(
            ShardRequest(keystore=shard.binding.keystore, custodians=shard.custodians) for shard in like.shards
        )
    if mode == "sss" and wishes["threshold"] is None and like.mode != "sss":
        raise PlanInvalid("an sss protection needs a threshold", next_step="add --threshold M")
    threshold = 1 if mode == "seal" else wishes["threshold"] or like.threshold
    fields = {**wishes, "ceremony": new_ceremony_id(name, "reshard"), "master_key": name}
    request = validated(ReshardRequest, {**fields, "mode": mode, "threshold": threshold}, "reshard")
    handle = await ceremony_client.start(client, "ReshardWorkflow", request)
    say(f"ceremony {request.ceremony} was started; custodians decide with: masterkey approve {request.ceremony}")
    if not wait:
        answer({"ceremony": request.ceremony}, lambda: None)
        return
    with live() as show:
        result = await ceremony_client.watch(handle, ReshardResult, show)
    answer(told_result(result), lambda: say_result(result))


async def _drop(name: str, purpose: str, strongroom: str, deadline_hours: float, wait: bool) -> None:
    from workers.connection import connect

    found = [
        digest
        for m, digest, status in await manifests(await connect(), name)
        if (m.purpose, status) == (purpose, "active")
    ]
    if not found:
        raise NotKnown(f"{name} has no active {purpose} protection")
    await order(name, "retire", found[0], strongroom, deadline_hours, wait)


def destroy(
    name: Annotated[str, typer.Argument(help="Name of the MasterKey.")],
    epoch: Annotated[int, typer.Option(help="Epoch of the retired protection; see `masterkey status`.")],
    strongroom: Annotated[str, typer.Option(help="Name of the strongroom; the roster's first by default.")] = "",
    deadline_hours: Deadline = 72.0,
    wait: Wait = True,
) -> None:
    """Destroy the ciphertexts of a retired protection, once the governance quorum has approved."""
    run(_destroy(name, epoch, strongroom, deadline_hours, wait))


async def _destroy(name: str, epoch: int, strongroom: str, deadline_hours: float, wait: bool) -> None:
    from workers.connection import connect

    found = [(digest, status) for m, digest, status in await manifests(await connect(), name) if m.epoch == epoch]
    if not found:
        raise NotKnown(f"{name} has no protection of epoch {epoch}")
    digest, status = found[0]
    if status != "retired":
        raise PlanInvalid(f"the protection of epoch {epoch} is {status}", next_step="only a retired one is destroyed")
    await order(name, "destroy", digest, strongroom, deadline_hours, wait)


async def order(
    name: str, action: str, manifest: str | None, strongroom: str, deadline_hours: float, wait: bool
) -> None:
    """Start an order, wait for its quorum, and say who has heard of it."""
    from workers.client import ceremonies as ceremony_client
    from workers.connection import connect
    from workflows.contracts.messages.requests import OrderRequest
    from workflows.contracts.messages.results import OrderResult
    from workflows.contracts.names import new_ceremony_id

    fields = {
        "ceremony": new_ceremony_id(name, action),  # type: ignore[arg-type]
        "master_key": name,
        "action": action,
        "manifest": manifest,
        "strongroom": strongroom,
        "quorum_timeout_seconds": round(deadline_hours * 3600),
    }
    request: OrderRequest = validated(OrderRequest, fields, action)
    handle = await ceremony_client.start(await connect(), "OrderWorkflow", request)
    say(f"ceremony {request.ceremony} was started; custodians decide with: masterkey approve {request.ceremony}")
    if not wait:
        answer({"ceremony": request.ceremony}, lambda: None)
        return
    with live() as show:
        result = await ceremony_client.watch(handle, OrderResult, show)
    answer(result.model_dump(mode="json"), lambda: _say_order(result))


def _say_order(result: OrderResult) -> None:
    done = {"lift": "stops lifted", "retire": "protection retired", "destroy": "ciphertexts destroyed"}
    say(f"{result.master_key}: {done[result.action]}. Approved by {', '.join(result.approved_by)}.")
    say_told(result.keystores)
    if result.action == "destroy":
        say("copies elsewhere (bundles, backups) still open for whoever controls these key versions; destroy them too:")
        for old in result.old_keys:
            version = f" version {old.key_version}" if old.key_version else ""
            use = "  (DO NOT: in use by what is in force; rotate this key and reshard first)" if old.in_use else ""
            say(f"  {old.keystore}: {old.key_id}{version}{use}")


def say_told(keystores: Any) -> None:
    """Which keystore workers have heard of it, and what to do about those that have not."""
    heard = [one.keystore for one in keystores if one.acknowledged]
    say(f"  acknowledged by {', '.join(heard) or 'no keystore'}")
    for one in keystores:
        if not one.acknowledged:
            say(f"  NOT ACKNOWLEDGED by {one.keystore}: {one.error}: {one.detail}")
            for key in one.keys:
                say(f"    disable by hand: {key}")
