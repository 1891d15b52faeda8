"""Metrics that a YAML file defines: its section `model_metrics` has a list of name, unit and dimensions by type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .metric_cache_abstract import MetricCacheAbstract
from .metric_cache_errors import (
    MetricsCacheIOError,
    MetricsCacheKeyError,
    MetricsCachePyYamlError,
    MetricsCacheTypeError,
    MetricsCacheValueError,
)
from .metric_type_enum import MetricTypes


class MetricsCacheYamlImpl(MetricCacheAbstract):
    """See the module's docstring. `initialize_cache` makes the metrics."""

    def __init__(self, config_file_path: str | Path) -> None:
        if not isinstance(config_file_path, (str, Path)):
            raise MetricsCacheTypeError(f"the file of metrics is {config_file_path!r}, not a path")
        super().__init__(str(config_file_path))
        try:
            self._content = yaml.safe_load(Path(config_file_path).read_text())
        except yaml.YAMLError as error:
            raise MetricsCachePyYamlError(f"{config_file_path} is not YAML: {error}") from error
        except OSError as error:
            raise MetricsCacheIOError(f"{config_file_path} cannot be read: {error}") from error

    def initialize_cache(self) -> None:
        """Make every metric of `model_metrics`. The errors of metric_cache_errors name what is missing."""
        if not isinstance(self._content, dict) or "model_metrics" not in self._content:
            raise MetricsCacheKeyError(f"{self.config_file_path} has no section model_metrics")
        section = self._content["model_metrics"]
        if not section:
            raise MetricsCacheValueError(f"{self.config_file_path}: model_metrics is empty")
        for kind, metrics in section.items():
            if kind not in [one.value for one in MetricTypes]:
                raise MetricsCacheKeyError(f"{self.config_file_path}: {kind!r} is no type of metrics")
            for metric in metrics:
                self._define(MetricTypes(kind), metric)

    def _define(self, kind: MetricTypes, metric: dict[str, Any]) -> None:
        missing = [key for key in ("name", "unit", "dimensions") if key not in metric]
        if missing:
            raise MetricsCacheKeyError(f"{self.config_file_path}: a {kind.value} has no {missing[0]}")
        self.add_metric_to_cache(metric["name"], metric["unit"], metric["dimensions"], kind)
