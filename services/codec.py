"""protobuf <-> messages, for the inference service. A bad field ends here and goes no deeper.

What must not live here: who answers, statuses (status.py), the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from actorserve.actors.messages import Metadata
from actorserve.errors import BadInput
from actorserve.proto.inference_pb2 import PredictionsRequest

_EMPTY: Metadata = MappingProxyType({})


def model_of(request: PredictionsRequest) -> tuple[str, str]:
    """Model name and version; an empty version is the default one."""
    if not request.model_name:
        raise BadInput("model_name", "is empty: name the model to ask, ListModels lists them")
    return request.model_name, request.model_version


def inputs_of(request: PredictionsRequest) -> Mapping[str, bytes]:
    """The handler's inputs: every key, as TorchServe does."""
    return dict(request.input)


def metadata_of(metadata: Mapping[str, Any] | None) -> Metadata:
    """The call's metadata for the handler; of a repeated key, the first value."""
    if not metadata:
        return _EMPTY
    first: dict[str, str | bytes] = {}
    for key, value in metadata.items():
        first.setdefault(key, value)
    return first
