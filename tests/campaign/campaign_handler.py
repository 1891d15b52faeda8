"""A handler that does as it is told, however bad that is. It runs in the workers of real_lives.py, from a copy."""

import ctypes
import os
import resource
import time
from pathlib import Path

HERE = Path(__file__).parent


class Faulty:
    """`data` is a command and perhaps an argument, by a space."""

    def load(self, context):
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

    def do(self, command, argument=""):
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
            case "hang":
                time.sleep(600)
        return ""
