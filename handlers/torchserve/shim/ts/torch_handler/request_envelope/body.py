"""The envelope `body`: the handler gets what stands under `data` or `body`, without its key."""

from __future__ import annotations

from typing import Any

from .base import BaseEnvelope, content_of


class BodyEnvelope(BaseEnvelope):
    """See the module's docstring."""

    def parse_input(self, data: Any) -> Any:
        """The rows' contents."""
        return [content_of(row) for row in data]
