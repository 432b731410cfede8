"""Requests to ceremonies, made from what was typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from workflows.contracts.messages.requests import ShardRequest
from workflows.contracts.names import new_ceremony_id
from workflows.contracts.trust.errors import PlanInvalid
from workflows.contracts.trust.fields import Action

M = TypeVar("M", bound=BaseModel)

_COMMANDS: dict[Action, str] = {"lift": "seal", "retire": "reshard"}
"""The command that begins an action, where it has another name."""


def shard_requests(words: Sequence[str] | None) -> tuple[ShardRequest, ...]:
    """Shards from words of the form `NAME` or `NAME:CUSTODIAN[+DEPUTY...]`.

    Raises:
        PlanInvalid: a word is not of that form.
    """
    shards = []
    for word in words or ():
        keystore, _, custodians = word.partition(":")
        try:
            shards.append(ShardRequest(keystore=keystore, custodians=tuple(filter(None, custodians.split("+")))))
        except ValidationError:
            raise PlanInvalid(
                f"{word!r} names no keystore", next_step="write --keystore NAME or --keystore NAME:CUSTODIAN+DEPUTY"
            ) from None
    return tuple(shards)


def request(kind: type[M], action: Action, master_key: str, /, **fields: Any) -> M:
    """A request to start a ceremony of a MasterKey, with an id of its own; raises as `validated`."""
    made = {"ceremony": new_ceremony_id(master_key, action), "master_key": master_key}
    return validated(kind, {**made, **fields}, _COMMANDS.get(action, action))


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


def in_seconds(hours: float) -> int:
    """Hours as they are typed, in whole seconds."""
    return round(hours * 3600)
