"""A change that the registrar is asked for: who says so, when its turn is, and the row that says what is to be.

Pure but for the turns. What must not live here: carrying it out (registrar.py), what a row means (registry_rules.py),
SQL (registry.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from actorserve.actors.messages import Change, Replace, Scale, SetDefault, Spawn, Stop
from actorserve.actors.registry_rules import Row, RowState, without_text, write_spec
from actorserve.actors.reply import Reply
from actorserve.errors import NoSuchModel


@dataclass(frozen=True, slots=True)
class Said:
    """A change that config.toml asks for. `text`: that of its entry; None where it has no entry any more.

    `entry`: the entry's key, where that is not the model's name.
    """

    text: str | None
    entry: str = ""


class Answer:
    """What becomes of a change. `accepted`: it is durable and has begun; `done`: it is over. Both may fail."""

    def __init__(self) -> None:
        self.accepted: Reply[None] = Reply()
        self.done: Reply[None] = Reply()


class Turn:
    """A place in the queue of one model's changes."""

    def __init__(self, before: Turn | None) -> None:
        self.before = before
        self.over = trio.Event()


class Turns:
    """One change of a model at a time, in the order in which they were asked."""

    def __init__(self) -> None:
        self._last: dict[str, Turn] = {}

    def queue(self, name: str) -> Turn:
        """Join the queue of a model's changes, at its end."""
        turn = self._last[name] = Turn(self._last.get(name))
        return turn

    @asynccontextmanager
    async def take(self, name: str, turn: Turn | None = None) -> AsyncIterator[None]:
        """Wait for a turn, then have it; without one, from the end of the queue."""
        turn = self.queue(name) if turn is None else turn
        try:
            if turn.before is not None:
                await turn.before.over.wait()
                turn.before = None
            yield
        finally:
            turn.over.set()
            if self._last.get(name) is turn:
                del self._last[name]


@dataclass(frozen=True, slots=True)
class Asked:
    """A change in its turn."""

    message: Change
    said: Said | None
    turn: Turn
    answer: Answer = field(default_factory=Answer)

    @property
    def name(self) -> str:
        """The model's name."""
        return name_of(self.message)

    @property
    def is_undone_on_failure(self) -> bool:
        """Whether a model that cannot be loaded is not registered."""
        return isinstance(self.message, Spawn) and self.message.unregister_on_failure


@dataclass(slots=True)
class Unsettled:
    """A row whose rollout is under way: what it goes back to if that fails, and the latest change of it."""

    before: Row
    latest: Asked


def name_of(message: Change) -> str:
    """The name of the model that a change is of."""
    return message.model.name if isinstance(message, Spawn | Replace) else message.name


def intended(message: Change, said: Said | None, row: Row | None) -> Row:
    """The row that says what is to be; `row`: that of the version as it is. NoSuchModel where it has to be there."""
    if isinstance(message, Spawn | Replace) and said is not None:
        lives = row is not None and row.state is RowState.REGISTERED
        row = row if row is not None and lives else Row(0, message.model.name, message.model.version)
        return replace(row, spec=None, text=said.text, workers=None, entry=said.entry)
    if isinstance(message, Spawn):
        spec = message.model
        # nobody is told of one that is waited for until it is READY; of the others they are now
        state = RowState.PENDING if message.unregister_on_failure else RowState.REGISTERED
        row = Row(0, spec.name, spec.version) if row is None else row
        return replace(row, id=0, state=state, spec=write_spec(spec), workers=None)
    if isinstance(message, Replace):
        if row is None:
            raise NoSuchModel(message.model.name, message.model.version)
        return replace(row, spec=write_spec(message.model), workers=None)
    if row is None:
        raise NoSuchModel(message.name, message.version)
    match message:
        case Scale(workers_min=least, workers_max=most):
            return replace(row, workers=(least, most))
        case Stop():
            return replace(row if said is None else without_text(row), state=RowState.LEAVING)
        case SetDefault():
            return row
