"""Echo: what was sent comes back. For benchmarks and tests: it shows what the server costs, and nothing else.

What must not live here: torch, or any other import that takes time. The contract is handlers/base.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from actorserve.errors import LoadFailed
from actorserve.handlers.base import Answer, Context, Request
from actorserve.handlers.inputs import check_options, integer, main_input, read_each

__all__ = ["Echo"]

_MOST_COPIES = 1_000_000


class Echo:
    """Inputs: `data` (or `body`), any bytes; `count`, how many copies a stream gives (1).

    Options: `delay_s`, slept once a batch and once before each copy of a stream (0).
    """

    _delay_s = 0.0

    def load(self, context: Context) -> None:
        """Take the delay."""
        check_options(context.options, ("delay_s",))
        delay = context.options.get("delay_s", 0.0)
        if isinstance(delay, bool) or not isinstance(delay, int | float) or not 0 <= delay <= 3600:
            raise LoadFailed(f"options.delay_s: {delay!r} is not a number of seconds between 0 and 3600")
        self._delay_s = float(delay)

    def infer(self, batch: Sequence[Request]) -> Sequence[Answer | Exception]:
        """Give each item its own bytes."""
        if self._delay_s:
            time.sleep(self._delay_s)
        return read_each(batch, main_input)

    def generate(self, request: Request) -> Iterator[Answer]:
        """Give `count` copies, one a turn."""
        data = main_input(request)
        for _ in range(integer(request, "count", 1, 0, _MOST_COPIES)):
            if self._delay_s:
                time.sleep(self._delay_s)
            yield data
