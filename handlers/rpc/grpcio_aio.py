"""A servicer with `async def`s, run on the loop as grpcio's asyncio server runs it: the same answers, codes, metadata.

The rules, found by asking grpc.aio 1.85's server (tests/rpc compares):
1. An exception: "Unexpected <class 'X'>: TEXT", with the status that was set, UNKNOWN where none was.
2. `abort` sends the status at once and raises AbortError; suppressing that changes nothing.
3. A method that streams is an async generator, or a coroutine that uses `context.read` and `context.write`.
4. A plain `def` beside them runs in a thread, with a context that waits instead of awaiting.
5. A caller who has gone: the task is cancelled.
What must not live here: servicers without `async` (grpcio_sync.py), contexts (grpcio_aio_context.py).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from functools import partial
from typing import Any

from grpc.aio import AbortError

from actorserve.actors.messages import Ending
from actorserve.handlers.rpc.call import CallCancelled, RpcCall
from actorserve.handlers.rpc.grpcio_aio_context import (
    BlockingContext,
    BlockingRequests,
    Context,
    Requests,
    decoded,
    packed,
)
from actorserve.handlers.rpc.grpcio_peer import CANCELLED
from actorserve.handlers.rpc.methods import Method, cardinality

log = logging.getLogger("actorserve.rpc")


def behavior_of(handler: Any) -> Any:
    """The servicer's method."""
    name = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    return getattr(handler, name)


def is_async(behavior: Any) -> bool:
    """Whether a method is `async def`."""
    return inspect.iscoroutinefunction(behavior) or inspect.isasyncgenfunction(behavior)


def method_of(handler: Any) -> Method:
    """One rpc of a servicer that has `async` methods."""
    behavior = behavior_of(handler)
    decode, encode = handler.request_deserializer, handler.response_serializer
    if not handler.response_streaming:
        run = _unary if is_async(behavior) else _unary_in_thread
    elif inspect.iscoroutinefunction(behavior):
        run = _read_and_write
    else:
        run = _generate if inspect.isasyncgenfunction(behavior) else _generate_in_thread

    def begin(call: RpcCall) -> None:
        context = Context(call, decode, encode)
        call.spawn(_guarded(call, context, run, behavior)).add_done_callback(partial(_tell, context))

    return Method(cardinality(handler), begin)


def _tell(context: Context, _task: asyncio.Task[Any]) -> None:
    for callback in context.callbacks:
        try:
            callback(context)
        except Exception:
            log.exception("a callback of a call failed")


async def _guarded(call: RpcCall, context: Context, run: Any, behavior: Any) -> None:
    """Run a method: it ends its call, whatever happens."""
    try:
        await run(call, context, behavior)
    except asyncio.CancelledError:
        pass  # the caller has gone, or the servicer cancelled itself
    except AbortError as error:
        if error is not context.aborting:
            log.exception("%s: the abort was replaced", call.opened.method)
            context.fail(error)
    except CallCancelled:
        pass
    except Exception as error:
        log.exception("%s: unexpected %s", call.opened.method, type(error).__name__)
        context.fail(error)
    finally:
        if not call.ended:
            call.end(Ending(CANCELLED))


def _argument(call: RpcCall, context: Context, *, blocking: bool = False) -> Any:
    decode = context._decode  # noqa: SLF001  # this module's own
    if call.opened.data is not None:
        return decoded(decode, call.opened.data)
    return BlockingRequests(call, decode) if blocking else Requests(context)


async def _unary(call: RpcCall, context: Context, behavior: Any) -> None:
    answer = await behavior(_argument(call, context), context)
    context.check()
    context.finish(answer, unary=True)


async def _unary_in_thread(call: RpcCall, context: Context, behavior: Any) -> None:
    blocking = BlockingContext(context)
    argument = _argument(call, context, blocking=True)
    answer = await in_thread(call, behavior, argument, blocking)
    for callback in blocking.callbacks:
        callback()
    context.check()
    context.finish(answer, unary=True)


async def _read_and_write(call: RpcCall, context: Context, behavior: Any) -> None:
    await behavior(_argument(call, context), context)
    context.check()
    context.finish(unary=False)


async def _generate(call: RpcCall, context: Context, behavior: Any) -> None:
    answers = behavior(_argument(call, context), context)
    try:
        async for answer in answers:
            context.check()
            await context.write(answer)
    finally:
        await answers.aclose()
    context.check()
    context.finish(unary=False)


async def _generate_in_thread(call: RpcCall, context: Context, behavior: Any) -> None:
    answers = behavior(_argument(call, context, blocking=True), BlockingContext(context))
    await in_thread(call, _write_all, call, context, iter(answers))
    context.check()
    context.finish(unary=False)


def _write_all(call: RpcCall, context: Context, answers: Any) -> None:
    """In a thread: send what a plain generator gives."""
    for answer in answers:
        context.check()
        data = packed(context._encode, answer)  # noqa: SLF001  # this module's own
        if not call.room_blocking():
            break
        context.begin_answer()
        call.send(data)
    if call.cancelled:
        close = getattr(answers, "close", None)
        if callable(close):
            close()


async def in_thread(call: RpcCall, run: Any, *args: Any) -> Any:
    """What a plain function gives, run in the pool. The thread of a cancelled one goes on, and nobody listens."""
    loop = call.engine.loop
    done: asyncio.Future[Any] = loop.create_future()

    def work() -> None:
        answer: Any = None
        error: Exception | None = None
        try:
            answer = run(*args)
        except StopIteration as stop:
            error = RuntimeError(f"a plain method raised StopIteration: {stop}")
        except Exception as raised:  # noqa: BLE001  # the servicer's
            error = raised
        except BaseException as raised:  # noqa: BLE001  # such as SystemExit, which would end the thread
            error = RuntimeError(f"a plain method raised {type(raised).__name__}")
        loop.call_soon_threadsafe(_settle, done, answer, error)

    call.engine.pool.submit(work)
    return await done


def _settle(done: asyncio.Future[Any], answer: Any, error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(answer)
    else:
        done.set_exception(error)
