"""Builds of the orchestrator: which one this is, which ones the server knows, and which ceremonies each still has.

A build is named by the product's version and a digest of the code that must be deterministic: everything below
`workflows/`, contracts included. Nobody can forget to raise it, and two hosts with the same code have the same build.
The rule for changing that code, and what happens to ceremonies in flight, is in `workflows/README.md`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path

from temporalio.api.deployment.v1 import WorkerDeploymentInfo
from temporalio.api.enums.v1 import WorkerDeploymentVersionStatus
from temporalio.api.workflowservice.v1 import (
    DescribeWorkerDeploymentRequest,
    SetWorkerDeploymentCurrentVersionRequest,
    SetWorkerDeploymentRampingVersionRequest,
)
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import WorkerDeploymentConfig

import workflows
from workflows.contracts.names import DEPLOYMENT
from workflows.contracts.trust.errors import ConfigurationInvalid

_PACKAGES = ("activities", "deploy", "workers", "workflows")
_RPC_TIMEOUT = timedelta(seconds=10)
_REGISTERED_SECONDS, _AGAIN_SECONDS = 60.0, 0.25


def code_digest(*packages: str) -> str:
    """SHA-256 over the names and contents of the Python files of installed packages, as 64 hexadecimal digits."""
    root = Path(workflows.__file__).parent.parent
    found = hashlib.sha256()
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            data = path.read_bytes()
            found.update(f"{path.relative_to(root).as_posix()}\0{len(data)}\0".encode() + data)
    return found.hexdigest()


@cache
def product_version() -> str:
    """The installed product's version."""
    return version("openkcm-masterkey")


@cache
def build_id() -> str:
    """This build of the orchestrator: the version, and twelve digits of the digest of the workflow code."""
    return f"{product_version()}-{code_digest('workflows')[:12]}"


@cache
def software() -> str:
    """All of the installed code: the version, and twelve digits of its digest. Signed into manifests."""
    return f"{product_version()}-{code_digest(*_PACKAGES)[:12]}"


def worker_config(*, versioned: bool) -> WorkerDeploymentConfig:
    """What the orchestrator's worker tells the server of itself."""
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(DEPLOYMENT, build_id()),
        use_worker_versioning=versioned,
        default_versioning_behavior=VersioningBehavior.PINNED if versioned else VersioningBehavior.UNSPECIFIED,
    )


@dataclass(frozen=True)
class Build:
    """What the server knows of one build.

    Attributes:
        build: its id.
        state: `current`, `ramping`, `draining`, `drained` or `inactive` (registered, and never given work).
        since: when that state began, as far as the server says.
        share: of new ceremonies that it gets, in percent; only while it is ramping.
        activated: whether it was ever given work.
    """

    build: str
    state: str
    since: datetime | None = None
    share: float = 0.0
    activated: bool = False


@dataclass(frozen=True)
class Promotion:
    """What a starting orchestrator does with its build.

    Attributes:
        versioned: whether the server shall keep ceremonies on their builds.
        promote: make it current; None: only if it is new, so that an old build that restarts takes nothing over.
        ramp: instead, give it this share of new ceremonies, in percent.
    """

    versioned: bool = True
    promote: bool | None = None
    ramp: float | None = None


NEW_BUILDS = Promotion()
"""A build becomes current when it is new to the server."""

_STATES = {
    WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_INACTIVE: "inactive",
    WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_CURRENT: "current",
    WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_RAMPING: "ramping",
    WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_DRAINING: "draining",
    WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_DRAINED: "drained",
}
_NO_VERSIONING = (RPCStatusCode.UNIMPLEMENTED, RPCStatusCode.PERMISSION_DENIED)


async def known_builds(client: Client) -> list[Build]:
    """The builds that the server knows, the newest first; empty before the first versioned worker.

    Raises:
        ConfigurationInvalid: the server has no worker versioning.
    """
    info = await _describe(client)
    if info is None:
        return []
    share = info.routing_config.ramping_version_percentage
    found = []
    for summary in sorted(info.version_summaries, key=lambda one: one.create_time.ToNanoseconds(), reverse=True):
        state = _STATES.get(summary.status, "unknown")
        since = {
            "current": summary.current_since_time,
            "ramping": summary.ramping_since_time,
            "draining": summary.last_deactivation_time,
            "drained": summary.drainage_info.last_changed_time,
        }.get(state, summary.create_time)
        found.append(
            Build(
                build=summary.deployment_version.build_id,
                state=state,
                since=since.ToDatetime(UTC) if since.ToNanoseconds() else None,
                share=share if state == "ramping" else 0.0,
                activated=bool(summary.first_activation_time.ToNanoseconds()),
            )
        )
    return found


async def check_unversioned(client: Client) -> list[Build]:
    """Refuse to work without versioning where the server gives all work to a versioned build.

    Raises:
        ConfigurationInvalid: a build is current, so an unversioned worker would wait for ever.
    """
    try:
        known = await known_builds(client)
    except ConfigurationInvalid:
        return []
    current = next((one for one in known if one.state == "current"), None)
    if current is not None:
        raise ConfigurationInvalid(
            f"build {current.build} is current: Temporal gives no work to an orchestrator without versioning",
            next_step="start it without --unversioned, or first run: masterkey worker promote --unversioned",
        )
    return known


async def release(client: Client, how: Promotion, before: Sequence[Build]) -> str:
    """Do with this build what was asked for; its worker polls already.

    Args:
        client: of Temporal.
        how: what was asked for.
        before: the builds that the server knew before this worker started.

    Returns:
        What came of it, in one line.

    Raises:
        ConfigurationInvalid: the server did not take it.
    """
    own = build_id()
    known = next((one for one in before if one.build == own), None)
    current = next((one for one in before if one.state == "current"), None)
    if how.ramp is not None and current is not None:
        await ramp(client, own, how.ramp)
        return f"build {own} gets {how.ramp:g} % of new ceremonies; {current.build} is current"
    new = known is None or not known.activated
    if how.promote or current is None or (how.promote is None and new):
        await promote(client, own)
        return f"build {own} is current"
    if known is not None and known.state == "current":
        return f"build {own} is current"
    return (
        f"build {own} goes on with its own ceremonies; {current.build} is current "
        f"(to go back: masterkey worker promote {own})"
    )


async def promote(client: Client, build: str) -> None:
    """Make a build current: new ceremonies begin on it, and gated workflows go on with it.

    Args:
        client: of Temporal.
        build: its id; empty: none, so that workers without versioning get the work.

    Raises:
        ConfigurationInvalid: the server did not take it.
    """
    await _tell(
        lambda: client.workflow_service.set_worker_deployment_current_version(
            SetWorkerDeploymentCurrentVersionRequest(
                namespace=client.namespace, deployment_name=DEPLOYMENT, build_id=build, identity=client.identity
            ),
            timeout=_RPC_TIMEOUT,
        ),
        build,
    )


async def ramp(client: Client, build: str, share: float) -> None:
    """Give a build a share of the new ceremonies, in percent; raises as `promote` does."""
    await _tell(
        lambda: client.workflow_service.set_worker_deployment_ramping_version(
            SetWorkerDeploymentRampingVersionRequest(
                namespace=client.namespace,
                deployment_name=DEPLOYMENT,
                build_id=build,
                percentage=share,
                identity=client.identity,
            ),
            timeout=_RPC_TIMEOUT,
        ),
        build,
    )


async def _tell(call: Callable[[], Awaitable[object]], build: str) -> None:
    # The server learns of a new worker's queues up to a second after it began to poll; measured with 1.32.
    until = asyncio.get_running_loop().time() + _REGISTERED_SECONDS
    while True:
        try:
            await call()
        except RPCError as error:
            if error.status in _NO_VERSIONING:
                raise _no_versioning(error) from None
            if asyncio.get_running_loop().time() > until or error.status not in _TRANSIENT:
                raise ConfigurationInvalid(
                    f"Temporal did not take build {build or 'without versioning'}: {error.message}",
                    next_step="see `masterkey worker builds`; a worker of that build must run",
                ) from None
            await asyncio.sleep(_AGAIN_SECONDS)
        else:
            return


_TRANSIENT = (
    RPCStatusCode.NOT_FOUND,
    RPCStatusCode.FAILED_PRECONDITION,
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.RESOURCE_EXHAUSTED,
)


async def _describe(client: Client) -> WorkerDeploymentInfo | None:
    request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=DEPLOYMENT)
    try:
        answer = await client.workflow_service.describe_worker_deployment(request, timeout=_RPC_TIMEOUT)
    except RPCError as error:
        if error.status == RPCStatusCode.NOT_FOUND:
            return None
        if error.status in _NO_VERSIONING:
            raise _no_versioning(error) from None
        raise
    return answer.worker_deployment_info


def _no_versioning(error: RPCError) -> ConfigurationInvalid:
    if error.status == RPCStatusCode.PERMISSION_DENIED:
        # Said of a namespace in which it is switched off, and of a client that may not ask: only the text tells which.
        return ConfigurationInvalid(
            f"Temporal refuses worker versioning to this orchestrator: {error.message}",
            next_step="enable it in the namespace, or give this client the right to it; without it: --unversioned, and "
            "read the runbook `upgrade` first",
        )
    return ConfigurationInvalid(
        "this Temporal server has no worker versioning, which keeps a waiting ceremony on the code that began it",
        next_step="use a newer server (1.32 is what this was tried with), or start the orchestrator with "
        "--unversioned and read the runbook `upgrade` first",
    )
