"""Stream a sound file to the model `speech`, and draw where somebody speaks while it is still being sent.

Run: python examples/hear_speech.py [ADDRESS] [FILE.wav]      (mono, 16 kHz, 16 bit)
What must not live here: anything of the server but its message types. The inputs are those of docs/zoo.md.
"""

from __future__ import annotations

import json
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import grpc

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest

SAMPLE = Path(__file__).parent / "samples" / "voice.wav"
METHOD = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/StreamPredictions2"
PIECE = 1600
"""Samples in one message: 0.1 s."""


def pieces(path: Path) -> Iterator[PredictionsRequest]:
    """The file, piece by piece, as a microphone would give it."""
    with wave.open(str(path), "rb") as file:
        if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, 16_000):
            sys.exit(f"{path} is not mono, 16 bit, 16 kHz")
        while data := file.readframes(PIECE):
            yield PredictionsRequest(model_name="speech", input={"data": data})


def hear(channel: grpc.Channel, path: Path) -> Iterator[float]:
    """A probability for each 32 ms. All messages are one sequence: none of them names another."""
    converse = channel.stream_stream(
        METHOD,
        request_serializer=PredictionsRequest.SerializeToString,
        response_deserializer=PredictionResponse.FromString,
    )
    for reply in converse(pieces(path), timeout=60):
        if reply.HasField("status"):
            sys.exit(f"the server says: {reply.status.message}")
        yield from json.loads(reply.prediction)["speech"]


def main() -> None:
    """Draw `#` for speech and `.` for silence."""
    address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7070"
    path = Path(sys.argv[2]) if len(sys.argv) > 2 else SAMPLE
    try:
        with grpc.insecure_channel(address) as channel:
            for probability in hear(channel, path):
                print("#" if probability > 0.5 else ".", end="", flush=True)
            print()
    except grpc.RpcError as error:
        sys.exit(f"{address} did not answer: {error.code().name}: {error.details()}")


if __name__ == "__main__":
    main()
