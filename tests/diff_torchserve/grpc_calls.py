"""Sends cases with plain grpcio, and writes down what came: JSON, with what is the server's own replaced by its name.

What must not live here: which cases there are, what two answers may differ in (compare.py).
"""

from __future__ import annotations

import itertools
import json
import queue
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import answers
import grpc
from answers import Answer
from google.protobuf.empty_pb2 import Empty
from steps import INFERENCE, Scenario, Step

from actorserve.proto import inference_pb2, management_pb2

INFERENCE_SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
MANAGEMENT_SERVICE = "/org.pytorch.serve.grpc.management.ManagementAPIsService"
POLL_S = 0.05
READY_S = 90.0
HELD_S = 15.0


@dataclass
class Peer:
    """A running server as the calls see it. `names`: text of the server's own -> the placeholder that stands for it."""

    inference: grpc.Channel
    management: grpc.Channel
    folder: Path
    names: dict[str, str]

    def fill(self, value: Any) -> Any:
        """A value with its placeholders replaced."""
        for text, name in self.names.items():
            if isinstance(value, str):
                value = value.replace(name, text)
            elif isinstance(value, bytes):
                value = value.replace(name.encode(), text.encode())
        return {key: self.fill(one) for key, one in value.items()} if isinstance(value, Mapping) else value

    def hide(self, value: Any) -> Any:
        """The opposite, in every text of an answer."""
        if isinstance(value, str):
            for text, name in sorted(self.names.items(), key=lambda pair: -len(pair[0])):
                value = value.replace(text, name)
        elif isinstance(value, list):
            return [self.hide(one) for one in value]
        elif isinstance(value, dict):
            return {key: self.hide(one) for key, one in value.items()}
        return value


def run(peer: Peer, scenario: Scenario) -> Iterator[tuple[str, Answer]]:
    """Send a scenario; gives each compared case's name and answer. The models that are left are unregistered."""
    for step in scenario.steps:
        answer = send(peer, step)
        if step.compared:
            yield f"{scenario.name}/{step.name}", peer.hide(answer)
    if scenario.configuration == "open":
        clear(peer)


def send(peer: Peer, step: Step) -> Answer:
    """One case."""
    if step.ready is not None:
        return _await_ready(peer, step)
    if step.behind:
        return _behind(peer, step)
    if step.rpc == "StreamPredictions2":
        return _conversation(peer, step)
    call = _begin(peer, step)
    return answers.unary(call) if step.rpc != "StreamPredictions" else answers.stream(call)


def _request(peer: Peer, step: Step, fields: Mapping[str, Any]) -> Any:
    """The message, or what stands in its place."""
    if step.raw is not None:
        return step.raw
    if step.rpc == "Ping":
        return Empty()
    message = inference_pb2.PredictionsRequest if step.rpc in INFERENCE else None
    return (message or getattr(management_pb2, f"{step.rpc}Request"))(**peer.fill(fields))


def _begin(peer: Peer, step: Step) -> Any:
    """Start a call that has one request."""
    service = INFERENCE_SERVICE if step.rpc in INFERENCE else MANAGEMENT_SERVICE
    channel = peer.inference if step.rpc in INFERENCE else peer.management
    kind = channel.unary_stream if step.rpc == "StreamPredictions" else channel.unary_unary
    answer = (
        management_pb2.ManagementResponse
        if step.rpc not in INFERENCE
        else (inference_pb2.TorchServeHealthResponse if step.rpc == "Ping" else inference_pb2.PredictionResponse)
    )
    method = kind(f"{service}/{step.rpc}", request_serializer=_bytes, response_deserializer=answer.FromString)
    metadata = tuple((key, peer.fill(value)) for key, value in step.metadata)
    request = _request(peer, step, step.fields)
    begin = method if step.rpc == "StreamPredictions" else method.future
    return begin(request, metadata=metadata, timeout=step.patience_s, wait_for_ready=True)


def _bytes(message: Any) -> bytes:
    """A message's bytes; bytes as they are."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def _conversation(peer: Peer, step: Step) -> Answer:
    """StreamPredictions2: a message at a time, each awaiting an answer, then half-close; or everything at once."""
    requests: queue.Queue[Any] = queue.Queue()
    method = peer.inference.stream_stream(
        f"{INFERENCE_SERVICE}/StreamPredictions2",
        request_serializer=_bytes,
        response_deserializer=inference_pb2.PredictionResponse.FromString,
    )
    metadata = tuple((key, peer.fill(value)) for key, value in step.metadata)
    call = method(iter(requests.get, None), metadata=metadata, timeout=step.patience_s, wait_for_ready=True)
    messages: list[Answer] = []
    try:
        for fields in step.messages:
            requests.put(_request(peer, step, fields))
            if not step.burst:
                messages.append(answers.read(next(call)))
        requests.put(None)
        messages.extend(answers.read(message) for message in call)
    except StopIteration:
        requests.put(None)
    except grpc.RpcError:
        requests.put(None)
    return answers.ended(call, {"messages": messages})


def _await_ready(peer: Peer, step: Step) -> Answer:
    """Repeat a DescribeModel until the workers are READY."""
    once = Step(step.name, "DescribeModel", step.fields, metadata=step.metadata)
    give_up = time.monotonic() + READY_S
    while time.monotonic() < give_up:
        answer = send(peer, once)
        if answer["code"] == "OK":
            workers = json.loads(answer["msg"])[0]["workers"]
            if len(workers) == step.ready and all(worker["status"] == "READY" for worker in workers):
                return answer
        time.sleep(POLL_S)
    raise TimeoutError(f"{step.name}: {answer}")


_gates = itertools.count()


def _behind(peer: Peer, step: Step) -> Answer:
    """A call that is made while the worker waits at a gate, with further calls in the queue.

    The gate opens when the answer is there; for UnregisterModel, which may wait for it, when the model is gone.
    """
    gate = peer.folder / f"gate{next(_gates)}"
    model = step.fields["model_name"]
    words = [f"wait {gate}", *["echo queued"] * (step.behind - 1)]
    held = []
    for number, word in enumerate(words):
        fields = {"model_name": model, "input": {"data": word.encode()}}
        held.append(_begin(peer, Step("held", "Predictions", fields, patience_s=HELD_S)))
        if number:
            _until(lambda number=number: _pending(peer, model) == number)
        else:
            _until(gate.with_suffix(".begun").exists)
    case = Step(step.name, step.rpc, step.fields, patience_s=step.patience_s)
    if step.rpc == "UnregisterModel":
        call = _begin(peer, case)
        _until(lambda: send(peer, Step("", "DescribeModel", {"model_name": model}))["code"] != "OK")
        gate.touch()
        answer = answers.unary(call)
    else:
        answer = send(peer, case)
        gate.touch()
    return answer | {"held": [answers.unary(call) for call in held]}


def _pending(peer: Peer, model: str) -> int:
    """How many requests wait in a model's queue."""
    answer = send(peer, Step("", "DescribeModel", {"model_name": model}))
    return json.loads(answer["msg"])[0]["jobQueueStatus"]["pendingRequests"]


def _until(condition: Any) -> None:
    """A bounded poll."""
    give_up = time.monotonic() + READY_S
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError("the calls before the case never got to where they belong")
        time.sleep(POLL_S)


def clear(peer: Peer) -> None:
    """Unregister whatever is there, versions that are no default first."""
    listing = send(peer, Step("", "ListModels", {"limit": 100}))
    for model in json.loads(listing["msg"])["models"]:
        name = model["modelName"]
        versions = send(peer, Step("", "DescribeModel", {"model_name": name, "model_version": "all"}))
        default = send(peer, Step("", "DescribeModel", {"model_name": name}))
        if versions["code"] != "OK" or default["code"] != "OK":
            continue
        first = json.loads(default["msg"])[0]["modelVersion"]
        found = [one["modelVersion"] for one in json.loads(versions["msg"])]
        for version in sorted(found, key=lambda one: one == first):
            fields = {"model_name": name, "model_version": version}
            send(peer, Step("", "UnregisterModel", fields, patience_s=30))
