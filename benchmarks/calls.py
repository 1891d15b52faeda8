"""The calls that the benchmarks make with grpcio: to check that answers are right, to wait, to manage.

What must not live here: load (load.py, driver.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf.empty_pb2 import Empty
from processes import Server

from actorserve.proto.inference_pb2 import PredictionResponse, PredictionsRequest, TorchServeHealthResponse
from actorserve.proto.management_pb2 import ManagementResponse, ScaleWorkerRequest

INFERENCE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
MANAGEMENT = "/org.pytorch.serve.grpc.management.ManagementAPIsService"
TIMEOUT_S = 120.0


def request_of(model: str, inputs: Mapping[str, bytes]) -> PredictionsRequest:
    """The request that is sent."""
    return PredictionsRequest(model_name=model, input=inputs)


def predict(server: Server, request: PredictionsRequest) -> bytes:
    """One answer; waits for the model to be READY, as every call does."""
    with grpc.insecure_channel(server.address) as channel:
        method = channel.unary_unary(
            f"{INFERENCE}/Predictions",
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )
        answer: PredictionResponse = method(request, timeout=TIMEOUT_S, wait_for_ready=True)
        return answer.prediction


def stream(server: Server, request: PredictionsRequest) -> list[bytes]:
    """Every answer of a stream."""
    with grpc.insecure_channel(server.address) as channel:
        method = channel.unary_stream(
            f"{INFERENCE}/StreamPredictions",
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )
        return [answer.prediction for answer in method(request, timeout=TIMEOUT_S, wait_for_ready=True)]


class Health:
    """Ping over one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._ping = channel.unary_unary(
            f"{INFERENCE}/Ping",
            request_serializer=Empty.SerializeToString,
            response_deserializer=TorchServeHealthResponse.FromString,
        )

    def is_healthy(self) -> bool:
        """What Ping says."""
        answer: TorchServeHealthResponse = self._ping(Empty(), timeout=TIMEOUT_S, wait_for_ready=True)
        said: dict[str, Any] = json.loads(answer.health)
        return str(said["status"]) == "Healthy"

    def wait_healthy(self) -> None:
        """Ask until every model is READY."""
        until = time.monotonic() + TIMEOUT_S
        while not self.is_healthy():
            if time.monotonic() > until:
                raise SystemExit(f"the models are not READY after {TIMEOUT_S:.0f} s")
            time.sleep(0.01)


def scale(channel: grpc.Channel, model: str, workers: int) -> float:
    """Ask for so many workers and wait for them; the seconds that it took."""
    method = channel.unary_unary(
        f"{MANAGEMENT}/ScaleWorker",
        request_serializer=ScaleWorkerRequest.SerializeToString,
        response_deserializer=ManagementResponse.FromString,
    )
    request = ScaleWorkerRequest(model_name=model, min_worker=workers, max_worker=workers, synchronous=True)
    began = time.perf_counter()
    method(request, timeout=TIMEOUT_S)
    return time.perf_counter() - began
