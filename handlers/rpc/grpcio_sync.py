"""A servicer of blocking `def`s, run in threads as grpcio's own server runs it: the same answers, codes and metadata.

The rules, found by asking grpcio 1.85's server (tests/rpc compares):
1. A status that the servicer has set wins over what an exception would say; its details too.
2. An exception: UNKNOWN "Exception calling application: TEXT"; from the iterator of a stream: "Exception iterating
   responses: TEXT". After `abort` any exception means the abort.
3. What does not decode is INTERNAL "Exception deserializing request!"; what does not encode, INTERNAL "Failed to
   serialize response!".
4. A caller who has gone: `is_active()` is false, callbacks run, the request iterator raises, nothing more is sent.
What must not live here: asyncio code (grpcio_aio.py), contexts (grpcio_sync_context.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from actorserve.actors.messages import Ending
from actorserve.handlers.rpc.call import RpcCall
from actorserve.handlers.rpc.grpcio_peer import CANCELLED, INTERNAL, UNKNOWN
from actorserve.handlers.rpc.grpcio_sync_context import Context, Requests, decoded, packed
from actorserve.handlers.rpc.methods import Method, cardinality

log = logging.getLogger("actorserve.rpc")


def _text_of(error: BaseException, what: str) -> str:
    try:
        return f"{what}: {error}"
    except Exception:  # noqa: BLE001  # the servicer's class
        return "Calling application raised unprintable Exception!"


def method_of(handler: Any) -> Method:
    """One rpc of a blocking servicer."""
    streams = handler.response_streaming
    behavior = getattr(handler, _BEHAVIORS[handler.request_streaming, streams])
    decode, encode = handler.request_deserializer, handler.response_serializer
    run = _run_stream if streams else _run_unary

    def begin(call: RpcCall) -> None:
        call.engine.pool.submit(_guarded, run, call, behavior, decode, encode)

    return Method(cardinality(handler), begin)


_BEHAVIORS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def _argument(call: RpcCall, context: Context, decode: Any) -> Any:
    """The request, or the iterator of requests; None: the call is over."""
    if call.cancelled:
        context.finish(None, CANCELLED)
        return None
    if call.opened.data is None:
        return Requests(call, context, decode)
    request = decoded(decode, call.opened.data)
    if request is None:
        context.fail(INTERNAL, "Exception deserializing request!")
    return request


def _called(call: RpcCall, context: Context, what: str, behave: Callable[..., Any], *args: Any) -> tuple[Any, bool]:
    """What the servicer gives, and whether it gave anything (rule 2)."""
    try:
        return behave(*args), True
    except Exception as error:
        if behave is next and isinstance(error, StopIteration):
            return None, True
        if context.aborted:
            context.fail(UNKNOWN, "RPC Aborted")
        elif error is context.rpc_error:
            context.finish(None, CANCELLED)
        else:
            text = _text_of(error, what)
            log.exception("%s: %s", call.opened.method, text)
            context.fail(UNKNOWN, text)
    return None, False


def _guarded(run: Callable[..., None], call: RpcCall, *args: Any) -> None:
    """Run a call: it ends, whatever happens, `sys.exit` in a thread included."""
    try:
        run(call, *args)
    except BaseException as error:
        log.exception("%s failed", call.opened.method)
        call.end(Ending(UNKNOWN, f"Exception calling application: {type(error).__name__}"))


def _run_unary(call: RpcCall, behavior: Any, decode: Any, encode: Any) -> None:
    context = Context(call)
    argument = _argument(call, context, decode)
    if argument is None:
        return
    answer, proceed = _called(call, context, "Exception calling application", behavior, argument, context)
    if not proceed:
        return
    data = packed(encode, answer)
    if data is None:
        context.fail(INTERNAL, "Failed to serialize response!")
    else:
        context.finish(data)


def _run_stream(call: RpcCall, behavior: Any, decode: Any, encode: Any) -> None:
    context = Context(call)
    argument = _argument(call, context, decode)
    if argument is None:
        return
    answers, proceed = _called(call, context, "Exception calling application", behavior, argument, context)
    while proceed and call.room_blocking():
        answer, proceed = _called(call, context, "Exception iterating responses", next, answers)
        if not proceed:
            break
        if answer is None:  # the end, or what grpcio takes for it
            context.finish(None)
            return
        data = packed(encode, answer)
        if data is None:
            context.fail(INTERNAL, "Failed to serialize response!")
            break
        context.begin_answer()
        call.send(data)
    close = getattr(answers, "close", None)
    if call.cancelled and callable(close):
        close()
    if not call.ended:
        context.finish(None, CANCELLED)


__all__ = ["Context", "method_of"]
