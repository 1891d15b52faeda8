"""How a handler sends a part of its answers before it returns, and how it finds a class by its name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..context import Context


def send_intermediate_predict_response(
    ret: Sequence[Any], req_id_map: Mapping[int, str], message: str, code: int, context: Context | None = None
) -> None:
    """Send each request of `req_id_map` its item of `ret`: one message of its stream.

    Waits until the stream may go on. Of a model in several processes only the one of rank 0 sends.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    if context is None or context.sink is None:
        raise RuntimeError("send_intermediate_predict_response needs the context that the handler was given")
    context.sink(ret, req_id_map, message, code)


def import_class(class_name: str, module_prefix: str | None = None) -> type:
    """The class `module.Class`, the module below `module_prefix` if one is given. ImportError says what is absent."""
    module, _, name = (class_name or "").rpartition(".")
    place = ".".join(part for part in (module_prefix, module) if part)
    if not name or not place:
        raise ImportError(f"class {class_name!r}: it must be named as module.Class, or a module_prefix given")
    found = getattr(importlib.import_module(place), name, None)
    if not isinstance(found, type):
        raise ImportError(f"class {name!r} is not in the module {place}")  # noqa: TRY004  # what an import raises
    return found
