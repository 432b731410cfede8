"""`masterkey unseal`: become the recipient, and hand the MasterKey to a program over a descriptor."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from activities import recipient
from activities.oneshot.installed import environment_of_others
from activities.oneshot.process import Pool
from workers.cli.options import NameArgument
from workers.cli.progress import was_started, watched
from workers.client import ceremonies, upkeep
from workers.client.lease import acknowledge, keep_lease
from workers.connection import connect
from workers.output import OPTIONS, answer, asynchronous, say
from workflows.contracts.messages.report import ReportRequest
from workflows.contracts.messages.requests import HoldRequest, UnsealRequest
from workflows.contracts.messages.results import UnsealResult
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.authority import check_manifest
from workflows.contracts.trust.canonical import Signed, seconds
from workflows.contracts.trust.errors import ConfigurationInvalid, SessionLost
from workflows.contracts.trust.service_errors import NotKnown
from workflows.contracts.trust.validity import SEAL_REQUEST_LIFETIME

app = typer.Typer(add_completion=False)

DESCRIPTOR_VARIABLE = "MASTERKEY_FD"
"""Names, for the program that `--exec` runs, the number of the descriptor to read 32 bytes from."""
_PREPARE_SECONDS = 20


@app.command(context_settings={"allow_extra_args": True})
@asynchronous
async def unseal(
    context: typer.Context,
    name: NameArgument,
    execute: Annotated[
        bool, typer.Option("--exec", help="Run the command after `--`; it reads 32 bytes from $MASTERKEY_FD.")
    ] = False,
    fd: Annotated[int | None, typer.Option("--fd", help="Write the 32 bytes to this open descriptor.")] = None,
    deadline_hours: Annotated[float, typer.Option(help="How long the custodians may take (sss).")] = 72.0,
    purpose: Annotated[str, typer.Option(help="Which protection: primary or emergency.")] = "primary",
) -> None:
    """Receive a MasterKey: in sss mode once the custodians have approved, in auto-unseal mode at once."""
    if execute == (fd is not None) or (execute and not context.args):
        raise typer.BadParameter("say where the key shall go: either --exec -- COMMAND..., or --fd NUMBER")
    command = list(context.args) if execute else []
    configuration = OPTIONS.load()
    section, source = configuration.need_recipient(), configuration.roster_source()
    chain = source.load()
    kcv = section.kcv.get(name)
    if kcv is None:
        raise ConfigurationInvalid(
            f"{configuration.source}: [recipient] kcv: no key check value is pinned for {name}",
            next_step="get it from those who made the key (`masterkey init` printed it), never from the ledger",
        )
    client = await connect()
    found = await upkeep.report(client, ReportRequest(kind="protection", master_key=name))
    active = [entry for entry in found.protections if entry.status == "active"]
    manifests = [(check_manifest(entry.manifest, chain), entry.manifest) for entry in active]
    chosen = [(manifest, signed) for manifest, signed in manifests if manifest.purpose == purpose]
    if not chosen:
        raise NotKnown(f"there is no active {purpose} protection of a MasterKey {name}")
    manifest, signed_manifest = chosen[0]
    strongroom = chain.at(manifest.roster).strongroom(manifest.strongroom)
    if strongroom is None or chain.current.strongroom(strongroom.fingerprint) is None:
        strongroom = chain.current.strongrooms[0]
    lifetime = SEAL_REQUEST_LIFETIME if manifest.mode == "seal" else timedelta(hours=deadline_hours)
    now = seconds(datetime.now(UTC))
    terms = recipient.Terms(
        identity=str(configuration.path(section.identity)),
        roster_file=str(source.file),
        roster_genesis=source.genesis,
        roster_minimum=source.minimum,
        master_key=name,
        ceremony=new_ceremony_id(name, "unseal"),
        kcv=kcv,
        manifest=signed_manifest,
        strongroom=strongroom.fingerprint,
        nonce=secrets.token_hex(16),
        issued=now,
        expires=now + lifetime,
    )
    pool = Pool(recipient.TARGET, (), spares=0)
    process = await pool.take()
    try:
        signed = await asyncio.wait_for(process.ask(terms, Signed), _PREPARE_SECONDS)
        request = UnsealRequest(
            ceremony=terms.ceremony,
            master_key=name,
            request=signed,
            quorum_timeout_seconds=int(lifetime.total_seconds()),
        )
        handle = await ceremonies.start(client, "UnsealWorkflow", request)
        if manifest.mode == "sss":
            say(was_started(terms.ceremony))
            say("keep this command running: the key to open the delivery exists only in it")
        result = await watched(handle, UnsealResult)
        handover = recipient.Handover(delivered=result.delivered).model_dump_json().encode()
        child = await _hand_over(process, handover, command, fd)
    finally:
        pool.release(process)
        await pool.close()
    code, stopped = 0, False
    if child is not None:
        lease = HoldRequest(ceremony=terms.ceremony, master_key=name)
        stop = await keep_lease(client, lease, child, source)
        if stop is not None:
            await acknowledge(client, *stop, configuration.path(section.identity))
        code, stopped = child.returncode, stop is not None
    data = {
        "ceremony": result.ceremony,
        "master_key": name,
        "kcv": kcv,
        "approved_by": list(result.approved_by),
        "served_by": list(result.served_by),
        "failed": list(result.failed),
        "exit_code": code,
        "stopped": stopped,
    }
    end = "; a custodian's stop ended the program" if stopped else ""
    answer(data, lambda: say(f"{name} was delivered; served by {', '.join(result.served_by)}{end}"))
    if stopped or code != 0:
        raise typer.Exit(1 if stopped else code)


async def _hand_over(
    process: Any, handover: bytes, command: Sequence[str], fd: int | None
) -> subprocess.Popen[bytes] | None:
    if fd is not None:
        await _deliver(process, handover, fd)
        return None
    reading, writing = os.pipe()
    try:
        # The key is opened and checked before the program starts: it never runs with a wrong one. A pipe
        # holds the 32 bytes until it reads them.
        await _deliver(process, handover, writing)
        os.close(writing)
        writing = -1
        environment = {**environment_of_others(), DESCRIPTOR_VARIABLE: str(reading)}
        try:
            # Standard output belongs to the JSON answer under --json.
            return subprocess.Popen(  # noqa: S603, ASYNC220 - the operator's own command, without a shell
                list(command),
                pass_fds=(reading,),
                env=environment,
                stdout=2 if OPTIONS.json else None,
            )
        except OSError as error:
            raise ConfigurationInvalid(f"cannot run {command[0]}: {error.strerror}") from None
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


async def _deliver(process: Any, handover: bytes, descriptor: int) -> None:
    if await process.call_with_descriptor(handover, descriptor) != b"done":
        raise SessionLost("the recipient's process did not say that it was done")
