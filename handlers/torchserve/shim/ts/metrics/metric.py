"""One measured value by itself, as `emit_metrics` takes it."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Any

from .dimension import Dimension
from .unit import Units


class Metric:
    """A value with its name, unit (written out where it is a short one), dimensions and request."""

    def __init__(
        self,
        name: str,
        value: float,
        unit: str,
        dimensions: Sequence[Dimension],
        request_id: str | None = None,
        metric_method: str | None = None,
    ) -> None:
        """`metric_method`: "counter" for a value that `update` adds to."""
        self.name = name
        self.value = value
        self.unit = Units.units.get(unit, unit)
        self.dimensions = list(dimensions)
        self.request_id = request_id
        self.metric_method = metric_method

    def update(self, value: float) -> None:
        """Set the value, or add to it."""
        self.value = self.value + value if self.metric_method == "counter" else value

    def reset(self) -> None:
        """Set the value to 0."""
        self.value = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; the time in whole seconds."""
        return {
            "MetricName": self.name,
            "Value": self.value,
            "Unit": self.unit,
            "Dimensions": self.dimensions,
            "Timestamp": int(time.time()),
            "HostName": socket.gethostname(),
            "RequestId": self.request_id,
        }

    def __str__(self) -> str:
        return f"{self.name}.{self.unit}:{self.value}|#{','.join(map(str, self.dimensions))}"
