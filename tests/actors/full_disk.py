"""A registry that cannot be written, as on a full disk."""

from __future__ import annotations

from contextlib import asynccontextmanager

from actorserve.actors.registry import Registry

EVENTS = ("INSERT", "UPDATE", "DELETE")


@asynccontextmanager
async def full_disk(registry: Registry):
    """Have SQLite refuse every row of a model's that is written, until the end."""

    def fill():
        for event in EVENTS:
            refuse = f"CREATE TRIGGER full_{event} BEFORE {event} ON models BEGIN SELECT RAISE(ABORT, 'full'); END"
            registry._connection.execute(refuse)

    await registry._in_thread(fill)
    yield
    await registry._in_thread(lambda: [registry._connection.execute(f"DROP TRIGGER full_{event}") for event in EVENTS])
