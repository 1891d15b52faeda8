"""Calls each method of the greeter: `python client.py [HOST:PORT]`. A plain grpcio client."""

import sys

import greeter_pb2
import greeter_pb2_grpc
import grpc


def main(address: str) -> None:
    """Be greeted, hear songs, see the seats; the request's id comes back whether a call succeeds or fails."""
    application = ("application", "greeter")
    guest = greeter_pb2.Guest(name="Ada", home="London", seats=2)
    with grpc.insecure_channel(address) as channel:
        stub = greeter_pb2_grpc.GreeterServiceStub(channel)
        greet = getattr(stub, "__call__")  # noqa: B004, B009  # the rpc's name
        reply, call = greet.with_call(guest, timeout=10, metadata=(application, ("request_id", "first")))
        trailers = dict(call.trailing_metadata())
        print(f"{reply.words}: {reply.seats} seats, {trailers['seats']} in the trailers, {trailers['request_id']}")
        for language in ("en", "fr", "de"):
            song = stub.Multiplexing(
                greeter_pb2.Anybody(), timeout=10, metadata=(application, ("multiplexed_model_id", language))
            )
            print(f"{language}: {song.words}")
        for greeting in stub.Streaming(guest, timeout=10, metadata=(application,)):
            print(greeting.words)
        try:
            greet(greeter_pb2.Guest(), timeout=10, metadata=(application, ("request_id", "second")))
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}, {dict(error.trailing_metadata())['request_id']}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000")
