"""The handlers and model-config.yaml files that are packed, as texts. They know nothing of actorserve.

What must not live here: which archive has which (packs.py).
"""

from __future__ import annotations

ROWS = '''
"""Does what its input says; loads, or not, by the name of its model."""
import builtins
import os
import sys
import time
from pathlib import Path

import torch

from ts.utils.util import PredictionException

LOADS = {
    "load-runtime": RuntimeError("cannot load"),
    "load-value": ValueError("cannot load"),
    "load-memory": MemoryError(),
    "load-scale": ValueError("cannot load"),
    "load-cuda": RuntimeError("CUDA error: no device"),
}
DESCRIPTIONS = {
    "described": {"inputs": ["data"], "depth": {"layers": 3}},
    "describes-text": "no JSON",
    "describes-list": [1, 2],
    "describes-nothing": {},
}
RESULTS = {
    "text": "text", "empty": "", "unicode": "gr\\u00fc\\u00dfe \\u2713", "bytes": b"\\x00\\xff\\xfe", "no-bytes": b"",
    "bytearray": bytearray(b"mutable"), "number": 7, "float": 0.1, "none": None, "true": True, "nan": float("nan"),
    "dict": {"b": 1, "a": [1, 2, {"c": None}]}, "list": [1, "two", 3.0], "tuple": (1, 2),
    "nested": {"\\u00e4": "\\u2713"},
    "empty-dict": {}, "empty-list": [],
    "tensor": torch.arange(6.0).reshape(2, 3), "object": object(), "set": {1}, "key": {(1, 2): 1},
    "large": "x" * 1000000,
}
WHOLE = {
    "whole-dict": {"not": "a list"}, "whole-text": "text", "whole-none": None, "whole-tuple": ("one",),
    "whole-none-of-it": [], "whole-too-many": ["one", "two"], "whole-tensor": torch.ones(1),
}


class Rows:
    def initialize(self, context):
        self.version = context.manifest["model"].get("modelVersion")
        if context.model_name in LOADS:
            raise LOADS[context.model_name]
        if context.model_name == "load-exit":
            os._exit(3)
        if context.model_name == "load-slow":
            time.sleep(600)

    def handle(self, data, context):
        if (context.get_request_header(0, "describe") or "") == "True":
            if context.model_name == "describes-badly":
                raise ValueError("cannot describe")
            return [DESCRIPTIONS.get(context.model_name, "?")]
        if len(data) > 1:
            return [f"one of {len(data)}"] * len(data)
        row = data[0]
        word, _, rest = bytes(row.get("data", b"row")).decode().partition(" ")
        if word in WHOLE:
            return WHOLE[word]
        if word in RESULTS:
            return [RESULTS[word]]
        return getattr(self, word)(rest, row, context)

    def row(self, rest, row, context):
        return [{key: [type(row[key]).__name__, len(row[key])] for key in sorted(row)}]

    def echo(self, rest, row, context):
        return [rest]

    def headers(self, rest, row, context):
        headers = context.get_all_request_header(0)
        return [{key: str(headers[key]) for key in sorted(headers)}]

    def about(self, rest, row, context):
        properties = {k: str(v) for k, v in sorted(context.system_properties.items()) if k != "model_dir"}
        return [{"version": self.version, "name": context.model_name, "properties": properties,
                 "yaml": context.model_yaml_config}]

    def identity(self, rest, row, context):
        return [context.get_request_id(0)]

    def code(self, rest, row, context):
        code, _, text = rest.partition(" ")
        raise PredictionException(text, int(code))

    def plain(self, rest, row, context):
        raise PredictionException("without a code")

    def derived(self, rest, row, context):
        raise type("Mine", (PredictionException,), {})("derived", 404)

    def fail(self, rest, row, context):
        kind, _, text = rest.partition(" ")
        raise getattr(builtins, kind)(text)

    def status(self, rest, row, context):
        context.set_response_status(int(rest), "phrase", 0)
        return ["status set"]

    def all_status(self, rest, row, context):
        context.set_all_response_status(int(rest), "phrase")
        return ["status set"]

    def dressed(self, rest, row, context):
        context.set_response_header(0, "x-answer", "yes")
        context.set_response_content_type(0, "application/json")
        return [{"dressed": True}]

    def exit(self, rest, row, context):
        os._exit(int(rest))

    def leave(self, rest, row, context):
        sys.exit(int(rest))

    def wait(self, rest, row, context):
        gate = Path(rest)
        gate.with_suffix(".begun").touch()
        while not gate.exists():
            time.sleep(0.01)
        return ["waited"]

    def huge(self, rest, row, context):
        return ["x" * int(rest)]

    def late(self, rest, row, context):
        time.sleep(float(rest))
        return ["late"]

    def sequence(self, rest, row, context):
        return [{"sequence": context.get_sequence_id(0), "says": rest}]
'''

STREAMS = '''
"""Sends what its input asks for, then the last message."""
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.utils.util import PredictionException


def handle(data, context):
    if data is None:
        return None
    word = bytes(data[0]["data"]).decode()

    def send(answer):
        send_intermediate_predict_response([answer] * len(data), context.request_ids, "said", 200, context)

    if word == "three":
        for _ in range(3):
            send("hello")
        return ["world"]
    if word == "kinds":
        for answer in ("text", b"bytes", {"a": 1}, [1, 2], 3):
            send(answer)
        return [{"last": True}]
    if word == "empty":
        send("")
        return [""]
    if word == "raise":
        send("hello")
        raise ValueError("broken")
    if word == "refuse":
        send("hello")
        raise PredictionException("no more", 429)
    if word == "refuse at once":
        raise PredictionException("none at all", 404)
    if word == "many":
        for number in range(50):
            send(str(number))
        return ["50"]
    return ["alone"]
'''

BASE = """
import json

import torch

from ts.torch_handler.base_handler import BaseHandler


class Line(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([json.loads(bytes(row["data"])) for row in data])
"""

NETWORK = """
import torch


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return (x * self.weight).sum(dim=1)
"""

FUNCTION = """
def handle(data, context):
    return None if data is None else ["from handle"] * len(data)


def entry(data, context):
    return None if data is None else ["from entry"] * len(data)
"""

BATCHING = '''
"""Says with how many others each row came, and fails as a whole where one row says so."""
from ts.utils.util import PredictionException


def handle(data, context):
    if data is None:
        return None
    words = [bytes(row["data"]).decode() for row in data]
    if "fail" in words:
        raise PredictionException("one of %d" % len(data), 400)
    return [{"word": word, "size": context.system_properties["batch_size"]} for word in words]
'''

SETTINGS = """
minWorkers: 1
maxWorkers: 2
batchSize: 3
maxBatchDelay: 40
responseTimeout: 33
startupTimeout: 66
deviceType: cpu
jobQueueSize: 7
maxRetryTimeoutInSec: 11
clientTimeoutInMills: 0
own: {key: [1, two]}
"""
QUEUE = "minWorkers: 1\nmaxWorkers: 1\njobQueueSize: 1\nbatchSize: 2\nmaxBatchDelay: 10\n"
SEQUENCES = """
minWorkers: 1
maxWorkers: 1
batchSize: 8
maxBatchDelay: 20
sequenceBatching: true
sequenceMaxIdleMSec: 600000
maxNumSequence: 8
maxSequenceJobQueueSize: 4
"""
DEVICES = "deviceType: gpu\ndeviceIds: [0, 1]\n"
TICKET = "minWorkers: 1\nmaxWorkers: 1\nuseJobTicket: true\n"
IMPATIENT = "minWorkers: 1\nmaxWorkers: 1\nclientTimeoutInMills: 500\n"
SCALED = "minWorkers: 2\nmaxWorkers: 3\n"
