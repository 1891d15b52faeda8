"""The old place of `PredictionException`, and the counter that handlers emit metrics with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .metrics.metrics_store import log_metric
from .utils.util import PredictionException

__all__ = ["PredictionException", "emit_metrics"]


def emit_metrics(metrics: Iterable[Any]) -> None:
    """Log each metric."""
    for metric in metrics:
        log_metric(metric)
