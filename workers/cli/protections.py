"""The protections of a MasterKey and the stops in force, as commands read them: verified, and in words."""

from __future__ import annotations

from temporalio.client import Client

from workers.client import upkeep
from workers.output import OPTIONS, say
from workflows.contracts.messages.report import ProtectionSummary, Report, ReportRequest
from workflows.contracts.messages.results import OldKey, ReshardResult
from workflows.contracts.trust.authority import check_manifest
from workflows.contracts.trust.canonical import Signed
from workflows.contracts.trust.chain import RosterChain
from workflows.contracts.trust.errors import ApprovalInvalid
from workflows.contracts.trust.protection import Manifest
from workflows.contracts.trust.roster import Roster
from workflows.contracts.trust.service_errors import NotKnown
from workflows.contracts.trust.stop import Stop, check_stop


async def protections(client: Client, name: str) -> list[tuple[Manifest, ProtectionSummary]]:
    """What protects a MasterKey, or did: verified manifests, each with what the ledger says of it.

    Raises:
        NotKnown: there is no such MasterKey.
        ManifestInvalid: no strongroom of the roster signed one.
    """
    chain = OPTIONS.roster()
    report = await upkeep.report(client, ReportRequest(kind="protection", master_key=name))
    if not report.protections:
        raise NotKnown(f"there is no MasterKey {name}")
    return verified(report, chain)


def verified(report: Report, chain: RosterChain) -> list[tuple[Manifest, ProtectionSummary]]:
    """The protections of a report; raises ManifestInvalid if no strongroom of the roster signed one."""
    return [(check_manifest(entry.manifest, chain), entry) for entry in report.protections]


def describe_stop(signed: Signed, roster: Roster) -> dict[str, str]:
    """A stop in force, in words; who ordered it may have left since."""
    # Its digest is what a lift names, so what it says need not be believed to be shown.
    stop = Stop.parse(signed.document.encode())
    try:
        who = check_stop(roster, signed, None)[1]
    except ApprovalInvalid:
        who = f"UNKNOWN {stop.custodian}"
    return {
        "master_key": stop.master_key,
        "ordered_by": who,
        "issued": f"{stop.issued:%Y-%m-%d %H:%M:%S} UTC",
        "reason": stop.reason,
        "stop": signed.digest,
    }


def say_result(result: ReshardResult) -> None:
    """What came of a reshard or a recovery, in words an SRE can act on."""
    manifest = Manifest.parse(result.manifest.document.encode())
    say(f"{result.master_key} is protected again: the same MasterKey, KCV {result.kcv}, epoch {manifest.epoch}")
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
    say(f"  to revoke it permanently, destroy at least {count - enough + 1} of them:")
    for old in result.old_keys:
        say(f"    {key_version(old, 'in use by the new protection: rotate this key and reshard first')}")


def key_version(old: OldKey, in_use: str) -> str:
    """A key version that opens a copy of an old protection, and what to mind while it is in use."""
    version = f" version {old.key_version}" if old.key_version else ""
    return f"{old.keystore}: {old.key_id}{version}{f'  ({in_use})' if old.in_use else ''}"
