"""Have the model `smollm2` tell a story, and print each piece as it comes, with plain grpcio.

Run: python examples/stream_story.py [ADDRESS] [WHAT TO SAY]
What must not live here: anything of the server but its message types. The inputs are those of docs/zoo.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import grpc

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

SAID = "Tell me a very short story about a lighthouse keeper and a whale."
METHOD = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/StreamPredictions"


def stream(channel: grpc.Channel, said: str) -> Iterator[str]:
    """The answer, piece by piece. Leave the loop early and the server stops, too."""
    predict = channel.unary_stream(
        METHOD,
        request_serializer=PredictionsRequest.SerializeToString,
        response_deserializer=PredictionResponse.FromString,
    )
    tuning = {"max_tokens": b"120", "temperature": b"0.7", "top_p": b"0.9", "seed": b"11"}
    request = PredictionsRequest(model_name="smollm2", input={"data": said.encode(), **tuning})
    for piece in predict(request, timeout=120):
        yield piece.prediction.decode()


def main() -> None:
    """Print the story as it is told, then how fast it came."""
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070"
    said = " ".join(sys.argv[2:]) or SAID
    began, pieces = time.monotonic(), 0
    try:
        with grpc.insecure_channel(address) as channel:
            for piece in stream(channel, said):
                print(piece, end="", flush=True)
                pieces += 1
    except grpc.RpcError as error:
        sys.exit(f"{address} did not answer: {error.code().name}: {error.details()}")
    print(f"\n\n({pieces} pieces in {time.monotonic() - began:.1f} s)")


if __name__ == "__main__":
    main()
