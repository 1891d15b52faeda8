"""A grpclib service that knows nothing of actorserve: grpclib's own server and ours must answer alike."""

# ruff: noqa: C901, PLR0911, PLR0912  # one list of cases, in the order of the test
# ruff: noqa: N802  # names of rpcs; a package that one case needs

import asyncio

import diff_grpc
import diff_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from grpclib.const import Status
from grpclib.exceptions import GRPCError

GONE = asyncio.Event()


async def one(ask, stream):
    """What `One` and the others do in a case; the answer, or None where they have given it."""
    match ask.case:
        case "echo":
            return diff_pb2.Told(text="echo", number=ask.count, data=ask.data)
        case "seen":
            metadata = sorted((key, str(value)) for key, value in stream.metadata.items())
            left = None if stream.deadline is None else round(stream.deadline.time_remaining() / 10)
            host, port = stream.peer.addr()
            return diff_pb2.Told(text=repr((metadata, left, host, type(port), stream.peer.cert(), stream.user_agent)))
        case "raise":
            raise ValueError("not told")
        case "status":
            raise GRPCError(Status.NOT_FOUND, "no such thing: ä")
        case "status-empty":
            raise GRPCError(Status.ABORTED)
        case "rich":
            raise GRPCError(Status.FAILED_PRECONDITION, "rich", [ErrorInfo(reason="WHY", domain="diff")])
        case "trailers":
            if ask.count == 0:
                await stream.send_message(diff_pb2.Told(text="with trailers"))
            await stream.send_trailing_metadata(metadata=[("x-twice", "a"), ("x-twice", "b"), ("x-b-bin", b"\1\2")])
            return None
        case "trailers-status":
            await stream.send_trailing_metadata(
                status=Status.DATA_LOSS, status_message="lost", metadata={"x-trailer": "kept"}
            )
            raise ValueError("dropped")
        case "initial":
            await stream.send_initial_metadata(metadata={"x-initial": "first", "x-i-bin": b"\0\1"})
            return diff_pb2.Told(text="after initial")
        case "initial-twice":
            await stream.send_initial_metadata()
            await stream.send_initial_metadata()
        case "nothing":
            return None
        case "twice":
            await stream.send_message(diff_pb2.Told(text="one"))
            await stream.send_message(diff_pb2.Told(text="two"))
        case "wrong-type":
            await stream.send_message(diff_pb2.Ask())
        case "cancel":
            await stream.cancel()
        case "sleep":
            await asyncio.sleep(ask.count / 1000)
            return diff_pb2.Told(text="slept")
        case "timeout":
            raise TimeoutError
    return None


class Service(diff_grpc.DiffBase):
    """See the module's docstring."""

    async def One(self, stream):
        told = await one(await stream.recv_message(), stream)
        if told is not None:
            await stream.send_message(told)

    async def Many(self, stream):
        request = await stream.recv_message()
        case, _, inner = request.case.partition(":")
        for number in range(request.count):
            await stream.send_message(diff_pb2.Told(number=number, data=request.data))
        if case == "then":
            told = await one(diff_pb2.Ask(case=inner, count=1), stream)
            if told is not None:
                await stream.send_message(told)

    async def Collect(self, stream):
        total = 0
        async for request in stream:
            if request.case:
                told = await one(request, stream)
                if told is not None:
                    await stream.send_message(told)
                return
            total += request.count
        await stream.send_message(diff_pb2.Told(number=total))

    async def Talk(self, stream):
        async for request in stream:
            told = await one(request, stream)
            if told is not None:
                await stream.send_message(told)
