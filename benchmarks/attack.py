"""Attack a server of our own, on loopback, beside a client with one echo in flight: `just attack`.

    python benchmarks/attack.py [--seconds 10] [--rounds 5] [--only NAME ...]

Prints for each attack the good client's p99 without and with it (medians of the rounds), its errors, how much the
server's memory grew, how the attacker's connections were closed, and tracebacks in the log. docs/security.md has the
figures. What must not live here: what is sent (attacks/kinds.py).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import trio  # noqa: E402  after the path that makes the neighbours importable
from attacks.kinds import ATTACKS, message  # noqa: E402
from grpclib.exceptions import GRPCError, StreamTerminatedError  # noqa: E402

from actorserve.client import Channel  # noqa: E402
from actorserve.config import Listener  # noqa: E402
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub  # noqa: E402
from actorserve.proto.inference_pb2 import PredictionsRequest  # noqa: E402

# So that timeouts come to pass within a run of a few seconds; keys that this server does not know are left out.
FASTER = {"handshake_timeout_s": 2, "write_stall_timeout_s": 2, "body_stall_timeout_s": 2, "max_idle_s": 5}
REQUEST = PredictionsRequest.FromString(message(16)[5:])
MIB = 1 << 20


@dataclass
class Result:
    """What one attack did, round by round."""

    before_ms: list[float] = field(default_factory=list)
    beside_ms: list[float] = field(default_factory=list)
    calls: int = 0
    errors: int = 0
    grown_mib: float = 0.0
    made: int = 0
    closed: Counter[str] = field(default_factory=Counter)
    tracebacks: int = 0

    @property
    def ratio(self) -> float:
        """How much the good client's p99 suffered."""
        return median(self.beside_ms) / median(self.before_ms)


class Victim:
    """The server's process."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        faster = "".join(f"{key} = {value}\n" for key, value in FASTER.items() if key in Listener.model_fields)
        path = folder / "attack.toml"
        path.write_text(
            f'[log]\naccess = false\n\n[listeners.all]\naddress = "127.0.0.1:{self.port}"\nservices = ["inference"]\n'
            f'{faster}\n[models.echo]\nhandler = "actorserve.handlers.echo:Echo"\nqueue_size = 4096\n'
        )
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen([sys.executable, "-m", "actorserve", str(path)], stdout=log, stderr=log)

    def memory(self) -> float:
        """The ingress's resident memory in MiB."""
        text = Path(f"/proc/{self._popen.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", text)
        assert found is not None
        return int(found[1]) / 1024

    def tracebacks(self) -> int:
        """How many stand in the log, panics included."""
        text = self._log.read_text(errors="replace")
        return text.count("Traceback") + text.count("panicked") + text.count("stack backtrace")

    def log(self) -> str:
        """What the server said."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """Stop it."""
        self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(20)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


@contextmanager
def victim() -> Iterator[Victim]:
    """Give a server; stop it afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        one = Victim(Path(folder))
        try:
            yield one
        finally:
            one.close()


async def good_client(port: int, seconds: float) -> tuple[list[float], int]:
    """Echo, one call in flight; give each call's milliseconds, and the errors."""
    took: list[float] = []
    errors = 0
    async with Channel(f"127.0.0.1:{port}") as channel:
        stub = InferenceAPIsServiceStub(channel)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            try:
                reply = await stub.Predictions(REQUEST, timeout=10)
                errors += b"\0" * 16 not in reply.prediction
            except (GRPCError, StreamTerminatedError):
                errors += 1
            took.append((time.perf_counter() - began) * 1000)
    return took, errors


async def ready(port: int) -> None:
    """Wait until the model answers."""
    with trio.fail_after(20):
        while (await good_client(port, 0.05))[1]:
            await trio.sleep(0.1)


def p99(took: list[float]) -> float:
    """Give the 99th percentile."""
    return sorted(took)[math.ceil(len(took) * 0.99) - 1]


async def one_round(server: Victim, name: str, seconds: float, result: Result) -> None:
    """Measure without, then beside the attack."""
    took, errors = await good_client(server.port, max(seconds / 2, 0.5))
    result.before_ms.append(p99(took))
    result.errors += errors
    start, seen = server.memory(), server.tracebacks()
    attacker = [sys.executable, "-m", "attacks.attacker", name]
    async with trio.open_nursery() as nursery:
        done: list[bytes] = []

        async def attack() -> None:
            command = [*attacker, str(server.port), str(seconds)]
            done.append((await trio.run_process(command, capture_stdout=True, cwd=HERE)).stdout)
            nursery.cancel_scope.cancel()

        async def weigh() -> None:
            while True:
                result.grown_mib = max(result.grown_mib, server.memory() - start)
                await trio.sleep(0.05)

        nursery.start_soon(attack)
        nursery.start_soon(weigh)
        await trio.sleep(0.5)  # the attacker's start
        took, errors = await good_client(server.port, max(seconds - 0.3, 0.5))
        result.beside_ms.append(p99(took))
        result.calls += len(took)
        result.errors += errors
        await trio.sleep_forever()
    told = json.loads(done[0])
    result.made += told["made"]
    result.closed.update(told["closed"])
    result.tracebacks += server.tracebacks() - seen


async def attack(name: str, seconds: float, rounds: int) -> Result:
    """Run one attack so many rounds, on a server of its own."""
    result = Result()
    with victim() as server:
        await ready(server.port)
        await good_client(server.port, min(seconds, 2))
        for _ in range(rounds):
            await one_round(server, name, seconds, result)
    return result


def show(name: str, result: Result) -> None:
    """Print one line."""
    closed = ", ".join(f"{count} x {how}" for how, count in result.closed.most_common(3)) or "none"
    print(
        f"{name:<18} p99 {median(result.before_ms):6.2f} -> {median(result.beside_ms):6.2f} ms (x{result.ratio:4.1f})  "
        f"calls {result.calls:>6}  errors {result.errors}  RSS +{result.grown_mib:5.1f} MiB  "
        f"tracebacks {result.tracebacks}  of {result.made} connections closed: {closed}",
        flush=True,
    )


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=ATTACKS, help="an attack; may be repeated")
    options = parser.parse_args()
    for name in options.only or ATTACKS:
        show(name, trio.run(attack, name, options.seconds, options.rounds))


if __name__ == "__main__":
    main()
