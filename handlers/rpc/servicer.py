"""`[[servicers]]` in the worker: a grpcio servicer class, or a grpclib service class, unmodified.

A class that has `__mapping__` is grpclib's. Any other is grpcio's: it is registered by the functions that protoc
generated beside its bases (`add_XServicer_to_server`), or by those that the options name, at a server that only
writes down what it is given. Functions without a class are a schema that others answer.
What must not live here: how a method runs (grpcio_sync.py, grpcio_aio.py, grpclib_stream.py).
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from actorserve.errors import LoadFailed
from actorserve.handlers.base import Context
from actorserve.handlers.rpc.host import RpcHost
from actorserve.handlers.rpc.methods import Method, cardinality
from actorserve.handlers.rpc.schema import schema_of


class Recorder:
    """What an `add_XServicer_to_server` function takes for a server: it writes down the handlers, by full name."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """The second of the two calls that grpcio generates, since 1.62; it names the same handlers."""
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    def add_generic_rpc_handlers(self, generic: Iterable[Any]) -> None:
        """The first, and the only one of older code."""
        for one in generic:
            found = getattr(one, "_method_handlers", None)
            if not isinstance(found, dict):
                raise LoadFailed(f"{type(one).__name__} does not say which methods it has: it cannot be routed")
            self.handlers |= found


def named(target: str, what: str) -> Any:
    """What `module:name` names; LoadFailed says which half is wrong. What the module raises goes through."""
    module_name, _, name = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and module_name.startswith(error.name):
            raise LoadFailed(f"{what} {target!r}: there is no module {error.name}") from None
        raise
    try:
        return getattr(module, name)
    except AttributeError:
        raise LoadFailed(f"{what} {target!r}: module {module_name} has no {name}") from None


def adders_of(servicer: type) -> Iterator[Callable[[Any, Any], None]]:
    """The generated functions that register a class: one for each base that has one."""
    for base in servicer.__mro__:
        module = sys.modules.get(base.__module__)
        adder = getattr(module, f"add_{base.__name__}_to_server", None)
        if callable(adder):
            yield adder


class Nobody:
    """Stands for a servicer where the schema alone is wanted."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name != "__call__":
            raise AttributeError(name)
        return self.nothing

    def nothing(self, *_: Any) -> None:
        """Never called."""


def handlers_of(adders: Iterable[Callable[[Any, Any], None]], servicer: Any, what: str) -> dict[str, Any]:
    """Handlers of grpcio by full name; LoadFailed where there are none."""
    recorder = Recorder()
    for adder in adders:
        adder(servicer, recorder)
    if not recorder.handlers:
        raise LoadFailed(
            f"{what} is neither a grpclib service (it has no __mapping__) nor a grpcio servicer: none of its bases has "
            "a generated add_..._to_server function; name one by functions = [...]"
        )
    return recorder.handlers


def _messages_of(handler: Any) -> Iterator[Any]:
    """The classes of an rpc's messages, as far as generated code shows them."""
    yield getattr(handler.request_deserializer, "__self__", None)
    yield getattr(handler.response_serializer, "__objclass__", None)


def schema_of_grpcio(handlers: dict[str, Any]) -> dict[str, Any]:
    """The schema of handlers of grpcio by full name."""
    messages = [message for handler in handlers.values() for message in _messages_of(handler)]
    return schema_of({path: cardinality(handler) for path, handler in handlers.items()}, messages)


class ServicerHost(RpcHost):
    """See the module's docstring. Options: `servicer` (module:Class, may be empty), `functions` (module:name)."""

    def __init__(self) -> None:
        super().__init__()
        self._instance: Any = None

    async def build(self, context: Context) -> None:
        """Make the servicer, and a method of each of its rpcs."""
        target = context.options["servicer"]
        made = named(target, "servicer")
        if inspect.isclass(made):
            made = made()
        self._instance = made
        if hasattr(made, "__mapping__"):
            from actorserve.handlers.rpc import grpclib_stream  # noqa: PLC0415  # only one of the two is needed

            self.methods = grpclib_stream.methods_of(made)
            return
        handlers = handlers_of(self._adders(context, type(made)), made, f"servicer {target!r}")
        self.methods = methods_of_grpcio(handlers)

    @staticmethod
    def _adders(context: Context, servicer: type) -> Iterable[Callable[[Any, Any], None]]:
        functions = context.options.get("functions") or ()
        return [named(one, "functions") for one in functions] or adders_of(servicer)

    def schema(self, context: Context) -> dict[str, Any]:
        """The schema of the class, or of the functions, without an instance."""
        target = context.options.get("servicer")
        made = named(target, "servicer") if target else Nobody
        if hasattr(made, "__mapping__"):
            from actorserve.handlers.rpc import grpclib_stream  # noqa: PLC0415  # as above

            return grpclib_stream.schema(made)
        servicer = made if inspect.isclass(made) else type(made)
        what = f"servicer {target!r}" if target else f"functions {context.options.get('functions')!r}"
        return schema_of_grpcio(handlers_of(self._adders(context, servicer), Nobody(), what))

    async def shut(self) -> None:
        """Call the servicer's `close`, where it has one."""
        close = getattr(self._instance, "close", None)
        if callable(close):
            closing = close()
            if inspect.isawaitable(closing):
                await closing


def methods_of_grpcio(handlers: dict[str, Any]) -> dict[str, Method]:
    """Handlers of grpcio as methods: under the rules of its asyncio server where one is `async`, else of its own."""
    from actorserve.handlers.rpc import grpcio_aio, grpcio_sync  # noqa: PLC0415  # they load grpc

    is_async = any(grpcio_aio.is_async(grpcio_aio.behavior_of(handler)) for handler in handlers.values())
    make = grpcio_aio.method_of if is_async else grpcio_sync.method_of
    return {path: make(handler) for path, handler in handlers.items()}
