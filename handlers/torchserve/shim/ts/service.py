"""The old place of `PredictionException`, and what handlers emit metrics with."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from .utils.util import PredictionException

__all__ = ["PredictionException", "emit_metrics"]
logger = logging.getLogger("ts.metrics")


def emit_metrics(metrics: Iterable[Any] | None) -> None:
    """One line of the log for each metric; None is no metric."""
    for metric in metrics or ():
        logger.info("%s", metric)
