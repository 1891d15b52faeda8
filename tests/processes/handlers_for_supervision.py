"""Handlers that wear out, cannot be loaded, or note in a file what becomes of their generations. Run in workers."""

import os
import time

import torch

from actorserve.handlers.base import Step


class Leaks:
    """Keeps a megabyte of every request."""

    def load(self, context):
        self.kept = []

    def infer(self, batch):
        self.kept += [os.urandom(1 << 20) for _ in batch]
        return [os.getpid() for _ in batch]


class Weights:
    """Loads the weights that `options.file` names."""

    def load(self, context):
        torch.load(context.model_dir / context.options["file"], weights_only=True, mmap=True)

    def infer(self, batch):
        return ["loaded"] * len(batch)


class Notes:
    """Writes a line into `options.notes` for each thing that is done."""

    def load(self, context):
        self.path = context.options["notes"]
        self.note("loaded")

    def note(self, text):
        with open(self.path, "a") as file:  # noqa: PTH123  # a line at once, whoever else writes
            file.write(f"{text}\n")

    def infer(self, batch):
        for request in batch:
            self.note(f"infer {request.id}")
            time.sleep(float(request.inputs["data"]))
        return [request.id for request in batch]


class Warms(Notes):
    """Is warmed up with an input of `options.seconds`."""

    def load(self, context):
        super().load(context)
        self.seconds = context.options["seconds"]

    def warmup(self):
        return [{"data": self.seconds.encode()}]


class Generates(Notes):
    """A generator that never ends by itself; `close` is noted."""

    def generate(self, request):
        try:
            while True:
                time.sleep(0.02)
                self.note(f"step {request.id}")
                yield "x"
        finally:
            self.note(f"freed {request.id}")


class Continuous(Notes):
    """A continuous batch whose members never end by themselves."""

    def prefill(self, request):
        self.note(f"step {request.id}")
        return request.id, Step("x")

    def step(self, states):
        time.sleep(0.02)
        for state in states:
            self.note(f"step {state}")
        return [Step("x") for _ in states]

    def release(self, state):
        self.note(f"freed {state}")
