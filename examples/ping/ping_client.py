"""Calls TestService with plain grpcio: python examples/ping/ping_client.py [ADDRESS]."""

import sys

import grpc
import ping_pb2
import ping_pb2_grpc


def main(address: str) -> None:
    """Ping once, then wait for an answer that does not come."""
    with grpc.insecure_channel(address) as channel:
        stub = ping_pb2_grpc.TestServiceStub(channel)
        stub.Ping(ping_pb2.PingRequest(), timeout=10, wait_for_ready=True)
        print("Ping: answered")
        for rpc, request in (
            (stub.Ping, ping_pb2.PingRequest(no_reply=True)),
            (stub.PingTimeout, ping_pb2.PingTimeoutRequest()),
        ):
            try:
                rpc(request, timeout=0.5)
            except grpc.RpcError as error:
                print(f"no answer: {error.code().name}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000")
