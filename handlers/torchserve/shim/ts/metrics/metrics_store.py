"""A handler's own metrics: `context.metrics`. Each value is one line of the log, as name, unit, value, dimensions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .dimension import Dimension
from .metric_type_enum import MetricTypes
from .unit import Units

logger = logging.getLogger("ts.metrics")
LONGEST_LOG = 1000


@dataclass
class Metric:
    """One metric, its last value (of a counter: the sum) and its dimensions."""

    name: str
    value: float = 0
    unit: str = "count"
    dimensions: Sequence[Dimension] = ()
    metric_type: MetricTypes = MetricTypes.COUNTER
    dimension_names: list[str] = field(default_factory=list)

    def update(self, value: float) -> None:
        """Take a value: a counter adds it up."""
        self.value = self.value + value if self.metric_type is MetricTypes.COUNTER else value

    def add_or_update(self, value: float, dimension_values: Sequence[str] = (), request_id: str = "") -> None:
        """Take a value with the values of `dimension_names`, in their order."""
        if len(dimension_values) != len(self.dimension_names):
            raise ValueError(f"metric {self.name}: dimensions are {self.dimension_names}, not {list(dimension_values)}")
        self.dimensions = [
            Dimension(name, one) for name, one in zip(self.dimension_names, dimension_values, strict=True)
        ]
        self.update(value)
        log_metric(self)

    def __str__(self) -> str:
        dimensions = ",".join(map(str, self.dimensions))
        return f"{self.name}.{Units.units.get(self.unit, self.unit)}:{self.value}|#{dimensions}"[:LONGEST_LOG]


def log_metric(metric: Any) -> None:
    """One line of the log."""
    logger.info("%s", metric)


class MetricsStore:
    """See the module's docstring. Values must be numbers."""

    def __init__(self, request_ids: dict[int, str], model_name: str) -> None:
        self.request_ids = request_ids
        self.model_name = model_name
        self.cache: dict[tuple[str, MetricTypes, str], Metric] = {}

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str = "count",
        idx: int | None = None,
        dimensions: Sequence[Dimension] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        """Take one value."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"metric {name}: the value is a {type(value).__name__}, not a number")
        own = [*dimensions, Dimension("ModelName", self.model_name)]
        key = (name, MetricTypes(metric_type), ",".join(map(str, own)))
        metric = self.cache.setdefault(key, Metric(name, 0, unit, own, MetricTypes(metric_type)))
        metric.update(value)
        log_metric(metric)

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
        self._set(name, value, idx, unit, ("ms", "s"), dimensions, metric_type)

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
        self._set(name, value, idx, unit, ("B", "kB", "MB", "GB"), dimensions, metric_type)

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
        self.add_metric(name, value, "", None, dimensions)

    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> Metric:
        """Make a metric that is told apart by these dimensions; its `add_or_update` takes values."""
        kind = MetricTypes(metric_type)
        metric = Metric(metric_name, 0, unit, (), kind, list(dimension_names))
        return self.cache.setdefault((metric_name, kind, ""), metric)

    def get_metric(self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER) -> Metric:
        """The metric of this name; KeyError where there is none."""
        for (name, kind, _), metric in self.cache.items():
            if name == metric_name and kind == MetricTypes(metric_type):
                return metric
        raise KeyError(f"there is no {MetricTypes(metric_type).value} {metric_name!r}")

    def _set(
        self,
        name: str,
        value: float,
        idx: int | None,
        unit: str,
        units: Sequence[str],
        dimensions: Sequence[Dimension],
        metric_type: MetricTypes,
    ) -> None:
        if unit not in units:
            raise ValueError(f"metric {name}: the unit is {unit!r}; it must be one of {', '.join(units)}")
        self.add_metric(name, value, unit, idx, dimensions, metric_type)
