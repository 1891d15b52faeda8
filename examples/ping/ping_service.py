"""TestService: a plain grpcio servicer, which could run under grpc.server() as it is.

config.toml beside it has actorserve run it, two replicas of it. docs/bring-your-own-schema.md tells more.
"""

import logging
import threading

import grpc
import ping_pb2
import ping_pb2_grpc

log = logging.getLogger(__name__)


class TestService(ping_pb2_grpc.TestServiceServicer):
    """Made once in each replica."""

    def Ping(  # noqa: N802  # the rpc's name
        self, request: ping_pb2.PingRequest, context: grpc.ServicerContext
    ) -> ping_pb2.PingReply:
        """Answer, unless the request says otherwise."""
        if request.no_reply:
            wait_for_the_end(context)
        return ping_pb2.PingReply()

    def PingTimeout(  # noqa: N802  # as above
        self, _: ping_pb2.PingTimeoutRequest, context: grpc.ServicerContext
    ) -> ping_pb2.PingTimeoutReply:
        """Take longer than anybody waits."""
        log.info("%s has %.1f s", context.peer(), context.time_remaining())
        wait_for_the_end(context)
        return ping_pb2.PingTimeoutReply()


def wait_for_the_end(context: grpc.ServicerContext) -> None:
    """Wait until the caller has gone, or his deadline has passed."""
    over = threading.Event()
    if context.add_callback(over.set):
        over.wait()
