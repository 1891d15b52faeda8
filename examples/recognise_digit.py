"""Ask the model `digits` which digit a picture shows, with plain grpcio.

Run: python examples/recognise_digit.py [ADDRESS] [PICTURE]
What must not live here: anything of the server but its message types. The inputs are those of docs/zoo.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpc

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

SAMPLE = Path(__file__).parent / "samples" / "digit_7.png"
METHOD = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"


def recognise(channel: grpc.Channel, picture: bytes) -> list[float]:
    """How likely each of the ten digits is."""
    predict = channel.unary_unary(
        METHOD,
        request_serializer=PredictionsRequest.SerializeToString,
        response_deserializer=PredictionResponse.FromString,
    )
    answer = predict(PredictionsRequest(model_name="digits", input={"data": picture}), timeout=30)
    return json.loads(answer.prediction)["probabilities"]


def main() -> None:
    """Print the digit, and a bar for each that it might have been."""
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070"
    picture = Path(sys.argv[2]) if len(sys.argv) > 2 else SAMPLE
    try:
        with grpc.insecure_channel(address) as channel:
            chances = recognise(channel, picture.read_bytes())
    except grpc.RpcError as error:
        sys.exit(f"{address} did not answer: {error.code().name}: {error.details()}")
    except OSError as error:
        sys.exit(f"cannot read {picture}: {error.strerror}")
    print(f"{picture.name} shows a {chances.index(max(chances))}")
    for digit, chance in enumerate(chances):
        print(f"  {digit} {100 * chance:5.1f} % {'#' * round(40 * chance)}".rstrip())


if __name__ == "__main__":
    main()
