"""What a one-shot process is asked: one request, told apart by the name of its type, so that a table says who answers.

Requests stay between a worker and its own child. What travels through Temporal is in `workflows.contracts.messages`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from workflows.contracts.trust.canonical import Message
from workflows.contracts.trust.errors import ApprovalInvalid


class Asked(Message):
    """A request on its way into a one-shot process.

    Attributes:
        kind: name of the request's class.
        body: its JSON.
    """

    kind: str
    body: str

    @classmethod
    def of(cls, request: Message, **more: Any) -> Self:
        """This request, with what else a subclass carries."""
        return cls(kind=type(request).__name__, body=request.model_dump_json(), **more)

    def request(self, kinds: Iterable[type[Message]]) -> Message:
        """The request again, one of these kinds.

        Raises:
            ApprovalInvalid: it is of another kind.
        """
        for kind in kinds:
            if kind.__name__ == self.kind:
                return kind.model_validate_json(self.body)
        raise ApprovalInvalid("a one-shot process was asked for something that it does not do")
