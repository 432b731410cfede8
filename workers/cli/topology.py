"""What the commands that change a protection share: reading topologies, showing what changes, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from workers.output import OPTIONS, say
from workflows.contracts.trust.errors import NotKnown, PlanInvalid

if TYPE_CHECKING:
    from temporalio.client import Client

    from workflows.contracts.messages.requests import ShardRequest
    from workflows.contracts.messages.results import ReshardResult
    from workflows.contracts.trust.canonical import Message
    from workflows.contracts.trust.protection import Manifest

M = TypeVar("M", bound="Message")


def shard_requests(words: Sequence[str]) -> tuple[ShardRequest, ...]:
    """Shards from words of the form `NAME` or `NAME:CUSTODIAN[+DEPUTY...]`.

    Raises:
        PlanInvalid: a word is not of that form.
    """
    from workflows.contracts.messages.requests import ShardRequest

    shards = []
    for word in words:
        keystore, _, custodians = word.partition(":")
        try:
            shards.append(ShardRequest(keystore=keystore, custodians=tuple(filter(None, custodians.split("+")))))
        except ValidationError:
            raise PlanInvalid(
                f"{word!r} names no keystore", next_step="write --keystore NAME or --keystore NAME:CUSTODIAN+DEPUTY"
            ) from None
    return tuple(shards)


def validated(kind: type[M], fields: dict[str, Any], command: str) -> M:
    """A request to a ceremony, from what was typed; bad arguments would hang a workflow rather than fail it.

    Raises:
        PlanInvalid: which field is wrong.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        # The ceremony's id is made from the name, so a bad name shows twice; the last is the user's own word.
        last = error.errors(include_input=False, include_url=False)[-1]
        where = ".".join(str(part) for part in last["loc"])
        raise PlanInvalid(
            f"{where}: {last['msg']}",
            next_step=f"names are lower case letters, digits and hyphens; see `masterkey {command} --help`",
        ) from None


async def manifests(client: Client, name: str) -> list[tuple[Manifest, str, str]]:
    """The verified manifests of a MasterKey, each with its digest and status.

    Raises:
        NotKnown: there is no such MasterKey.
        ManifestInvalid: no strongroom of the roster signed one.
    """
    from workers.client import ceremonies as ceremony_client
    from workflows.contracts.messages.report import ReportRequest
    from workflows.contracts.trust.authority import check_manifest

    chain = OPTIONS.load().roster_source().load()
    report = await ceremony_client.report(client, ReportRequest(kind="protection", master_key=name))
    if not report.protections:
        raise NotKnown(f"there is no MasterKey {name}")
    return [
        (check_manifest(entry.manifest, chain), entry.manifest.digest, entry.status) for entry in report.protections
    ]


def say_result(result: ReshardResult) -> None:
    """What came of a reshard or a recovery, in words an SRE can act on."""
    from workflows.contracts.trust.protection import Manifest

    manifest = Manifest.parse(result.manifest.document.encode())
    say(f"{result.master_key} is protected anew: the same MasterKey, KCV {result.kcv}, epoch {manifest.epoch}")
    say(f"  approved by {', '.join(result.approved_by)}; opened by {', '.join(result.opened_by)}")
    for line in result.changes:
        say(f"  {line}")
    for place in result.bundles:
        say(f"  bundle written to {place}")
    if result.retired is None:
        return
    say(f"the old protection ({result.retired}) is retired: keystores refuse it")
    if result.not_told:
        say(f"  NOT TOLD YET, would still serve it: {', '.join(result.not_told)}. Disable these keys, or drill later:")
        for old in result.old_keys:
            if old.keystore in result.not_told:
                say(f"    {old.keystore}: {old.key_id}")
    enough, count = result.old_keys_needed, len(result.old_keys)
    say(f"  a copy of it opens still for whoever controls {enough} of these {count} key versions;")
    say(f"  to revoke it for good, destroy at least {count - enough + 1} of them:")
    for old in result.old_keys:
        version = f" version {old.key_version}" if old.key_version else ""
        use = "  (in use by the new protection: rotate this key and reshard first)" if old.in_use else ""
        say(f"    {old.keystore}: {old.key_id}{version}{use}")


def told_result(result: ReshardResult) -> dict[str, Any]:
    """The same for programs."""
    return {**result.model_dump(mode="json", exclude={"manifest"}), "manifest": result.manifest.digest}
