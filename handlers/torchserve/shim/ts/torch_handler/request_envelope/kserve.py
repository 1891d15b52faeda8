"""The envelope `kserve`, KServe's first protocol: as `json`, but an explanation stands under `explanations`."""

from __future__ import annotations

from typing import Any

from .base import Group
from .json import JSONEnvelope


class KServeEnvelope(JSONEnvelope):
    """See the module's docstring."""

    def pack(self, group: Group, answers: list[Any], index: int) -> Any:
        """An object; the request's header `explain` says which."""
        explained = str(self.context.get_request_header(index, "explain")) == "True"
        return {"explanations" if explained else "predictions": answers}
