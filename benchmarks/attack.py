"""Attack a server of our own, on loopback, beside a client with one echo in flight: `just attack`.

    python benchmarks/attack.py [--seconds 10] [--rounds 5] [--only NAME ...] [--markdown FILE]

Prints for each attack PASS or what fell short (attacks/verdict.py has the bars), the good client's p99 without and
with it (medians of the rounds), its errors, how much the server's memory grew, how the attacker's connections were
closed, and tracebacks in the log. Exits with 1 where an attack fell short. `--markdown` writes the table that
docs/security.md shows. Some endings take their time (FASTER): rounds under 8 s are too short for them.
What must not live here: what is sent (attacks/kinds.py), the bars (attacks/verdict.py).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import trio  # noqa: E402  after the path that makes the neighbours importable
import trustme  # noqa: E402
from attacks.kinds import ATTACKS, message  # noqa: E402
from attacks.verdict import HEAD, Result, line, row, shortfalls  # noqa: E402
from grpclib.exceptions import GRPCError, StreamTerminatedError  # noqa: E402
from processes import free_port  # noqa: E402

from actorserve.client import Channel  # noqa: E402
from actorserve.proto.inference_grpc import InferenceAPIsServiceStub  # noqa: E402
from actorserve.proto.inference_pb2 import PredictionsRequest  # noqa: E402

# So that timeouts come to pass within a round.
FASTER = {"handshake_timeout_s": 2, "write_stall_timeout_s": 2, "body_stall_timeout_s": 2, "max_idle_s": 4.5}
REQUEST = PredictionsRequest.FromString(message(16)[5:])
STOP_S = 20


class Victim:
    """The server's process."""

    def __init__(self, folder: Path) -> None:
        self.port, self.tls_port = free_port(), free_port()
        certificate = trustme.CA().issue_cert("localhost")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / "tls.pem"))
        bounds = "".join(f"{key} = {value}\n" for key, value in FASTER.items())
        path = folder / "attack.toml"
        path.write_text(
            f'[log]\naccess = false\n\n[listeners.plain]\naddress = "127.0.0.1:{self.port}"\n'
            f'services = ["inference"]\n{bounds}\n[listeners.secure]\naddress = "127.0.0.1:{self.tls_port}"\n'
            f'services = ["inference"]\ntls = {{ certificate = "tls.pem", key = "tls.pem" }}\n{bounds}\n'
            '[models.echo]\nhandler = "actorserve.handlers.echo:Echo"\nqueue_size = 4096\n'
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

    def close(self) -> None:
        """Stop it."""
        self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(STOP_S)
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


async def hostile(server: Victim, name: str, seconds: float) -> dict[str, Any]:
    """Run the attacker's process; give what it tells."""
    command = [sys.executable, "-m", "attacks.attacker", name, str(server.port), str(server.tls_port), str(seconds)]
    told: dict[str, Any] = json.loads((await trio.run_process(command, capture_stdout=True, cwd=HERE)).stdout)
    return told


async def one_round(server: Victim, name: str, seconds: float, result: Result) -> None:
    """Measure without, then beside the attack."""
    took, errors = await good_client(server.port, max(seconds / 2, 0.5))
    result.before_ms.append(p99(took))
    result.errors += errors
    start, seen = server.memory(), server.tracebacks()
    told: dict[str, Any] = {}
    over = trio.Event()
    async with trio.open_nursery() as nursery:

        async def attack() -> None:
            told.update(await hostile(server, name, seconds))
            over.set()

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
        await over.wait()
        nursery.cancel_scope.cancel()
    result.made += told["made"]
    result.closed.update(told["closed"])
    if told["after_s"] is not None:
        result.after_s.append(told["after_s"])
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


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=ATTACKS, help="an attack; may be repeated")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the figures as a table")
    options = parser.parse_args()
    results: dict[str, Result] = {}
    for name in options.only or ATTACKS:
        results[name] = trio.run(attack, name, options.seconds, options.rounds)
        print(line(name, ATTACKS[name], results[name]), flush=True)
    if options.markdown:
        options.markdown.write_text(HEAD + "".join(row(name, ATTACKS[name], one) for name, one in results.items()))
    short = [name for name, one in results.items() if shortfalls(ATTACKS[name], one)]
    print(
        f"{len(results) - len(short)} of {len(results)} attacks passed" + "".join(f"; {one} did not" for one in short)
    )
    sys.exit(1 if short else 0)


if __name__ == "__main__":
    main()
