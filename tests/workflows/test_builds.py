"""Builds of the orchestrator: named by their code, made current when they are new, ramped, and gone back to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import WorkflowEnvironment

from tests.driving.site import SharedTemporal
from workers import builds
from workers.builds import NEW_BUILDS, Promotion
from workers.client import running
from workers.connection import DATA_CONVERTER
from workers.roles import orchestrator_worker
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.errors import ConfigurationInvalid


@pytest_asyncio.fixture
async def alone(temporal: SharedTemporal) -> Client:
    """A namespace in which no orchestrator has run yet."""
    return await Client.connect(temporal.service.endpoint, namespace=temporal.take(), data_converter=DATA_CONVERTER)


@asynccontextmanager
async def orchestrator(client: Client, build: str, how: Promotion, patch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """An orchestrator of a build, polling; gives what it says of itself."""
    patch.setattr(builds, "build_id", lambda: build)
    before = await builds.known_builds(client)
    with ThreadPoolExecutor(max_workers=1) as threads:
        async with orchestrator_worker(client, [], threads):
            yield await builds.release(client, how, before)


async def states(client: Client) -> dict[str, str]:
    return {one.build: one.state for one in await builds.known_builds(client)}


async def test_a_new_build_becomes_current_an_older_one_that_restarts_does_not_and_one_can_go_back(
    alone: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await states(alone) == {}
    async with AsyncExitStack() as newer:
        async with orchestrator(alone, "1-a", NEW_BUILDS, monkeypatch) as said:
            assert said == "build 1-a is current"
            said = await newer.enter_async_context(orchestrator(alone, "2-b", NEW_BUILDS, monkeypatch))
            assert said == "build 2-b is current"
            assert (await states(alone))["1-a"] in ("draining", "drained")
        async with orchestrator(alone, "1-a", NEW_BUILDS, monkeypatch) as said:
            assert "goes on with its own ceremonies" in said
            assert "masterkey worker promote 1-a" in said
            assert (await states(alone))["2-b"] == "current"
            await builds.promote(alone, "1-a")
            assert (await states(alone))["1-a"] == "current"


async def test_a_build_only_registers_or_gets_a_share_if_it_is_told_to(
    alone: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with orchestrator(alone, "1-a", NEW_BUILDS, monkeypatch):
        async with orchestrator(alone, "2-b", Promotion(promote=False), monkeypatch) as said:
            assert "1-a is current" in said
            assert (await states(alone))["1-a"] == "current"
        async with orchestrator(alone, "3-c", Promotion(ramp=10), monkeypatch) as said:
            assert "10 % of new ceremonies" in said
            ramping = next(one for one in await builds.known_builds(alone) if one.build == "3-c")
            assert (ramping.state, ramping.share) == ("ramping", 10.0)


async def test_without_versioning_it_starts_only_where_no_build_is_current(
    alone: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await builds.check_unversioned(alone)
    async with orchestrator(alone, "1-a", NEW_BUILDS, monkeypatch):
        with pytest.raises(ConfigurationInvalid, match="build 1-a is current") as refused:
            await builds.check_unversioned(alone)
        assert "masterkey worker promote --unversioned" in refused.value.next_step
        await builds.promote(alone, "")
        await builds.check_unversioned(alone)


async def test_a_server_without_versioning_is_named_with_what_to_do(environment: WorkflowEnvironment) -> None:
    with pytest.raises(ConfigurationInvalid, match="no worker versioning") as refused:
        await builds.known_builds(environment.client)
    assert "--unversioned" in refused.value.next_step
    assert await builds.check_unversioned(environment.client) == []


async def test_a_client_that_may_not_ask_is_not_told_that_the_server_is_too_old(
    alone: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def denied(*_: object, **__: object) -> None:
        raise RPCError("you may not describe deployments", RPCStatusCode.PERMISSION_DENIED, b"")

    monkeypatch.setattr(alone.workflow_service, "describe_worker_deployment", denied)
    with pytest.raises(ConfigurationInvalid, match="you may not describe deployments") as refused:
        await builds.known_builds(alone)
    assert "newer server" not in refused.value.next_step
    assert "give this client the right" in refused.value.next_step


async def test_no_answer_in_time_is_not_the_end_of_a_ceremony(alone: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, ceremony = running.ended(alone), new_ceremony_id("mk-0", "init")
    assert await asyncio.to_thread(ended, ceremony) is True, "Temporal knows of none"

    async def slow(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(running, "find", slow)
    monkeypatch.setattr(running, "_ASK_SECONDS", 0.1)
    assert await asyncio.to_thread(ended, ceremony) is False


def test_a_build_is_named_by_every_file_of_the_workflow_code_and_by_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "workflows" / "steps").mkdir(parents=True)
    (tmp_path / "activities").mkdir()
    first, second = tmp_path / "workflows" / "__init__.py", tmp_path / "workflows" / "steps" / "plan.py"
    first.write_text("")
    second.write_text("a = 1\n")
    monkeypatch.setattr("workers.builds.workflows.__file__", str(first))
    seen = [builds.code_digest("workflows")]

    def change(what: Callable[[], object]) -> None:
        what()
        seen.append(builds.code_digest("workflows"))

    change(lambda: second.write_text("a = 2\n"))
    change(lambda: second.rename(second.with_name("other.py")))
    change(lambda: (tmp_path / "workflows" / "more.py").write_text(""))
    assert len(set(seen)) == 4
    (tmp_path / "activities" / "new.py").write_text("")
    (tmp_path / "workflows" / "README.md").write_text("words")
    assert builds.code_digest("workflows") == seen[-1]
