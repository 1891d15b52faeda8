"""A handler that does as it is told, however bad that is. Runs in workers of the tests beside it."""

import ctypes
import importlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time

from actorserve.errors import BadInput

log = logging.getLogger("tool")
LOADED = time.monotonic_ns()


class Placed:
    """Says on which device it is, and how those are counted."""

    def load(self, context):
        self.device = context.device

    def infer(self, batch):
        return [[self.device, os.environ["CUDA_DEVICE_ORDER"]] for _ in batch]


class Tool:
    """`data` is a command and its arguments, by spaces."""

    steps = 0

    def infer(self, batch):
        return [self.do(*request.inputs["data"].decode().split()) for request in batch]

    def generate(self, request):
        pause = float(request.inputs.get("pause", b"0"))
        type(self).steps = 0
        for n in range(int(request.inputs["count"])):
            time.sleep(pause)
            type(self).steps += 1
            yield str(n)

    def do(self, command, *arguments):
        return getattr(self, "do_" + command)(*arguments)

    def do_pid(self, seconds="0"):
        time.sleep(float(seconds))
        return os.getpid()

    def do_steps(self):
        return self.steps

    def do_descriptors(self):
        return sorted(int(name) for name in os.listdir("/proc/self/fd"))

    def do_environment(self):
        with open("/proc/self/environ", "rb") as file:  # noqa: PTH123  # the kernel's copy
            return {"os": dict(os.environ), "kernel": file.read().decode(errors="replace")}

    def do_signals(self):
        return {name: signal.getsignal(getattr(signal, name)).name for name in ("SIGTERM", "SIGHUP", "SIGCHLD")}

    def do_dice(self):
        import numpy as np  # noqa: PLC0415  # in workers only
        import torch  # noqa: PLC0415

        time.sleep(0.3)
        return [os.getpid(), random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002, S311

    def do_threads(self):
        import torch  # noqa: PLC0415

        return torch.get_num_threads()

    def do_say(self, word):
        print("out", word)
        print("err", word, file=sys.stderr)
        log.warning("log %s", word)
        log.error("%d is not a number", word)
        return "said"

    def do_flood(self):
        for n in range(100_000):
            print("line", n)
        return "flooded"

    def do_segfault(self):
        ctypes.string_at(0)

    def do_exit(self):
        os._exit(3)

    def do_sysexit(self):
        sys.exit(4)

    def do_raise(self):
        raise ZeroDivisionError("as told")

    def do_odd(self):
        class Odd(Exception):
            def __str__(self):
                raise RuntimeError

        raise Odd

    def do_deep(self):
        answer = []
        for _ in range(100_000):
            answer = [answer]
        return answer

    def do_bad(self):
        return BadInput("data", "is bad")

    def do_sleep(self, seconds):
        time.sleep(float(seconds))
        return "slept"

    def do_babble(self):
        os.write(3, b"\xff" * 64)
        time.sleep(60)

    def do_child(self):
        return subprocess.Popen(["sleep", "300"]).pid

    def do_orphan(self):
        pid = os.fork()
        if pid == 0:
            os.setsid()  # neither in the worker's group nor without its socket
            time.sleep(8)
            os._exit(0)
        return pid

    def do_identity(self):
        """Pid, parent, process group, session, the signal of a parent's death, threads' variables."""
        number = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
        return [os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0), number.value]

    def do_loaded(self):
        """Pid, and when this module was loaded."""
        return [os.getpid(), LOADED]

    def do_path(self):
        return sys.path

    def do_module(self, name):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            return ["absent", sys.executable]
        return [module.VERSION, sys.executable]

    def do_thread(self):
        return [os.getpid(), threading.current_thread().name]

    def do_json(self):
        return json.dumps({"a": 1})
