"""A handler's own metrics, by type and name. What must not live here: where their definitions come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .caching_metric import CachingMetric
from .dimension import Dimension
from .metric_cache_errors import MetricsCacheKeyError
from .metric_type_enum import MetricTypes


class MetricCacheAbstract:
    """Every metric has the dimensions that are given, then ModelName and Level, unless these are among them."""

    def __init__(self, config_file_path: str | None = None) -> None:
        self.cache: dict[MetricTypes, dict[str, CachingMetric]] = {}
        self.request_ids: dict[int, str] | None = None
        self.model_name: str | None = None
        self.config_file_path = config_file_path

    @property
    def store(self) -> list[CachingMetric]:
        """All metrics, as `emit_metrics` takes them."""
        return [metric for metrics in self.cache.values() for metric in metrics.values()]

    def set_request_ids(self, request_ids: dict[int, str]) -> None:
        """The requests of the call that runs."""
        self.request_ids = request_ids

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str = "count",
        idx: int | None = None,
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        """Take one value; `idx`: the request that it belongs to, None for all."""
        self._add(name, value, unit, self._completed(dimensions, "Model"), metric_type, self._request(idx))

    def add_counter(
        self, name: str, value: float, idx: int | None = None, dimensions: Sequence[Dimension] = ()
    ) -> None:
        """Add to a counter."""
        self.add_metric(name, value, "count", idx, dimensions)

    def add_time(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "ms",
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Set a time, in "ms" or "s"."""
        _check_unit(name, unit, ("ms", "s"))
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_size(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Set a size, in "B", "kB", "MB" or "GB"."""
        _check_unit(name, unit, ("B", "kB", "MB", "GB"))
        self.add_metric(name, value, unit, idx, dimensions, metric_type)

    def add_percent(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Set a percentage."""
        self.add_metric(name, value, "percent", idx, dimensions, metric_type)

    def add_error(self, name: str, value: float, dimensions: Sequence[Dimension] = ()) -> None:
        """Add to a counter of errors; the value must be a number, as of every metric."""
        self._add(name, value, "", self._completed(dimensions, "Error"), MetricTypes.COUNTER, "")

    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> CachingMetric:
        """Make a metric, in the place of one of its name; its `add_or_update` takes values."""
        metric = CachingMetric(metric_name, unit, dimension_names, MetricTypes(metric_type))
        self.cache.setdefault(metric.metric_type, {})[metric_name] = metric
        return metric

    def get_metric(self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER) -> CachingMetric:
        """The metric of this name; KeyError where there is none."""
        try:
            return self.cache[MetricTypes(metric_type)][metric_name]
        except KeyError:
            raise MetricsCacheKeyError(f"there is no {MetricTypes(metric_type).value} {metric_name!r}") from None

    def cache_keys(self) -> list[str]:
        """Each metric as type:name."""
        return [f"{kind.value}:{name}" for kind, metrics in self.cache.items() for name in metrics]

    def _completed(self, dimensions: Sequence[Dimension], level: str) -> list[Dimension]:
        own = list(dimensions)
        wanted: dict[str, Any] = {} if level == "Error" else {"ModelName": self.model_name}
        for name, value in (wanted | {"Level": level}).items():
            if name not in [one.name for one in own]:
                own.append(Dimension(name, value))
        return own

    def _request(self, idx: int | None) -> str:
        ids = self.request_ids or {}
        return ids[idx] if idx in ids else ",".join(ids.values())

    def _add(
        self, name: str, value: float, unit: str, dimensions: list[Dimension], metric_type: MetricTypes, request_id: str
    ) -> None:
        metric = self.cache.get(MetricTypes(metric_type), {}).get(name)
        if metric is None:
            metric = self.add_metric_to_cache(name, unit, [one.name for one in dimensions], metric_type)
        metric.add_or_update(value, [one.value for one in dimensions], request_id)


def _check_unit(name: str, unit: str, units: Sequence[str]) -> None:
    if unit not in units:
        raise ValueError(f"metric {name}: the unit is {unit!r}; it must be one of {', '.join(units)}")
