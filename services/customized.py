"""DescribeModel with `customized`: what a model's handler says of itself, as a message to the model's mailbox.

The rules are TorchServe 0.12's, as measured: an empty answer is no `customizedMetadata`, and what is no JSON object
is an empty one; so is what cannot be printed, and there is a limit, since everybody waits while it is printed.
What must not live here: the description itself (describe.py), statuses (status.py).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from actorserve.actors.mailbox import Mailbox
from actorserve.actors.messages import Describe
from actorserve.errors import TooLarge
from actorserve.services.inference import deadline_of

if TYPE_CHECKING:
    from actorserve.services.transport.server import ServerStream


MOST_BYTES = 256 << 10
MOST_LEVELS = 100


async def ask_handler(stream: ServerStream, mailbox: Mailbox) -> dict[str, Any] | None:
    """What a handler says of itself; None for nothing. Raises what any question to the model may end with; TooLarge.

    Waits behind the batches that are queued, within the call's deadline; cancelling withdraws the question.
    """
    reply = mailbox.ask(Describe(id=stream.ensure_request_id()), deadline_of(stream))
    try:
        answer = await reply.wait()
    finally:
        reply.abandon()
    if len(answer.data) > MOST_BYTES:
        raise TooLarge("what the handler says of itself", len(answer.data), MOST_BYTES)
    return read_metadata(answer.data)


def read_metadata(data: bytes) -> dict[str, Any] | None:
    """An answer's JSON object; None for no bytes, an empty object for whatever else they are."""
    if not data:
        return None
    try:
        said = json.loads(data)
        json.dumps(said, ensure_ascii=False).encode()  # half of a character has no bytes
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) and _is_flat(said) else {}


def _is_flat(value: Any) -> bool:
    """Whether it has no more levels than can be printed."""
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        level = [one for one in level if isinstance(one, dict | list)]
        if not level:
            return True
    return False
