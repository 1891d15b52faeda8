"""Scripted workers of the campaign that do everything wrong, now and then; and how heavy they are.

What must not live here: callers, the operator, the rules (campaign_life.py).
"""

# ruff: noqa: C901  # dice, not secrets; a worker with many faults

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from actorserve import errors
from actorserve.scripted import ScriptedWorker

MEGABYTE = 1 << 20


def faulty(dice: random.Random, is_calm: Callable[[], bool]) -> type[ScriptedWorker]:
    """A handler: what it can do, and how often it does it wrong, until all is calm."""
    fault_rate = dice.choice([0.0, 0.02, 0.1, 0.3])
    changes = dice.random() < 0.05  # each incarnation may be another handler, as after a new deployment

    def strikes() -> bool:
        return not is_calm() and dice.random() < fault_rate

    class Faulty(ScriptedWorker):
        def __init__(self, *given):
            super().__init__(*given)
            self.born = trio.current_time()
            self.grows_mb = dice.choice([0, 1, 20])  # a second
            if changes:
                draw_abilities(dice, self)

        async def load(self, content):
            await trio.sleep(dice.choice([0, 0, 0.3, 3.0]))
            if strikes():
                match dice.randrange(5):
                    case 0:
                        self.crash()
                    case 1:
                        await trio.sleep(100)
                    case 2:
                        raise errors.LoadFailed("cannot", permanent=dice.random() < 0.3)
                    case 3:
                        raise OSError("busy")
                    case 4:
                        await self._say(b"\xfe" * 13)
            if strikes():
                trio.lowlevel.spawn_system_task(self.die_later, dice.expovariate(0.3))

        async def die_later(self, seconds):
            await trio.sleep(seconds)
            self.crash(dice.choice([-9, -11, 0, 3]))

        async def misbehave(self):
            match dice.randrange(6):
                case 0:
                    self.crash(dice.choice([-9, -11, 0, 1]))
                    await trio.sleep_forever()
                case 1:
                    await trio.sleep(1000)
                case 2:
                    self.answers_ping = False
                    await trio.sleep(1000)
                case 3:
                    raise ValueError("as told")
                case 4:
                    await self._say(bytes(dice.randrange(256) for _ in range(20)))
                    await trio.sleep_forever()
                case 5:
                    await trio.sleep(4)

        async def infer(self, items):
            await trio.sleep(dice.choice([0, 0, 0.01, 0.5]))
            if strikes():
                await self.misbehave()
            return [item.inputs["data"] for item in items]

        async def generate(self, item):
            for _ in range(int(item.inputs.get("count", b"1"))):
                await trio.sleep(dice.choice([0, 0.01, 0.1]))
                if strikes() and strikes():
                    await self.misbehave()
                yield item.inputs["data"]

        async def feed(self, id, inputs):
            await trio.sleep(dice.choice([0, 0, 0.01, 0.3]))
            if strikes() and strikes():
                await self.misbehave()
            if strikes():
                return errors.BadInput("data", "this item alone")
            return inputs["data"]

    draw_abilities(dice, Faulty)
    return Faulty


def draw_abilities(dice: random.Random, handler: type[ScriptedWorker] | ScriptedWorker) -> None:
    """What a handler can do; it can do something."""
    handler.can_sequences = dice.random() < 0.4
    alone = handler.can_sequences and dice.random() < 0.3
    handler.can_generate = not alone and dice.random() < 0.7
    handler.can_infer = not alone and (dice.random() < 0.8 or not (handler.can_generate or handler.can_sequences))


class Scales:
    """Weighs the scripted workers of a life; each grows with its age."""

    def __init__(self) -> None:
        self.made: list[ScriptedWorker] = []

    async def weigh(self, pid: int | None) -> int | None:
        """See `Measure`. The pids of scripted workers are negative."""
        await trio.lowlevel.checkpoint()
        if pid is None:
            return None
        worker = self.made[-pid - 1]
        if worker.process.status is not None:
            return None
        return int((trio.current_time() - worker.born) * worker.grows_mb * MEGABYTE)
