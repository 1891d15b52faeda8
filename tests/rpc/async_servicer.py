"""The same for grpcio's asyncio server: an `async` servicer that knows nothing of actorserve; and plain methods."""

# ruff: noqa: C901, PLR0911, PLR0912, PLR0915  # one list of cases, in the order of the test
# ruff: noqa: N802  # names of rpcs; a package that one case needs

import asyncio
import contextlib

import diff_pb2
import diff_pb2_grpc
import grpc
from blocking_servicer import Unprintable, seen

GONE = asyncio.Event()


async def one(ask, context):
    """What `One` and the others do in a case."""
    match ask.case:
        case "echo":
            return diff_pb2.Told(text="echo", number=ask.count, data=ask.data)
        case "seen":
            return diff_pb2.Told(text=seen(context))
        case "raise":
            raise ValueError("wrong: ünïcode % and\nnewline")
        case "raise-empty":
            raise KeyError
        case "raise-after-code":
            context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
            raise ValueError("with a code")
        case "raise-after-both":
            context.set_code(grpc.StatusCode.ABORTED)
            context.set_details("both")
            context.set_trailing_metadata((("x-trailer", "kept"),))
            raise ValueError("not hidden")
        case "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: ä")
        case "abort-trailers":
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("x-trailer", "one"), ("x-trailer", "two"))
            )
        case "abort-with-what-was-set":
            context.set_trailing_metadata((("x-trailer", "before"),))
            context.set_details("said before")
            await context.abort(grpc.StatusCode.INTERNAL)
        case "abort-caught":
            with contextlib.suppress(grpc.aio.AbortError):
                await context.abort(grpc.StatusCode.INTERNAL, "caught")
            return diff_pb2.Told(text="too late")
        case "code":
            context.set_code(grpc.StatusCode.UNAUTHENTICATED)
            context.set_details("who are you?")
            return diff_pb2.Told(text="ignored")
        case "code-number":
            context.set_code(7)
            context.set_details("by number")
            return diff_pb2.Told()
        case "details-with-ok":
            context.set_details("all is well")
            return diff_pb2.Told(text="fine")
        case "trailers":
            context.set_trailing_metadata(
                (("x-trailer", "text"), ("x-twice", "a"), ("x-twice", "b"), ("x-b-bin", b"\1\2"))
            )
            return diff_pb2.Told(text="with trailers")
        case "trailers-wrong":
            context.set_trailing_metadata("text")
        case "initial":
            await context.send_initial_metadata((("x-initial", "first"), ("x-i-bin", b"\0\1")))
            return diff_pb2.Told(text="after initial")
        case "initial-twice":
            await context.send_initial_metadata((("x-initial", "first"),))
            await context.send_initial_metadata((("x-initial", "second"),))
        case "getters":
            before = (
                context.code(),
                context.details(),
                context.trailing_metadata(),
                context.done(),
                context.cancelled(),
            )
            context.set_code(grpc.StatusCode.OK)
            context.set_trailing_metadata((("x-t", "v"),))
            return diff_pb2.Told(text=repr((before, context.code(), context.trailing_metadata())))
        case "none":
            return None
        case "no-message":
            return "text"
        case "wait":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                GONE.set()
                raise
        case "was-gone":
            async with asyncio.timeout(10):
                await GONE.wait()
            return diff_pb2.Told(number=1)
        case "sleep":
            await asyncio.sleep(ask.count / 1000)
            return diff_pb2.Told(text="slept")
        case "cancel-itself":
            asyncio.current_task().cancel()
            await asyncio.sleep(0)
        case "unprintable":
            raise Unprintable
    raise NotImplementedError(ask.case)


class Servicer(diff_pb2_grpc.DiffServicer):
    """See the module's docstring."""

    async def One(self, request, context):
        return await one(request, context)

    async def Many(self, request, context):
        case, _, inner = request.case.partition(":")
        for number in range(request.count):
            yield diff_pb2.Told(number=number, data=request.data)
        if case == "then":
            told = await one(diff_pb2.Ask(case=inner), context)
            if told is not None:
                yield told

    async def Collect(self, request_iterator, context):
        total, size = 0, 0
        async for request in request_iterator:
            if request.case != "":
                return await one(request, context)
            total += request.count
            size += len(request.data)
        return diff_pb2.Told(number=total, text=str(size))

    async def Talk(self, request_iterator, context):
        while (request := await context.read()) is not grpc.aio.EOF:
            told = await one(request, context)
            if told is not None:
                await context.write(told)


class Mixed(diff_pb2_grpc.DiffServicer):
    """Plain methods beside one that is `async`."""

    def One(self, request, context):
        match request.case:
            case "abort":
                context.abort(grpc.StatusCode.NOT_FOUND, "from a thread")
            case "raise":
                raise ValueError("from a thread")
            case "initial":
                context.send_initial_metadata((("x-initial", "thread"),))
        return diff_pb2.Told(text="plain", number=request.count)

    def Many(self, request, context):
        for number in range(request.count):
            yield diff_pb2.Told(number=number)
        if request.case == "raise":
            raise ValueError("from a generator")

    def Collect(self, request_iterator, context):
        return diff_pb2.Told(number=sum(request.count for request in request_iterator))

    async def Talk(self, request_iterator, context):
        async for request in request_iterator:
            yield diff_pb2.Told(number=request.count)
