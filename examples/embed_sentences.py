"""Ask the model `minilm` how alike some sentences are, with plain grpcio.

Run: python examples/embed_sentences.py [ADDRESS] [SENTENCE ...]
What must not live here: anything of the server but its message types. The inputs are those of docs/zoo.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import grpc
import numpy as np

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

SENTENCES = (
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping by the sunny window.",
    "The train to Hamburg leaves at nine.",
    "When does the next railway service depart?",
)
METHOD = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"


def embed(channel: grpc.Channel, sentences: Sequence[str]) -> np.ndarray:
    """One row of 384 numbers for each sentence; all are asked at once, so that the server can batch them."""
    predict = channel.unary_unary(
        METHOD,
        request_serializer=PredictionsRequest.SerializeToString,
        response_deserializer=PredictionResponse.FromString,
    )
    calls = [
        predict.future(
            PredictionsRequest(model_name="minilm", input={"data": sentence.encode(), "format": b"f32"}), timeout=30
        )
        for sentence in sentences
    ]
    return np.stack([np.frombuffer(call.result().prediction, "<f4") for call in calls])


def main() -> None:
    """Print the sentences, and a table of how alike each two of them are."""
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070"
    sentences = sys.argv[2:] or SENTENCES
    try:
        with grpc.insecure_channel(address) as channel:
            vectors = embed(channel, sentences)
    except grpc.RpcError as error:
        sys.exit(f"{address} did not answer: {error.code().name}: {error.details()}")
    for number, sentence in enumerate(sentences, 1):
        print(f"{number}  {sentence}")
    print("\n   " + "".join(f"{number:7}" for number in range(1, len(sentences) + 1)))
    for number, row in enumerate(vectors @ vectors.T, 1):
        print(f"{number:3}" + "".join(f"{likeness:7.2f}" for likeness in row))


if __name__ == "__main__":
    main()
