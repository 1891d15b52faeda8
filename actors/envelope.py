"""A message on its way through a mailbox: what is asked, where the answer goes, until when.

What must not live here: who is next (order.py, turns.py), what a claim may be (claims.py).
"""

from __future__ import annotations

from actorserve.actors.claims import Message
from actorserve.actors.duplex import Duplex
from actorserve.actors.exchange import Exchange
from actorserve.actors.messages import Answer
from actorserve.actors.order import Queued
from actorserve.actors.reply import Reply, ReplyStream


class Envelope(Queued):
    """A message on its way. Built by `Mailbox.ask` alone. Times are trio's clock, in seconds."""

    __slots__ = ("message", "reply")

    def __init__(
        self,
        message: Message,
        reply: Reply[Answer] | ReplyStream | Duplex | Exchange,
        deadline: float,
        arrival: float,
        number: int,
    ) -> None:
        self.message = message
        self.reply = reply
        self.deadline = deadline
        self.arrival = arrival
        self.number = number


class Claimed(Envelope):
    """One with a priority, in a mailbox with tenants, or in one with weights."""

    __slots__ = ("charge", "priority", "tenant", "weight")
