"""`context.metrics`, and what handlers' own tests make by hand."""

from __future__ import annotations

from .metric_cache_abstract import MetricCacheAbstract


class MetricsStore(MetricCacheAbstract):
    """An empty cache of a model's metrics."""

    def __init__(self, request_ids: dict[int, str], model_name: str) -> None:
        super().__init__()
        self.request_ids = request_ids
        self.model_name = model_name
