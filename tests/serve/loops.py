"""An asyncio loop whose clock jumps to the next timer when nothing else is left to do; tests of worker code use it."""

import asyncio
import selectors


class _Selector(selectors.DefaultSelector):
    """Waits for nothing: the time that the loop would have waited passes at once."""

    loop: "JumpingLoop"

    def select(self, timeout=None):
        found = super().select(0)
        if not found and timeout:
            self.loop.now += timeout
        elif not found and timeout is None:
            raise AssertionError("the loop waits for ever: nothing is left that could wake it")
        return found


class JumpingLoop(asyncio.SelectorEventLoop):
    """No real time passes."""

    def __init__(self):
        self.now = 1000.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self):
        return self.now


def play(main):
    """Run a coroutine function on a loop of its own whose clock jumps."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main())


async def settle():
    """Let everything run that can run now."""
    for _ in range(20):
        await asyncio.sleep(0)
