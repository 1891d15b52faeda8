"""What every metric of a cache has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from .metric_type_enum import MetricTypes
from .unit import Units


class MetricAbstract(ABC):
    """A name, a unit (written out where it is a short one), names of dimensions, and a type."""

    def __init__(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        self.metric_name = metric_name
        self.unit = Units.units.get(unit, unit)
        self.dimension_names = list(dimension_names or ())
        self.metric_type = MetricTypes(metric_type)

    @abstractmethod
    def add_or_update(self, value: float, dimension_values: Sequence[str], request_id: str = "") -> None:
        """Take a value."""
