"""A handler called directly in a loop with full batches, in a process of its own: what serving is compared with.

Reads orders from stdin, one JSON object a line: the first loads ({"handler", "inputs": a list of hex by name}), each
other runs ({"seconds", "batch_size"}) and is answered with {"items", "seconds", "cpu"}. One compute thread, as the
workers.
What must not live here: the server, gRPC.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from actorserve.handlers.base import Context, Request


def load(target: str) -> Any:
    """The handler, loaded."""
    module, _, name = target.partition(":")
    handler = getattr(importlib.import_module(module), name)()
    handler.load(Context(device="cpu", model_dir=Path.cwd(), options={}, log=logging.getLogger("direct")))
    return handler


def run(handler: Any, inputs: list[dict[str, bytes]], seconds: float, batch_size: int) -> dict[str, float]:
    """Call `infer` with full batches for so long; the inputs take turns."""
    turns = cycle(inputs)
    items = 0
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        answers = handler.infer([Request(one) for one in islice(turns, batch_size)])
        items += len(answers)
    return {"items": items, "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def main() -> None:
    """Take orders until stdin ends."""
    torch.set_num_threads(1)
    first = json.loads(sys.stdin.readline())
    handler = load(first["handler"])
    inputs = [{name: bytes.fromhex(value) for name, value in one.items()} for one in first["inputs"]]
    run(handler, inputs, 0.2, 1)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(run(handler, inputs, order["seconds"], order["batch_size"])), flush=True)


if __name__ == "__main__":
    main()
