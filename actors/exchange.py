"""The caller's end of a call: messages go in, messages come out, and one ending.

An `Exchange` is what `ask(Call)` gives. It is bounded both ways by the credit of every stream (reply.py): 16 messages
or 256 KiB, always one. It gives `Initial` and messages in their order, then its `ending`, or raises one of our errors.
It is used inside one trio run. What must not live here: the worker's frames (calls.py), gRPC.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from actorserve.actors.messages import Ending, Initial
from actorserve.actors.reply import Chunks
from actorserve.actors.wire import CREDIT_BYTES, CREDIT_CHUNKS


class Exchange(Chunks[bytes | Initial]):
    """See the module's docstring."""

    __slots__ = ("_bytes", "_half_closed", "_messages", "_room", "ending", "on_end", "on_send")

    def __init__(self) -> None:
        super().__init__()
        self.ending: Ending | None = None
        self.on_send: Callable[[bytes], None] | None = None
        self.on_end: Callable[[], None] | None = None
        self._room: trio.Event | None = None
        self._messages = CREDIT_CHUNKS
        self._bytes = CREDIT_BYTES
        self._half_closed = False

    # --- the caller ---------------------------------------------------------------------------

    async def send(self, data: bytes) -> bool:
        """Send one message of a client that streams; wait until a replica has the call and takes more.

        False: the call has ended, nobody reads it.
        """
        while not self.is_set and (self.on_send is None or self._messages <= 0 or self._bytes <= 0):
            self._room = trio.Event()
            await self._room.wait()
        if self.is_set:
            return False
        assert self.on_send is not None  # noqa: S101  # narrows the type: the loop looks
        self._messages -= 1
        self._bytes -= len(data)
        self.on_send(data)
        return True

    def end(self) -> None:
        """No more messages come (half-close). Without effect once ended."""
        self._half_closed = True
        if self.on_end is not None:
            self.on_end()

    async def wait(self) -> Ending:
        """Wait for the ending of a call whose messages, if there are any, nobody reads; or raise its error."""
        while await self.receive():
            pass
        assert self.ending is not None  # noqa: S101  # narrows the type: it ended well
        return self.ending

    # --- the answering side ---------------------------------------------------------------------

    def begin(self, on_send: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        """A replica has it: messages may go."""
        self.on_send, self.on_end = on_send, on_end
        if self._half_closed:
            on_end()
        self._wake_sender()

    def grant(self, messages: int, size: int) -> None:
        """The other side has taken so many messages, and bytes of them."""
        self._messages += messages
        self._bytes += size
        self._wake_sender()

    def close(self, ending: Ending) -> None:
        """End as the other side said."""
        self.ending = ending
        self._end()

    def _end(self) -> None:
        super()._end()
        self.on_send = self.on_end = None
        self._wake_sender()

    def _wake_sender(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None
