"""What is packed: handlers in TorchServe's style, which know nothing of actorserve."""

ECHO = '''
from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    """Three times hello, then world."""
    if data is None:
        return None
    for _ in range(3):
        hello = ["hello"] * len(data)
        send_intermediate_predict_response(hello, context.request_ids, "well", 200, context)
    return ["world"] * len(data)
'''

TALK = '''
import json
import time
from pathlib import Path

from ts.torch_handler.base_handler import BaseHandler


class Talk(BaseHandler):
    """Says its version and how many requests share the call; first waits for the file that a request names."""

    def initialize(self, context):
        self.context = context

    def preprocess(self, data):
        return [row["data"].decode() for row in data]

    def inference(self, gates):
        for gate in gates:
            while gate and not Path(gate).exists():
                time.sleep(0.002)
        return gates

    def postprocess(self, gates):
        return [{"version": self.context.manifest["model"]["modelVersion"], "of": len(gates)} for _ in gates]

    def describe_handle(self):
        return {"version": self.context.manifest["model"]["modelVersion"], "languages": ["en"]}
'''

HEADERS = """
import json


def handle(data, context):
    if data is None:
        return None
    context.set_response_header(0, "answered-by", "headers")
    return [context.get_all_request_header(0)]
"""

SHARING = '''
from pathlib import Path
import time

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    """Says how many share the call, on the way and at the end; first waits as Talk does."""
    if data is None:
        return None
    if context.get_request_header(0, "describe"):
        raise RuntimeError("nothing to say")
    gates = [row["data"].decode() for row in data]
    while not all(not gate or Path(gate).exists() for gate in gates):
        time.sleep(0.002)
    send_intermediate_predict_response([str(len(data))] * len(data), context.request_ids, "well", 200, context)
    return [str(len(data))] * len(data)
'''

COUNTDOWN = '''
class Countdown:
    """Counts each request down from its data, all that run in one call; forgets whom it does not see."""

    def initialize(self, context):
        context.cache = {}

    def handle(self, data, context):
        cache = {}
        for index, row in enumerate(data):
            id = context.get_request_id(index)
            cache[id] = int(row["data"]) if row else context.cache[id] - 1
        context.cache = cache
        context.stopping_criteria = [lambda said: said == "0" for _ in data]
        return [str(cache[context.get_request_id(index)]) for index in range(len(data))]
'''

CLOSING = '''
def handle(data, context):
    """Says the sequence's id and whether it begins; `close a;b` closes those."""
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        word, _, ids = row["data"].decode().partition(" ")
        if word == "close":
            context.set_response_header(index, "ts_request_sequence_end", ids)
        if word == "fail":
            answers.append(ValueError("as you wish"))
            continue
        begins = context.get_request_header(index, "ts_request_sequence_start")
        answers.append(f"{context.get_sequence_id(index)} {begins} {word}")
    return answers
'''
