"""The envelope `json`: a request is {"instances": [...]}, its answer {"predictions": [...]}.

The handler gets the instances of all requests in one list, and returns as many answers.
"""

from __future__ import annotations

import json
from typing import Any

from .base import BaseEnvelope, content_of


class JSONEnvelope(BaseEnvelope):
    """See the module's docstring."""

    def handle(self, data: Any, context: Any) -> Any:
        """Answer a batch; the lengths belong to this call, whatever else runs while it waits."""
        self.context = context
        requests = [self._instances(row) for row in data]
        answers = self._handle_fn([one for request in requests for one in request], context)
        total = sum(map(len, requests))
        if not isinstance(answers, list) or len(answers) != total:
            raise ValueError("number of batch response mismatched")
        rest = iter(answers)
        return [json.dumps({"predictions": [next(rest) for _ in request]}) for request in requests]

    def _instances(self, row: Any) -> list[Any]:
        content = content_of(row)
        if isinstance(content, (bytes, bytearray, str)):
            content = json.loads(content)
        instances = content.get("instances") if isinstance(content, dict) else None
        if not isinstance(instances, list):
            raise ValueError('the request is not {"instances": [...]}')  # noqa: TRY004  # a wrong value, not a wrong type
        return instances
