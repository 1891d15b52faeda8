"""What configures a deployment, as Ray Serve's users write it: AutoscalingConfig, gRPCOptions.

What lives here: plain data with its checks; every error names its field. What must not: when replicas are added
(actors/autoscaling.py), what the server listens on (config_listener.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from actorserve.serve.exceptions import OptionError

__all__ = ["AutoscalingConfig", "gRPCOptions"]

MOST_REPLICAS = 1024
MOST_BYTES = 1 << 30
"""Of one message, where it is said."""
LARGE_BYTES = 1 << 29
"""Of one message otherwise. Ray takes 2 GiB; a replica is deaf while it reads one, and may not be for too long."""
OLD_NAMES = {
    "target_num_ongoing_requests_per_replica": "target_ongoing_requests",
    "target_num_ongoing_requests": "target_ongoing_requests",
}
"""Names of earlier Ray versions, and today's."""
FACTORS = {
    "smoothing_factor": ("upscaling_factor", "downscaling_factor"),
    "upscale_smoothing_factor": ("upscaling_factor",),
    "downscale_smoothing_factor": ("downscaling_factor",),
}
"""Factors of earlier Ray versions; today's, where both are given, win."""


@dataclass(frozen=True, slots=True)
class AutoscalingConfig:
    """How many replicas a deployment has. Durations in seconds; the rule stands in docs/scaling.md.

    `metrics_interval_s` is taken and means nothing: the server sees every request itself, and looks every second.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    initial_replicas: int | None = None
    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    downscale_to_zero_delay_s: float | None = None
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    look_back_period_s: float = 30.0
    metrics_interval_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("min_replicas", "max_replicas", "initial_replicas"):
            value = getattr(self, name)
            if value is not None:
                check_whole(f"autoscaling_config.{name}", value, least=0, most=MOST_REPLICAS)
        if self.max_replicas < max(self.min_replicas, 1):
            least = max(self.min_replicas, 1)
            raise OptionError("autoscaling_config.max_replicas", f"{self.max_replicas} is less than {least}")
        if self.initial_replicas is not None and not self.min_replicas <= self.initial_replicas <= self.max_replicas:
            between = f"between {self.min_replicas} and {self.max_replicas}"
            raise OptionError("autoscaling_config.initial_replicas", f"{self.initial_replicas} is not {between}")
        for name in ("target_ongoing_requests", "upscaling_factor", "downscaling_factor"):
            check_number(f"autoscaling_config.{name}", getattr(self, name), above=0)
        delays = ("upscale_delay_s", "downscale_delay_s", "downscale_to_zero_delay_s")
        for name in (*delays, "look_back_period_s", "metrics_interval_s"):
            value = getattr(self, name)
            if value is not None:
                check_number(f"autoscaling_config.{name}", value)

    @classmethod
    def of(cls, value: AutoscalingConfig | Mapping[str, Any]) -> Self | AutoscalingConfig:
        """One from a mapping, with today's or earlier names; OptionError names a key that is unknown."""
        if isinstance(value, AutoscalingConfig):
            return value
        if not isinstance(value, Mapping):
            raise OptionError("autoscaling_config", f"{value!r} is neither an AutoscalingConfig nor a dict")
        known = {one.name for one in fields(cls)}
        given: dict[str, Any] = {}
        for name, one in value.items():
            today = FACTORS.get(name, (OLD_NAMES.get(name, name),))
            if not known.issuperset(today):
                raise OptionError(f"autoscaling_config.{name}", f"unknown; known are {', '.join(sorted(known))}")
            given |= {factor: one for factor in today if factor == name or factor not in value}
        return cls(**given)

    def data(self) -> dict[str, Any]:
        """It as data that travels."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class gRPCOptions:  # noqa: N801  # Ray's name
    """What Ray's proxy is told of gRPC. Here it is data for `serve.start`: a listener and its schemas.

    max_receive_bytes, max_send_bytes: the largest message, of a client and of an application. Ray has no such keys.
    """

    port: int = 9000
    grpc_servicer_functions: list[str] = field(default_factory=list)
    request_timeout_s: float | None = None
    enable_reflection: bool = True
    max_receive_bytes: int = LARGE_BYTES
    max_send_bytes: int = LARGE_BYTES

    def __post_init__(self) -> None:
        check_whole("grpc_options.port", self.port, least=0, most=65535)
        for name in ("max_receive_bytes", "max_send_bytes"):
            check_whole(f"grpc_options.{name}", getattr(self, name), least=1, most=MOST_BYTES)
        functions: Any = self.grpc_servicer_functions
        if isinstance(functions, str) or not all(isinstance(one, str) for one in functions):
            raise OptionError("grpc_options.grpc_servicer_functions", 'expected a list of "module.function"')
        if self.request_timeout_s is not None:
            check_number("grpc_options.request_timeout_s", self.request_timeout_s)

    @classmethod
    def of(cls, value: gRPCOptions | Mapping[str, Any] | None) -> gRPCOptions:
        """One from a mapping; OptionError names a key that is unknown."""
        if isinstance(value, gRPCOptions):
            return value
        known = {one.name for one in fields(cls)}
        for name in value or {}:
            if name not in known:
                raise OptionError(f"grpc_options.{name}", f"unknown; known are {', '.join(sorted(known))}")
        return cls(**(value or {}))


def check_whole(option: str, value: Any, *, least: int, most: int = 1 << 40) -> None:
    """OptionError unless `value` is a whole number in these bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise OptionError(option, f"{value!r} is wrong: it must be a whole number from {least} to {most}")


def check_number(option: str, value: Any, *, above: float | None = None) -> None:
    """OptionError unless `value` is a number that is not negative, or one above `above`."""
    wanted = "not negative" if above is None else f"above {above}"
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    if not fits or not (value >= 0 if above is None else value > above) or value == float("inf"):
        raise OptionError(option, f"{value!r} is wrong: it must be a number that is {wanted}")
