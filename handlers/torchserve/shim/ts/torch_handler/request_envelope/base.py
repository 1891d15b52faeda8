"""What an envelope does: it takes rows apart before the handler, and packs its answers afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class BaseEnvelope:
    """Stands around a handler's entry."""

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        self._handle_fn = handle_fn
        self.context: Any = None

    def handle(self, data: Any, context: Any) -> Any:
        """Answer a batch."""
        self.context = context
        return self.format_output(self._handle_fn(self.parse_input(data), context))

    def parse_input(self, data: Any) -> Any:
        """The handler's data."""
        return data

    def format_output(self, data: Any) -> Any:
        """The answers, one a row."""
        return data


def content_of(row: Any) -> Any:
    """What a row has under `data` or `body`."""
    content = row.get("data")
    return row.get("body") if content is None else content
