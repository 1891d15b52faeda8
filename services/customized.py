"""DescribeModel with `customized`: what a model's handler says of itself, as a message to the model's mailbox.

The rules are TorchServe 0.12's, as measured: an empty answer is no `customizedMetadata`, and what is no JSON object
is an empty one. What must not live here: the description itself (describe.py), statuses (status.py).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import Describe
from actorserve.services.inference import deadline_of

if TYPE_CHECKING:
    from actorserve.services.transport.server import ServerStream


async def ask_handler(stream: ServerStream, mailbox: Mailbox) -> dict[str, Any] | None:
    """What a handler says of itself; None for nothing. Raises what any question to the model may end with.

    Waits behind the batches that are queued, within the call's deadline; cancelling withdraws the question.
    """
    reply = mailbox.ask(Describe(id=stream.ensure_request_id()), deadline_of(stream))
    try:
        answer = await reply.wait()
    finally:
        reply.abandon()
    return read_metadata(answer.data)


def read_metadata(data: bytes) -> dict[str, Any] | None:
    """An answer's JSON object; None for no bytes, an empty object for whatever else they are."""
    if not data:
        return None
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
