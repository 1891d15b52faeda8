"""The attacker's process: opens connections, sends, notes how and when each was closed; prints that as JSON.

What must not live here: what is sent (kinds.py). It speaks to loopback only, and stops by itself.
"""

from __future__ import annotations

import json
import socket
import ssl
import sys
from collections import Counter
from dataclasses import replace
from statistics import median

import trio

from actorserve.services.transport import frames as f
from actorserve.services.transport.grpc import code_name
from attacks.kinds import ATTACKS, HALF_TLS, PLAIN, SHUT, TLS, Attack

AGAIN_S = 0.25  # before a connection that was closed is made anew
MOST = 3  # times as many connections in all as at a time, but
FEW = 2000  # may be made anyway
UNREAD_S = 5.0  # a peer that does not read cannot see that it is closed: it looks after so long, past every timeout


class Attacker:
    """All connections of one attack."""

    def __init__(self, attack: Attack, ports: dict[str, int], most: int | None = None) -> None:
        """`most`: connections in all; None: many."""
        self.attack = attack
        self._port = ports[PLAIN if attack.over == PLAIN else TLS]
        self._most = most or max(FEW, MOST * attack.connections)
        self.made = 0
        self.closed: Counter[str] = Counter()
        self._lasted: list[float] = []

    async def run(self, seconds: float) -> None:
        """Attack for so long."""
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(self.attack.connections):
                    nursery.start_soon(self._again_and_again)

    def told(self) -> dict[str, object]:
        """Give what happened: how many connections were made, how they ended, after how many seconds (median)."""
        return {"made": self.made, "closed": self.closed, "after_s": median(self._lasted) if self._lasted else None}

    async def _again_and_again(self) -> None:
        while self.made < self._most:
            self.made += 1
            began = trio.current_time()
            self.closed[await self._connect()] += 1
            self._lasted.append(trio.current_time() - began)
            await trio.sleep(AGAIN_S)

    async def _connect(self) -> str:
        """Make one connection and attack over it; give how it ended."""
        try:
            bare = await trio.open_tcp_stream("127.0.0.1", self._port)
        except OSError:
            return "connection refused"
        if not self.attack.reads:
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            if self.attack.over != TLS:
                return await self._once(bare, bare)
            secure = trio.SSLStream(bare, _trusting(), server_hostname="localhost", https_compatible=True)
            await secure.do_handshake()
            return await self._once(secure, bare)
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            return f"TLS failed: {error.__cause__ or error}"
        finally:
            await trio.aclose_forcefully(bare)

    async def _once(self, stream: trio.abc.Stream, bare: trio.SocketStream) -> str:
        """Attack over one connection until it is closed; give how that was."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, stream)
            if not self.attack.reads:
                await trio.sleep(UNREAD_S)
                bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)  # what is left comes in no time
            how = await _farewell(stream, frames=self.attack.over != HALF_TLS)
            nursery.cancel_scope.cancel()
        return how

    async def _send(self, stream: trio.abc.Stream) -> None:
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


def _trusting() -> ssl.SSLContext:
    """Give a context that takes any certificate: an attacker does not care."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


async def _farewell(stream: trio.abc.Stream, *, frames: bool) -> str:
    """Read to the end; give the last GOAWAY's code and text, where frames are to be expected."""
    data, how = bytearray(), SHUT
    try:
        while part := await stream.receive_some(65_536):
            data += part
            while frames and len(data) >= f.HEADER_SIZE:
                high, low, kind, _, _ = f.HEADER.unpack_from(data)
                end = f.HEADER_SIZE + (high << 8 | low)
                if len(data) < end:
                    break
                if kind == f.GOAWAY:
                    code = f.TWO_LONGS.unpack_from(data, 9)[1]
                    how = f"GOAWAY {code_name(code)} {bytes(data[17:end]).decode()}"
                del data[:end]
    except (trio.BrokenResourceError, ssl.SSLError):
        pass
    return how


async def all_at_once(ports: dict[str, int], seconds: float) -> None:
    """Run every attack, one connection each, until each has been closed."""
    attackers = {name: Attacker(replace(attack, connections=1), ports, 1) for name, attack in ATTACKS.items()}
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for attacker in attackers.values():
                nursery.start_soon(attacker.run, seconds)
            while not all(one.closed for one in attackers.values()):
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
    print(json.dumps({name: one.told() for name, one in attackers.items()}))


async def main(name: str, ports: dict[str, int], seconds: float) -> None:
    """Run one attack, or all."""
    if name == "all":
        await all_at_once(ports, seconds)
        return
    attacker = Attacker(ATTACKS[name], ports)
    await attacker.run(seconds)
    print(json.dumps(attacker.told()))


if __name__ == "__main__":
    _, which, plain, tls, limit = sys.argv
    trio.run(main, which, {PLAIN: int(plain), TLS: int(tls)}, float(limit))
