"""A metric that keeps its values: of a counter the sum, of any other the last. Each value is one line of the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from .dimension import Dimension
from .metric_abstract import MetricAbstract
from .metric_type_enum import MetricTypes

logger = logging.getLogger("ts.metrics")
LONGEST_LOG = 1000
MOST_VALUES = 1000
"""Combinations of dimensions that one metric keeps; beyond them the oldest is forgotten."""


class CachingMetric(MetricAbstract):
    """`values` has one value for each combination of dimensions, `value` is the one that changed last."""

    def __init__(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        super().__init__(metric_name, unit, dimension_names, metric_type)
        self.values: dict[tuple[str, ...], float] = {}
        self.value: float = 0

    def add_or_update(self, value: float, dimension_values: Sequence[str] = (), request_id: str = "") -> None:
        """Take a value with the values of `dimension_names`, in their order.

        TypeError for a value that is no number; ValueError for other dimensions, and for a counter that would fall.
        """
        self._check(value, dimension_values)
        key = tuple(str(one) for one in dimension_values)
        before = self.values.pop(key, 0)
        self.value = before + value if self.metric_type is MetricTypes.COUNTER else value
        self.values[key] = self.value
        if len(self.values) > MOST_VALUES:
            del self.values[next(iter(self.values))]
        self.emit_metrics(request_id, self.value, self._dimensions(key))

    def update(self, value: float, request_id: str = "", dimensions: Sequence[Dimension] = ()) -> None:
        """Take a value with dimensions as they are."""
        self.add_or_update(value, [one.value for one in dimensions], request_id)

    def emit_metrics(self, request_id: str, value: float, dimension_string: str) -> None:
        """One line of the log."""
        logger.info("%s", f"{self.metric_name}.{self.unit}:{value}|#{dimension_string}"[:LONGEST_LOG])

    def _check(self, value: float, dimension_values: Sequence[str]) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"metric {self.metric_name}: the value is a {type(value).__name__}, not a number")
        if len(dimension_values) != len(self.dimension_names):
            given = list(dimension_values)
            raise ValueError(f"metric {self.metric_name}: dimensions are {self.dimension_names}, not {given}")
        if self.metric_type is MetricTypes.COUNTER and value < 0:
            raise ValueError(f"metric {self.metric_name}: a counter cannot fall by {-value}")

    def _dimensions(self, values: tuple[str, ...]) -> str:
        return ",".join(f"{name}:{one}" for name, one in zip(self.dimension_names, values, strict=True))

    def __str__(self) -> str:
        last = next(reversed(self.values), ())
        return f"{self.metric_name}.{self.unit}:{self.value}|#{self._dimensions(last) if last else ''}"[:LONGEST_LOG]
