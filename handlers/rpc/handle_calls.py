"""Calls that handles make: pickled arguments in, pickled results out; exceptions travel as they are.

Their method is "handle/one/NAME", or "handle/stream/NAME" where the answer is a stream. The ingress lets no client's
call through that does not begin with "/", so nothing that a client sends is unpickled.
What must not live here: the caller's end (links.py), a client's calls (client_calls.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actorserve.actors.messages import Cardinality, Ending
from actorserve.handlers.rpc.call import RpcCall
from actorserve.handlers.rpc.deployment_calls import Calls, Replica, senders
from actorserve.handlers.rpc.instance import Instance
from actorserve.handlers.rpc.methods import Method
from actorserve.serve.codec import packed_error, packed_result, read_arguments
from actorserve.serve.context import RequestContext

HANDLE = "handle/"


class Methods(dict[str, Method]):
    """Rpcs by full name, and what handles call by "handle/NAME"."""

    def __init__(self, replica: Replica, rpcs: Mapping[str, Method]) -> None:
        super().__init__(rpcs)
        self._replica = replica

    def get(self, name: str, default: Any = None) -> Any:
        """An rpc, or what a handle calls; a method's first call settles who streams, so each name has two keys."""
        if not name.startswith(HANDLE):
            return super().get(name, default)
        found = super().get(name)
        if found is None:
            stream = name.startswith(f"{HANDLE}stream/")
            found = self[name] = handle_method(self._replica, name.rpartition("/")[2], stream=stream)
        return found


def handle_method(replica: Replica, name: str, *, stream: bool) -> Method:
    """What a handle's call of one method does."""
    called = HandleCalls(replica.instance, name, stream=stream)
    cardinality = Cardinality.UNARY_STREAM if stream else Cardinality.UNARY_UNARY
    return Method(cardinality, Calls(replica, name, called.answer).begin)


class HandleCalls:
    """Answers calls of one method of the instance."""

    def __init__(self, instance: Instance, name: str, *, stream: bool) -> None:
        self._instance = instance
        self._name = name
        self._stream = stream

    async def answer(self, call: RpcCall, asked: RequestContext) -> Ending:
        """Answer one; what the method raises is the answer."""
        instance = self._instance
        try:
            method = instance.method(self._name)
            if method is None:
                raise AttributeError(f"deployment {asked.deployment} has no method {self._name!r}")
            args, kwargs = read_arguments(call.opened.data or b"")
            if not self._stream:
                return Ending(data=packed_result(await instance.call(method, args, kwargs)))
            send, send_blocking = senders(call, packed_result)
            await instance.stream(method, args, kwargs, send=send, send_blocking=send_blocking)
            return Ending()
        except Exception as error:  # noqa: BLE001  # the user's, for the caller to raise
            data = packed_error(error)
        if not self._stream:
            return Ending(data=data)
        await call.room()
        call.send(data)
        return Ending()
