"""Ask the model `minilm` which of some sentences is nearest to a question, with grpclib on asyncio.

The generated stub does the naming and the types; the calls run at the same time, so that the server can batch them.
Run: python examples/embed_sentences_grpclib.py [ADDRESS] [QUESTION]
What must not live here: anything of the server but its stubs. The inputs are those of docs/zoo.md.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np
from grpclib import GRPCError
from grpclib.client import Channel

from actorserve.proto.inference_grpc import InferenceAPIsServiceStub
from actorserve.proto.inference_pb2 import PredictionsRequest

QUESTION = "How do I get my money back?"
SENTENCES = (
    "Refunds are paid within fourteen days of the return.",
    "Our shop is open from nine to six on weekdays.",
    "The warranty covers two years from the date of purchase.",
    "Parcels are delivered by bicycle within the city.",
)


async def embed(stub: InferenceAPIsServiceStub, sentence: str) -> np.ndarray:
    """The 384 numbers that stand for a sentence's meaning."""
    request = PredictionsRequest(model_name="minilm", input={"data": sentence.encode(), "format": b"f32"})
    answer = await stub.Predictions(request, timeout=30)
    return np.frombuffer(answer.prediction, "<f4")


async def ask(address: str, question: str) -> list[float]:
    """How near each sentence is to the question."""
    host, _, port = address.rpartition(":")
    async with Channel(host.strip("[]"), int(port)) as channel:
        stub = InferenceAPIsServiceStub(channel)
        asked, *known = await asyncio.gather(*(embed(stub, text) for text in (question, *SENTENCES)))
    return [float(asked @ vector) for vector in known]


def main() -> None:
    """Print the sentences, the nearest first."""
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070"
    question = sys.argv[2] if len(sys.argv) > 2 else QUESTION
    try:
        likeness = asyncio.run(ask(address, question))
    except GRPCError as error:
        sys.exit(f"{address} did not answer: {error.status.name}: {error.message}")
    except OSError as error:
        sys.exit(f"{address} did not answer: {error.strerror or error}")
    print(question)
    for near, sentence in sorted(zip(likeness, SENTENCES, strict=True), reverse=True):
        print(f"  {near:5.2f} {sentence}")


if __name__ == "__main__":
    main()
