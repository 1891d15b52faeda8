"""What kinds of metric there are."""

from enum import Enum


class MetricTypes(str, Enum):
    """How a metric's values add up."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
