"""A blocking grpcio servicer that knows nothing of actorserve: grpcio's own server and ours must answer alike.

What each case does is in the request. It writes what it sees of the context into the answer, so that the context is
compared too.
"""

# ruff: noqa: C901, PLR0911, PLR0912, PLR0915  # one list of cases, in the order of the test
# ruff: noqa: N802, PLC0415  # names of rpcs; a package that one case needs

import json
import threading
import time

import diff_pb2
import diff_pb2_grpc
import grpc

GONE = threading.Event()  # a call of the case "wait" was told that its caller has gone


def seen(context):
    """What a context tells, as text; ports of clients differ."""
    metadata = sorted(
        (key, value if isinstance(value, str) else value.hex()) for key, value in context.invocation_metadata()
    )
    left = context.time_remaining()
    return json.dumps(
        {
            "metadata": [pair for pair in metadata if pair[0].startswith("x-")],
            "names": [(one.key, len(one)) for one in context.invocation_metadata() if one.key == "x-one"],
            "agent": any(key == "user-agent" and value.startswith("grpc-python") for key, value in metadata),
            "peer": context.peer().rpartition(":")[0],
            "identities": context.peer_identities(),
            "identity_key": context.peer_identity_key(),
            "auth": {key: [value.decode() for value in values] for key, values in context.auth_context().items()},
            "deadline": None if left is None or left > 3600 else round(left / 10),
        }
    )


class Unprintable(Exception):
    """An exception without a text."""

    def __str__(self):
        raise RuntimeError("no text")


def one(ask, context):
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
        case "raise-unprintable":
            raise Unprintable
        case "raise-stop":
            raise StopIteration("stopped")
        case "raise-after-code":
            context.set_code(grpc.StatusCode.FAILED_PRECONDITION)
            raise ValueError("with a code")
        case "raise-after-details":
            context.set_details("set before")
            raise ValueError("with details")
        case "raise-after-both":
            context.set_code(grpc.StatusCode.ABORTED)
            context.set_details("both")
            context.set_trailing_metadata((("x-trailer", "kept"),))
            raise ValueError("hidden")
        case "abort":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such thing: ä")
        case "abort-trailers":
            context.set_trailing_metadata((("x-trailer", "one"), ("x-trailer", "two"), ("x-bytes-bin", b"\0\xff")))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        case "abort-empty":
            context.abort(grpc.StatusCode.INTERNAL, "")
        case "code":
            context.set_code(grpc.StatusCode.UNAUTHENTICATED)
            context.set_details("who are you?")
            return diff_pb2.Told(text="ignored")
        case "code-only":
            context.set_code(grpc.StatusCode.DATA_LOSS)
            return diff_pb2.Told()
        case "details-with-ok":
            context.set_details("all is well")
            return diff_pb2.Told(text="fine")
        case "trailers":
            context.set_trailing_metadata(
                (("x-trailer", "text"), ("x-twice", "a"), ("x-twice", "b"), ("x-b-bin", b"\1\2"))
            )
            return diff_pb2.Told(text="with trailers")
        case "initial":
            context.send_initial_metadata((("x-initial", "first"), ("x-i-bin", b"\0\1")))
            return diff_pb2.Told(text="after initial")
        case "initial-twice":
            context.send_initial_metadata((("x-initial", "first"),))
            context.send_initial_metadata((("x-initial", "second"),))
        case "initial-then-raise":
            context.send_initial_metadata((("x-initial", "first"),))
            raise ValueError("after initial metadata")
        case "getters":
            context.set_code(grpc.StatusCode.OK)
            context.set_details("abc")
            context.set_trailing_metadata((("x-t", "v"),))
            told = (context.code(), context.details(), context.trailing_metadata())
            context.set_details("")
            return diff_pb2.Told(text=repr(told))
        case "none":
            return None
        case "wrong-type":
            return diff_pb2.Ask(case="not a Told")
        case "no-message":
            return "text"
        case "sleep":
            time.sleep(ask.count / 1000)
            return diff_pb2.Told(text="slept")
        case "cancel":
            context.cancel()
            return diff_pb2.Told(text="too late")
        case "wait":
            context.add_callback(GONE.set)
            while context.is_active():
                time.sleep(0.01)
            raise ValueError("nobody hears this")
        case "was-gone":
            return diff_pb2.Told(number=GONE.wait(10))
        case "rich":
            from google.rpc.error_details_pb2 import ErrorInfo
            from google.rpc.status_pb2 import Status
            from grpc_status import rpc_status

            status = Status(code=9, message="rich")
            status.details.add().Pack(ErrorInfo(reason="WHY", domain="diff"))
            context.abort_with_status(rpc_status.to_status(status))
        case "large":
            return diff_pb2.Told(data=bytes(ask.count))
    raise NotImplementedError(ask.case)


class Servicer(diff_pb2_grpc.DiffServicer):
    """See the module's docstring."""

    def One(self, request, context):
        return one(request, context)

    def Many(self, request, context):
        case, _, inner = request.case.partition(":")
        if case == "early":  # before it is a generator
            return one(diff_pb2.Ask(case=inner), context)
        return self._many(request, context, case, inner)

    def _many(self, request, context, case, inner):
        for number in range(request.count):
            yield diff_pb2.Told(number=number, data=request.data)
        if case == "then":
            told = one(diff_pb2.Ask(case=inner), context)
            if told is not None:
                yield told
        if case == "forever":
            context.add_callback(GONE.set)
            while True:
                yield diff_pb2.Told(data=bytes(1000))

    def Collect(self, request_iterator, context):
        total, size = 0, 0
        for request in request_iterator:
            if request.case != "":
                return one(request, context)
            total += request.count
            size += len(request.data)
        return diff_pb2.Told(number=total, text=str(size))

    def Talk(self, request_iterator, context):
        for request in request_iterator:
            told = one(request, context)
            if told is not None:
                yield told
