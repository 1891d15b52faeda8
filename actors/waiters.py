"""How tasks wait for work: a flag for one task, and a line of those who could take it.

What must not live here: what they wait for.
"""

from __future__ import annotations

import trio


class Signal:
    """A flag that one task waits for again and again. Setting it twice wakes once."""

    __slots__ = ("_event", "_flag")

    def __init__(self) -> None:
        self._event: trio.Event | None = None
        self._flag = False

    def set(self) -> None:
        """Wake the task that waits, or the next that will."""
        self._flag = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Wait until set, then clear. A checkpoint always."""
        if self._flag:
            await trio.lowlevel.checkpoint()
        else:
            self._event = trio.Event()
            await self._event.wait()
            self._event = None
        self._flag = False


class Waiters:
    """Replicas that can take one kind of work, in line, longest first.

    One that was woken and has not run yet is still counted: it is as good as free, so nobody else should
    take more than his share. It leaves when it looks (`discard`).
    """

    __slots__ = ("_line", "_woken")

    def __init__(self) -> None:
        self._line: dict[Signal, None] = {}
        self._woken: set[Signal] = set()

    def __len__(self) -> int:
        return len(self._line) + len(self._woken)

    def add(self, signal: Signal) -> None:
        """Wait, behind the others."""
        self._line.setdefault(signal)

    def discard(self, signal: Signal) -> None:
        """Do not wait any more."""
        self._line.pop(signal, None)
        self._woken.discard(signal)

    def wake(self) -> None:
        """Wake the one that has waited longest, if any."""
        if self._line:
            signal = next(iter(self._line))
            del self._line[signal]
            self._woken.add(signal)
            signal.set()

    def wake_one(self, signal: Signal) -> None:
        """Wake this one, if it waits."""
        if signal in self._line:
            del self._line[signal]
            self._woken.add(signal)
            signal.set()

    def wake_all(self) -> None:
        """Wake everyone."""
        while self._line:
            self.wake()
