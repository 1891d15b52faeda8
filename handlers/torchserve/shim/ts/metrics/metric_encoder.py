"""Metrics as JSON: `json.dumps(metrics, cls=MetricEncoder)`."""

from __future__ import annotations

import json
from typing import Any

from .dimension import Dimension
from .metric import Metric


class MetricEncoder(json.JSONEncoder):
    """Knows Metric and Dimension."""

    def default(self, o: Any) -> Any:
        """TypeError for anything else that JSON has not."""
        return o.to_dict() if isinstance(o, (Metric, Dimension)) else super().default(o)
