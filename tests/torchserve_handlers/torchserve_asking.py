"""How tests ask a handler that is loaded in this process, and read what a server sends."""

from __future__ import annotations

from actorserve.handlers.base import Request


def answer(handler, *items, **metadata):
    """One batch; each item is the input `data`."""
    return handler.infer(
        [Request({"data": item}, metadata=metadata, id=str(index)) for index, item in enumerate(items)]
    )


def messages(call):
    """All messages of a stream, as text."""
    return [message.prediction.decode() for message in call]
