"""`timed`: a handler's method whose time becomes a metric where model-config.yaml asks for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any


def timed(method: Callable[..., Any]) -> Callable[..., Any]:
    """Add ts_handler_<method> in milliseconds where `handler.profile` of model_yaml_config is true."""

    @wraps(method)
    def measured(self: Any, *arguments: Any, **named: Any) -> Any:
        context = getattr(self, "context", None)
        config = getattr(context, "model_yaml_config", None) or {}
        if not (config.get("handler") or {}).get("profile", False):
            return method(self, *arguments, **named)
        began = time.perf_counter()
        answer = method(self, *arguments, **named)
        spent = (time.perf_counter() - began) * 1000
        metrics = getattr(context, "metrics", None)
        if metrics is not None:
            metrics.add_time(f"ts_handler_{method.__name__}", spent)
        return answer

    return measured
