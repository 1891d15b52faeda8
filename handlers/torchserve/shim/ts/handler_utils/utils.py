"""How a handler sends a part of its answers before it returns."""

from __future__ import annotations

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
