"""Workers that answer nonsense: one keystore's worker can fail its own shard, and nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import Worker

from tests.driving.reading import clean, ended
from tests.workflows.gated import GatedHouse
from workflows.contracts import names
from workflows.contracts.messages.results import InitResult, UnsealResult

QUORUM = ("alice", "bob", "carol")
UNHEARD = RawValue(Payload(metadata={"encoding": b"binary/unheard-of"}, data=b"\xff\x00"))
BROKEN = RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b'{"response": '))


def fails(*details: Any, type: str = "Nonsense") -> Callable[[], Any]:  # noqa: A002
    def fail() -> Any:
        raise ApplicationError("\x1b[2Jnonsense " * 20, *details, type=type)

    return fail


def gives_up() -> Any:
    raise CancelledError("not asked to")


NONSENSE: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "a number": lambda: 7,
    "another object": lambda: {"document": "x", "signature": "y"},
    "half an object": lambda: BROKEN,
    "an unheard-of encoding": lambda: UNHEARD,
    "far too much": lambda: {
        "response": {"document": "x" * 900_000, "signature": ""},
        "ciphertext": "",
        "wrapped_dek": "",
    },
    "an unheard-of failure": fails(),
    "a failure with details of other types": fails({"next": 1}, [2], 3),
    "a failure with details that cannot be read": fails(UNHEARD, BROKEN, type="KeystoreUnavailable"),
    "a cancellation that nobody asked for": gives_up,
    "one of our errors about somebody else": fails("", "bao-2", type="CiphertextInvalid"),
}


@pytest.fixture(scope="module", name="made")
async def _made(gated: GatedHouse) -> InitResult:
    """A MasterKey in `seal` mode: any keystore suffices."""
    return await gated.init(gated.fresh_name(), "seal")


@pytest.fixture(scope="module", name="without_bao_1")
async def _without_bao_1(gated: GatedHouse, made: InitResult) -> Any:
    """The real worker of bao-1 is away."""
    gated.kill("keystore-bao-1")
    yield
    gated.start_again("keystore-bao-1")


@pytest.mark.usefixtures("without_bao_1")
@pytest.mark.parametrize("what", NONSENSE)
async def test_a_keystore_worker_that_answers_nonsense_fails_its_own_shard_only(
    gated: GatedHouse, made: InitResult, what: str
) -> None:
    @activity.defn(name=names.UNWRAP_DATA_KEY)
    async def unwrap(request: Any) -> Any:
        return NONSENSE[what]()

    async with Worker(
        gated.client,
        task_queue=names.keystore_queue("bao-1"),
        activities=[unwrap],
        graceful_shutdown_timeout=timedelta(0),
    ):
        asked = await gated.ask(made.master_key, made)
        try:
            result = UnsealResult.model_validate(await ended(asked.handle, 40))
        except TimeoutError:
            await asked.handle.terminate()
            raise
    assert len(gated.receive(asked, result, made)) == 32
    assert result.served_by == ("bao-2",)
    # The server refuses a cancellation that was not asked for, and waits: then the hedge serves before the time-out.
    assert result.failed == (("bao-1",) if what != "a cancellation that nobody asked for" else ())
    await clean(asked.handle)
