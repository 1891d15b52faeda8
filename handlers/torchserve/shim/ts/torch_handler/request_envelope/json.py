"""The envelope `json`: a request is {"instances": [...]}, its answer {"predictions": [...]}.

An instance {"b64": text}, or a value of one, becomes bytes.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from .base import Group, GroupEnvelope, object_of


class JSONEnvelope(GroupEnvelope):
    """See the module's docstring."""

    def unpack(self, row: Any) -> Group:
        """The instances of a request, decoded."""
        instances = object_of(row).get("instances")
        if not isinstance(instances, list):
            raise ValueError('the request is not {"instances": [...]}')  # noqa: TRY004  # a wrong value
        return Group([_decoded(one) for one in instances])

    def pack(self, group: Group, answers: list[Any], index: int) -> Any:
        """JSON on one line."""
        return json.dumps({"predictions": answers})


def _decoded(instance: Any) -> Any:
    if isinstance(instance, dict) and list(instance) != ["b64"]:
        return {key: _bytes(value) for key, value in instance.items()}
    return _bytes(instance)


def _bytes(value: Any) -> Any:
    """The bytes of {"b64": text}; any other value as it is."""
    if not isinstance(value, dict) or list(value) != ["b64"]:
        return value
    try:
        return base64.b64decode(value["b64"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"instances: b64 is not base64: {error}") from error
