"""A noop of a schema of one's own, under our server and under the one it was written for: CPU per call, side by side.

All processes of a server are counted; ours has a worker for the servicer, which the others are themselves.
Run: python benchmarks/own_schema.py [ROUNDS [CALLS]]; the load is h2load's, where it is installed.
What must not live here: the servicers (own_schema_noop.py), the load (load.py).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import load
from processes import HERE, Server, free_port

KINDS = {"blocking": "Blocking", "asyncio": "Asyncio", "grpclib": "Grpclib"}
IN_FLIGHT = 100
EMPTY = 5  # octets of a message without content


class Job(load.Job):
    """A Ping."""

    @property
    def path(self) -> str:
        """See load.Job."""
        return "/ping.TestService/Ping"


def config(folder: Path, target: str, port: int) -> Path:
    """A config.toml that serves one of them."""
    path = folder / f"{target}.toml"
    path.write_text(f"""
[server]
state_dir = ""
[log]
access = false
[listeners.user]
address = "127.0.0.1:{port}"
services = ["servicers"]
[[servicers]]
servicer = "own_schema_noop:{target}"
path = ["{folder}", "{HERE}"]
max_ongoing_requests = {IN_FLIGHT}
""")
    return path


def main(rounds: int, calls: int) -> None:
    """Measure, and print a table: medians of microseconds and of calls a second."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        proto = HERE.parent / "examples" / "ping" / "ping.proto"
        outs = (f"--python_out={folder}", f"--grpc_python_out={folder}")
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{proto.parent}", *outs, str(proto)], check=True)
        os.environ["PYTHONPATH"] = str(folder)
        servers: dict[tuple[str, str], Server] = {}
        for kind, target in KINDS.items():
            port, theirs = free_port(), free_port()
            ours = ["-m", "actorserve", str(config(folder, target, port))]
            own = [str(HERE / "own_schema_noop.py"), kind, str(theirs)]
            servers[kind, "actorserve"] = Server(f"actorserve {kind}", ours, port)
            servers[kind, "its own server"] = Server(f"{kind}'s own", own, theirs)
        for server in servers.values():
            stack.callback(server.stop)
            server.wait_listening()
        _measure(servers, rounds, calls)


def _measure(servers: dict[tuple[str, str], Server], rounds: int, calls: int) -> None:
    spent: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in servers}
    for number in range(rounds + 1):
        for key, server in servers.items():
            before = server.cpu()
            ran = load.run(server, Job("Ping", b"", EMPTY), calls=calls, in_flight=IN_FLIGHT)
            if number:  # the first warms up
                spent[key].append(((server.cpu() - before).total / calls * 1e6, ran.rate))
    print(f"{calls} calls a round, {rounds} rounds\n")
    print("| servicer | under | CPU us a call | calls/s |\n|---|---|---|---|")
    for (kind, under), found in spent.items():
        cpu, rate = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {kind} | {under} | {cpu:.0f} | {rate:,.0f} |")


if __name__ == "__main__":
    main(*(int(text) for text in (sys.argv[1:] + ["7", "20000"][len(sys.argv) - 1 :])))
