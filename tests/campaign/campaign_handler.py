"""A handler that does as it is told, however bad that is. It runs in the workers of real_lives.py, from a copy."""

import ctypes
import os
import resource
import time
from pathlib import Path

from actorserve.errors import BadInput

HERE = Path(__file__).parent


class Faulty:
    """`data` is a command and perhaps an argument, by a space."""

    def load(self, context):
        self.grown = []
        time.sleep(float(context.options.get("load_s", 0)))
        if weights := context.options.get("weights"):
            from safetensors.numpy import load_file  # noqa: PLC0415  # in workers only

            load_file(HERE / weights)
        if context.options.get("dies_loading"):
            os._exit(7)

    def infer(self, batch):
        return [self.do(*request.inputs["data"].decode().split()) for request in batch]

    def generate(self, request):
        for n in range(int(request.inputs["count"])):
            time.sleep(0.01)
            yield str(n)

    def do(self, command, argument=""):  # noqa: C901  # a branch for each command
        match command:
            case "echo":
                return argument
            case "sleep":
                time.sleep(float(argument))
                return argument
            case "raise":
                raise ZeroDivisionError("as told")
            case "segfault":
                ctypes.string_at(0)
            case "exit":
                os._exit(3)
            case "memory":  # as a container's limit does: the next allocation fails
                resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))
                return str(len(bytearray(1 << 30)))
            case "grow":
                self.grown.append(b"x" * (int(argument) << 20))
            case "where":
                return os.environ["CAMPAIGN"]
            case "package":
                return __import__("fruit").VERSION
            case "hang":
                time.sleep(float(argument))
        return argument


class Stateful(Faulty):
    """The same in sequences, whose states it watches: BROKEN in the log is a bug of the server."""

    def open(self, request):
        return {"heard": [], "released": False}

    def feed(self, states, requests):
        if len(states) != len({id(state) for state in states}) or any(state["released"] for state in states):
            print("BROKEN: fed twice, or after its end", flush=True)
        for state, request in zip(states, requests, strict=True):
            state["heard"].append(request.inputs["data"])
        answers = []
        for request in requests:
            command, argument = request.inputs["data"].decode().split()
            answers.append(BadInput("data", "this item alone") if command == "bad" else self.do(command, argument))
        return answers

    def release(self, state):
        if state["released"]:
            print("BROKEN: released twice", flush=True)
        state["released"] = True
