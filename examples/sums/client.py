"""Asks what a basket costs: `python client.py [HOST:PORT]`. A plain grpcio client with Ray's schema."""

import struct
import sys

import grpc

from actorserve.serve.generated import serve_pb2, serve_pb2_grpc


def main(address: str) -> None:
    """Ask for a price, then for the applications that run."""
    with grpc.insecure_channel(address) as channel:
        market = serve_pb2_grpc.PredictAPIsServiceStub(channel)
        reply = market.Predict(serve_pb2.PredictRequest(input={"plum": b"8", "quince": b"4"}), timeout=10)
        print(f"{struct.unpack('<f', reply.prediction)[0]:.2f} in all")
        ray = serve_pb2_grpc.RayServeAPIServiceStub(channel)
        print(ray.Healthz(serve_pb2.HealthzRequest(), timeout=10).message)
        print(*ray.ListApplications(serve_pb2.ListApplicationsRequest(), timeout=10).application_names)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000")
