"""Servicers with a memory, for what only shows while calls run: blocking, and asyncio."""

# ruff: noqa: N802  # names of rpcs

import asyncio
import os
import sys
import threading
import time

import diff_pb2
import diff_pb2_grpc
import grpc

RELEASE = threading.Event()
COUNTS = {"held": 0, "produced": 0, "taken": 0, "gone": 0, "closed": 0}


class Busy(diff_pb2_grpc.DiffServicer):
    """Blocking."""

    def One(self, request, context):
        match request.case:
            case "count":
                return diff_pb2.Told(number=COUNTS[request.data.decode()])
            case "release":
                RELEASE.set()
            case "hold":
                context.add_callback(self.gone)
                COUNTS["held"] += 1
                while context.is_active() and not RELEASE.is_set():
                    time.sleep(0.005)
            case "die":
                os._exit(7)
            case "exit":
                sys.exit(1)
            case "no-text":
                context.set_trailing_metadata((("x-number", 5),))
            case "pid":
                return diff_pb2.Told(number=os.getpid())
        return diff_pb2.Told(text=request.case)

    @staticmethod
    def gone():
        COUNTS["gone"] += 1

    def Many(self, request, context):
        try:
            while True:
                COUNTS["produced"] += 1
                yield diff_pb2.Told(data=bytes(request.count))
        finally:
            COUNTS["closed"] += 1

    def Collect(self, request_iterator, context):
        RELEASE.wait(30)
        for _ in request_iterator:
            COUNTS["taken"] += 1
        return diff_pb2.Told(number=COUNTS["taken"])

    def Talk(self, request_iterator, context):
        try:
            for request in request_iterator:
                yield diff_pb2.Told(number=request.count)
        finally:
            COUNTS["closed"] += 1


class AsyncBusy(diff_pb2_grpc.DiffServicer):
    """With `async`."""

    def __init__(self):
        self.released = asyncio.Event()
        asyncio.get_running_loop()  # made on the loop, as code for grpc.aio expects

    async def One(self, request, context):
        match request.case:
            case "count":
                return diff_pb2.Told(number=COUNTS[request.data.decode()])
            case "release":
                self.released.set()
            case "hold":
                COUNTS["held"] += 1
                try:
                    await self.released.wait()
                finally:
                    COUNTS["gone"] += 1
            case "block":
                time.sleep(request.count)  # noqa: ASYNC251  # the case
        return diff_pb2.Told(text=request.case)

    async def Many(self, request, context):
        try:
            while True:
                COUNTS["produced"] += 1
                yield diff_pb2.Told(data=bytes(request.count))
        finally:
            COUNTS["closed"] += 1

    async def Collect(self, request_iterator, context):
        await self.released.wait()
        async for _ in request_iterator:
            COUNTS["taken"] += 1
        return diff_pb2.Told(number=COUNTS["taken"])


class Empty:
    """Neither a servicer nor a service."""


class Raises(diff_pb2_grpc.DiffServicer):
    """Cannot be made."""

    def __init__(self):
        raise ValueError("no model here")


class Metadata(diff_pb2_grpc.DiffServicer):
    """Says and sets metadata; knows its caller."""

    def One(self, request, context):
        match request.case:
            case "who":
                known = context.auth_context()
                kinds = [known["transport_security_type"], known["security_level"]]
                return diff_pb2.Told(text=repr((context.peer_identity_key(), context.peer_identities(), kinds)))
            case "wrong-trailer":
                context.set_trailing_metadata((("x-Wrong", "upper case"),))
            case "wrong-initial":
                context.send_initial_metadata((("x y", "a space"),))
            case "compress":
                context.set_compression(grpc.Compression.Gzip)
        return diff_pb2.Told(data=bytes(request.count))
