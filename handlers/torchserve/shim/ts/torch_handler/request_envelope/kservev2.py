"""The envelope `kservev2`, KServe's second protocol in JSON: {"id", "inputs": [{name, shape, datatype, data}]}.

The handler gets each input as a dict, its `data` in its shape, and returns one answer for each. The reply has an output
of each input's name; its data is flat, its datatype is that of numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import Group, GroupEnvelope, object_of

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
"""KServe's names of types, and numpy's."""
NAMES = {theirs: name for name, theirs in DATATYPES.items()}


class KServev2Envelope(GroupEnvelope):
    """See the module's docstring."""

    def unpack(self, row: Any) -> Group:
        """The inputs of a request, and its id ("" for none)."""
        request = object_of(row)
        inputs = request.get("inputs")
        if not isinstance(inputs, list) or not inputs:
            raise ValueError('the request is not {"inputs": [...]}')
        return Group([_shaped(one, index) for index, one in enumerate(inputs)], str(request.get("id") or "").strip())

    def pack(self, group: Group, answers: list[Any], index: int) -> Any:
        """The reply; its id is the request's, or else the call's."""
        model = self.context.manifest.get("model", {})
        return {
            "id": group.said or self.context.get_request_id(index),
            "model_name": model.get("modelName"),
            "model_version": model.get("modelVersion"),
            "outputs": [_output(one["name"], value) for one, value in zip(group.items, answers, strict=True)],
        }


def _shaped(one: Any, index: int) -> dict[str, Any]:
    """An input with its data in its shape: nested lists, or the text itself where it is a single one."""
    missing = [key for key in ("name", "shape", "datatype", "data") if not isinstance(one, dict) or key not in one]
    if missing:
        raise ValueError(f"inputs[{index}] has no {missing[0]}")
    datatype, shape = one["datatype"], one["shape"]
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise ValueError(f"inputs[{index}].datatype is {datatype!r}; it must be one of {', '.join(DATATYPES)}")
    if datatype == "BYTES" and isinstance(one["data"], list) and len(one["data"]) == 1:
        return {**one, "data": one["data"][0]}
    try:
        np.array(one["data"], dtype=DATATYPES[datatype])  # says what is none of this type
        data = np.array(one["data"], dtype=object).reshape(shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"inputs[{index}].data is not {datatype} of the shape {shape}: {error}") from error
    return {**one, "data": data.tolist()}


def _output(name: str, value: Any) -> dict[str, Any]:
    flat = np.asarray(value).flatten()
    datatype = NAMES.get(str(flat.dtype), "BYTES" if flat.dtype.kind == "U" else None)
    if datatype is None:
        raise TypeError(f"the answer for input {name!r} is of {flat.dtype}, which KServe does not have")
    return {"name": name, "datatype": datatype, "data": flat.tolist(), "shape": list(flat.shape)}
