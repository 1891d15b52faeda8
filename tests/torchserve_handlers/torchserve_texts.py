"""Handlers in TorchServe's style, and the models that they are served as. They know nothing of actorserve."""

FUNCTION = '''
import json
from pathlib import Path

state = {}


def handle(data, context):
    """A function handler: the first call, without data, is its initialisation."""
    if data is None:
        state["folder"] = Path.cwd().name
        return None
    answers = []
    for index, row in enumerate(data):
        context.set_response_header(index, "X-Rows", str(len(data)))
        context.set_response_header(index, "not a key", "x")
        context.set_response_content_type(index, "application/json")
        answers.append(
            {
                "types": {key: type(value).__name__ for key, value in row.items()},
                "text": (row.get("data") or row.get("body")).decode(),
                "header": context.get_request_header(index, "Session-Id"),
                "id": context.get_request_id(index),
                "folder": state["folder"],
                "properties": {key: value for key, value in context.system_properties.items() if key != "model_dir"},
                "yaml": context.model_yaml_config,
                "model": context.manifest["model"]["modelName"],
            }
        )
    return answers
'''

ENTRY = """
def answer(data, context):
    return None if data is None else ["from answer"] * len(data)
"""

SERVICE_CLASS = '''
from ts.metrics.dimension import Dimension
from ts.service import PredictionException
from ts.utils.util import PredictionException as SameException


class Service:
    """A class handler: answers by what each row says."""

    def initialize(self, context):
        assert PredictionException is SameException
        context.cache = {"calls": 0}
        self.context = context

    def handle(self, data, context):
        context.cache["calls"] += 1
        context.metrics.add_counter("Calls", 1, dimensions=[Dimension("Kind", "test")])
        return getattr(self, data[0]["data"].decode())(data, context)

    def calls(self, data, context):
        return [str(context.cache["calls"])]

    def refuse(self, data, context):
        raise PredictionException("not here", 404)

    def fine(self, data, context):
        raise PredictionException("all is well", 200)

    def strange(self, data, context):
        raise PredictionException("moved", 302)

    def status(self, data, context):
        context.set_response_status(code=403, phrase="members only", idx=0)
        return ["body"]

    def body(self, data, context):
        context.set_all_response_status(429)
        return ["try again later"]

    def created(self, data, context):
        context.set_response_status(201, "Created", 0)
        return ["created"]

    def dictionary(self, data, context):
        return {"not": "a list"}

    def many(self, data, context):
        return ["one", "two"]

    def value(self, data, context):
        return [{object(): 1}]

    def error(self, data, context):
        raise RuntimeError("broken")
'''

MODEL = """
import torch


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return (x * self.weight).sum(dim=1)
"""

LINE_HANDLER = """
import json

import torch

from ts.torch_handler.base_handler import BaseHandler


class LineHandler(BaseHandler):
    def preprocess(self, data):
        return torch.tensor([json.loads(row["data"]) for row in data])
"""

STREAMING = '''
from pathlib import Path

from ts.handler_utils.utils import send_intermediate_predict_response
from ts.protocol.otf_message_handler import send_intermediate_predict_response as old_place


def handle(data, context):
    """Three times hello, then world; or what the row asks for."""
    if data is None:
        return None
    word = data[0]["data"].decode()
    if word == "once":
        return ["alone"] * len(data)
    try:
        if word == "endless":
            while True:
                send_intermediate_predict_response(["tick"] * len(data), context.request_ids, "ok", 200, context)
        for send in (send_intermediate_predict_response, old_place, old_place):
            send(["hello %d" % len(data)] * len(data), context.request_ids, "ok", 200, context)
        if word == "break":
            raise ValueError("broken pipe")
    finally:
        with Path("finally").open("a") as file:
            file.write(word + "\\n")
    context.set_response_header(0, "x-last", "yes")
    return ["world"] * len(data)
'''

BATCHING = '''
from ts.utils.util import PredictionException


def handle(data, context):
    """Divides, item by item: who divides by zero fails alone."""
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        number = int(row["data"])
        if number == 0:
            answers.append(PredictionException("cannot divide by 0", 400))
        elif number < 0:
            context.set_response_status(416, "negative", index)
            answers.append("")
        else:
            answers.append({"share": 12 / number, "of": len(data)})
    return answers
'''

MICRO = """
from ts.handler_utils.micro_batching import MicroBatching


class Micro:
    def __init__(self):
        self.handle = MicroBatching(self, 2, {"preprocess": 2})

    def initialize(self, context):
        pass

    def preprocess(self, data):
        return [row["data"].decode() for row in data]

    def inference(self, words):
        return [word.upper() for word in words]

    def postprocess(self, words):
        return words
"""

ASYNC = """
import asyncio


async def reply(data):
    await asyncio.sleep(0)
    return [row["data"].decode()[::-1] for row in data]


class Later:
    def initialize(self, context):
        pass

    async def handle(self, data, context):
        return await reply(data)
"""

ENVELOPE = """
def handle(data, context):
    return None if data is None else [one * 2 for one in data]
"""

FILES = {
    "function.py": FUNCTION,
    "entry.py": ENTRY,
    "service.py": SERVICE_CLASS,
    "line.py": MODEL,
    "line_handler.py": LINE_HANDLER,
    "streaming.py": STREAMING,
    "batching.py": BATCHING,
    "micro.py": MICRO,
    "later.py": ASYNC,
    "doubling.py": ENVELOPE,
}

MODELS = {
    "function": ('handler = "function.py", model_yaml_config = { greeting = "hi" }', ""),
    "entry": ('handler = "entry.py:answer"', ""),
    "service": ('handler = "service"', ""),
    "line": ('handler = "line_handler.py", model_file = "line.py", serialized_file = "line.pt"', ""),
    "script": ('handler = "line_handler.py", serialized_file = "script.pt"', ""),
    "exported": ('handler = "line_handler.py", serialized_file = "line.pt2"', ""),
    "streaming": ('handler = "streaming.py", batch_size = 4', ""),
    "batching": ('handler = "batching.py", batch_size = 8', "batch_size = 8\nmax_batch_delay_ms = 60_000"),
    "micro": ('handler = "micro.py", batch_size = 5', "batch_size = 5\nmax_batch_delay_ms = 60_000"),
    "later": ('handler = "later.py"', ""),
    "enveloped": (
        'handler = "doubling.py", envelope = "json", batch_size = 2',
        "batch_size = 2\nmax_batch_delay_ms = 60_000",
    ),
}
