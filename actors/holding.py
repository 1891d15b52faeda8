"""What one worker says of its multiplexed models: which it holds and loads, and which loads want a turn.

What must not live here: who takes a call for a model (affinity.py), whose turn it is (leases.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from actorserve.actors import wire_calls
from actorserve.actors.leases import Turn
from actorserve.actors.mailbox import Mailbox
from actorserve.actors.taking import Taking
from actorserve.actors.wire import Data, Frame


class Holding:
    """See the module's docstring. `write` queues bytes for the worker and never waits."""

    def __init__(self, mailbox: Mailbox, taking: Taking, write: Callable[[Data], None]) -> None:
        self._mailbox = mailbox
        self._taking = taking
        self._write = write

    def hear(self, frame: Frame) -> None:
        """Take a MODELS."""
        said = wire_calls.read_models(frame.payload)
        self._taking.hold(said.held, said.loading, said.seen)
        _begin(self._mailbox.leases.say(self._may_load, said.wants))
        self._mailbox.wake_next()

    def gone(self) -> None:
        """The worker has ended: its turns are others'."""
        _begin(self._mailbox.leases.gone(self._may_load))

    def _may_load(self, number: int) -> None:
        """A load of its worker has its turn."""
        self._write(wire_calls.may_load(number))


def _begin(turns: Iterable[Turn[Callable[[int], None]]]) -> None:
    for turn in turns:
        turn.who(turn.number)
