"""Asks what pictures show: `python client.py [HOST:PORT [PICTURE...]]`. A plain grpcio client."""

import sys
from pathlib import Path

import classifier_pb2
import classifier_pb2_grpc
import grpc

SAMPLES = [Path(__file__).parents[1] / "samples" / f"digit_{digit}.png" for digit in (3, 7)]


def main(address: str, pictures: list[Path]) -> None:
    """One call a picture, all at the same time; then one that is no picture."""
    with grpc.insecure_channel(address) as channel:
        stub = classifier_pb2_grpc.ImageClassificationServiceStub(channel)
        calls = [
            stub.Predict.future(classifier_pb2.ImageData(picture=path.read_bytes(), filename=path.name), timeout=30)
            for path in pictures
        ]
        for reply in (call.result() for call in calls):
            print(f"{reply.filename} shows {reply.classes[0]} ({100 * reply.probabilities[0]:.0f} %)")
        try:
            stub.Predict(classifier_pb2.ImageData(picture=b"no picture"), timeout=30)
        except grpc.RpcError as error:
            print(f"no picture: {error.code().name}")


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9000"
    main(address, [Path(one) for one in sys.argv[2:]] or SAMPLES)
