"""The attacker's process: opens connections, sends, notes how each was closed; prints that as JSON.

What must not live here: what is sent (kinds.py). It speaks to loopback only, and stops by itself.
"""

from __future__ import annotations

import json
import socket
import sys
from collections import Counter
from dataclasses import replace

import trio

from actorserve.services.transport import frames as f
from attacks.kinds import ATTACKS, Attack

AGAIN_S = 0.25  # before a connection that was closed is made anew
MOST = 2000  # connections in all
CODES = {f.NO_ERROR: "NO_ERROR", f.SETTINGS_TIMEOUT: "SETTINGS_TIMEOUT", f.ENHANCE_YOUR_CALM: "ENHANCE_YOUR_CALM"}


class Attacker:
    """All connections of one attack."""

    def __init__(self, attack: Attack, port: int) -> None:
        self.attack = attack
        self._port = port
        self.made = 0
        self.closed: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """Attack for so long."""
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(self.attack.connections):
                    nursery.start_soon(self._again_and_again)

    async def _again_and_again(self) -> None:
        while self.made < MOST:
            self.made += 1
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", self._port)
            except OSError:
                self.closed["connection refused"] += 1
            else:
                if not self.attack.reads:
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                self.closed[await self._once(stream)] += 1
                await trio.aclose_forcefully(stream)
            await trio.sleep(AGAIN_S)

    async def _once(self, stream: trio.SocketStream) -> str:
        """Attack over one connection until it is closed; give how that was."""
        attack, how = self.attack, "no GOAWAY"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, stream)
            if attack.reads:
                how = await _farewell(stream)
            else:
                await _wait_reset(stream)
            nursery.cancel_scope.cancel()
        return how

    async def _send(self, stream: trio.SocketStream) -> None:
        attack, number = self.attack, 0
        first = f.PREFACE + f.encode_settings(attack.settings)
        try:
            await stream.send_all(first if attack.preface is None else attack.preface)
            while attack.portions is None or number < attack.portions:
                await stream.send_all(attack.send(number))
                number += 1
                await trio.sleep(attack.pause_s)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


async def _farewell(stream: trio.SocketStream) -> str:
    """Read to the end; give the last GOAWAY's code and text."""
    data, how = bytearray(), "no GOAWAY"
    try:
        while part := await stream.receive_some(65_536):
            data += part
            while len(data) >= f.HEADER_SIZE:
                high, low, kind, _, _ = f.HEADER.unpack_from(data)
                end = f.HEADER_SIZE + (high << 8 | low)
                if len(data) < end:
                    break
                if kind == f.GOAWAY:
                    code = f.TWO_LONGS.unpack_from(data, 9)[1]
                    how = f"GOAWAY {CODES.get(code, code)} {bytes(data[17:end]).decode()}"
                del data[:end]
    except trio.BrokenResourceError:
        pass
    return how


async def _wait_reset(stream: trio.SocketStream) -> None:
    """Wait until the peer has closed, without reading."""
    while not stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        state = stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state != 1:  # no longer ESTABLISHED
            return
        await trio.sleep(0.1)


async def all_at_once(port: int, seconds: float) -> None:
    """Run every attack, one connection each, until those that are closed at once have been."""
    attackers = {name: Attacker(replace(attack, connections=1), port) for name, attack in ATTACKS.items()}
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for attacker in attackers.values():
                nursery.start_soon(attacker.run, seconds)
            while not all(one.closed for one in attackers.values() if one.attack.closed_at_once):
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
    print(json.dumps({name: one.closed for name, one in attackers.items()}))


async def main(name: str, port: int, seconds: float) -> None:
    """Run one attack, or all."""
    if name == "all":
        await all_at_once(port, seconds)
        return
    attacker = Attacker(ATTACKS[name], port)
    await attacker.run(seconds)
    print(json.dumps({"made": attacker.made, "closed": attacker.closed}))


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
