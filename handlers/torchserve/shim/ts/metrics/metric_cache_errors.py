"""What can be wrong with a cache of metrics. Each is the built-in error that fits, too."""

from __future__ import annotations

import yaml


class GeneralMetricsCacheError(Exception):
    """Anything else."""


class MetricsCacheIOError(IOError):
    """The file cannot be read."""


class MetricsCachePyYamlError(yaml.YAMLError):
    """The file is not YAML."""


class MetricsCacheTypeError(TypeError):
    """A value of a wrong type."""


class MetricsCacheValueError(ValueError):
    """A wrong value."""


class MetricsCacheKeyError(KeyError):
    """What is asked for is not there."""
