"""Ask the model `image` what a photo shows, with plain grpcio.

Run: python examples/classify_photo.py [ADDRESS] [PHOTO]
What must not live here: anything of the server but its message types. The inputs are those of docs/zoo.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import grpc

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

SAMPLE = Path(__file__).parent / "samples" / "cat.jpg"
METHOD = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"


def classify(channel: grpc.Channel, photo: bytes) -> list[dict[str, Any]]:
    """The five likeliest labels."""
    predict = channel.unary_unary(
        METHOD,
        request_serializer=PredictionsRequest.SerializeToString,
        response_deserializer=PredictionResponse.FromString,
    )
    answer = predict(PredictionsRequest(model_name="image", input={"data": photo, "top": b"5"}), timeout=30)
    return json.loads(answer.prediction)


def main() -> None:
    """Print the labels, the likeliest first."""
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070"
    photo = Path(sys.argv[2]) if len(sys.argv) > 2 else SAMPLE
    try:
        with grpc.insecure_channel(address) as channel:
            labels = classify(channel, photo.read_bytes())
    except grpc.RpcError as error:
        sys.exit(f"{address} did not answer: {error.code().name}: {error.details()}")
    except OSError as error:
        sys.exit(f"cannot read {photo}: {error.strerror}")
    print(f"{photo.name} shows, most likely first:")
    for entry in labels:
        print(f"  {100 * entry['probability']:5.1f} % {entry['label']}")


if __name__ == "__main__":
    main()
