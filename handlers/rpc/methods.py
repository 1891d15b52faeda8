"""What an rpc is to the engine: who streams in it, and what begins a call of it.

What must not live here: running it (grpcio_sync.py, grpcio_aio.py, grpclib_stream.py, deployments).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from actorserve.actors.messages import Cardinality
from actorserve.handlers.rpc.call import RpcCall


class Method(NamedTuple):
    """One rpc. `begin` is called on the loop, returns at once, and sees to it that the call ends.

    `cardinality`: None takes calls of any.
    """

    cardinality: Cardinality | None
    begin: Callable[[RpcCall], None]


def cardinality_of(*, client_streams: bool, server_streams: bool) -> Cardinality:
    """The cardinality of who streams."""
    return Cardinality(2 * client_streams + server_streams)


def cardinality(handler: Any) -> Cardinality:
    """Who streams in an rpc of grpcio's."""
    return cardinality_of(client_streams=handler.request_streaming, server_streams=handler.response_streaming)
