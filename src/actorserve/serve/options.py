"""The options of a deployment: Ray Serve's names, checked one by one.

What lives here: `Options`, pure data, and what each may be. What must not: the server's keys (actors/applications.py
maps these to them); whatever needs a running server.

An option that Ray has and that means nothing here (HTTP, its cluster) is taken with one warning that names it, so that
an application moves by its imports alone; an unknown one is an error.
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from actorserve.serve.config import MOST_REPLICAS, AutoscalingConfig, check_number, check_whole
from actorserve.serve.exceptions import OptionError

AUTO_MAX_REPLICAS = 100
"""What num_replicas="auto" may grow to, as in Ray."""
MEANS_NOTHING = {
    "route_prefix": "applications are called over gRPC alone",
    "logging_config": "the log is configured in [log]",
    "graceful_shutdown_wait_loop_s": "a drain waits for its requests, not in rounds",
    "max_replicas_per_node": "there is one node",
    "placement_group_bundles": "there is no cluster",
    "placement_group_strategy": "there is no cluster",
    "request_router_config": "replicas take their requests themselves",
    "prev_version": "versions are told apart by their code",
    "version": "versions are told apart by their code",
}
OLD_NAMES = {"max_concurrent_queries": "max_ongoing_requests"}
MAY_BE_NONE = ("num_replicas", "autoscaling_config", "user_config")
RAY_ACTOR_OPTIONS = ("num_cpus", "num_gpus", "memory", "resources", "accelerator_type", "runtime_env")


@dataclass(frozen=True, slots=True)
class Options:
    """One deployment's options. Durations in seconds; None: not said, so the default holds."""

    name: str = ""
    num_replicas: int | str | None = None
    autoscaling_config: AutoscalingConfig | None = None
    max_ongoing_requests: int = 5
    max_queued_requests: int = -1
    user_config: Any = None
    health_check_period_s: float = 10.0
    health_check_timeout_s: float = 30.0
    graceful_shutdown_timeout_s: float = 20.0
    max_constructor_retry_count: int = 20
    device: str | tuple[str, ...] = ""
    threads: int | str = 1
    is_driver_deployment: bool = False
    ray_actor_options: Mapping[str, Any] = field(default_factory=dict)

    def with_(self, given: Mapping[str, Any]) -> Options:
        """These with others over them; OptionError names the one that is wrong."""
        known = {one.name for one in fields(Options)}
        changes: dict[str, Any] = {}
        scaling = given.get("autoscaling_config")
        if given.get("num_replicas") == "auto" and isinstance(scaling, Mapping):
            given = {**given, "autoscaling_config": {"max_replicas": AUTO_MAX_REPLICAS, **scaling}}
        for name, value in given.items():
            today = OLD_NAMES.get(name, name)
            if today in MEANS_NOTHING:
                if value is not None:
                    warnings.warn(f"option {name} means nothing here: {MEANS_NOTHING[today]}", stacklevel=4)
                continue
            if today not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise OptionError(name, f"unknown option{f'; did you mean {near[0]}?' if near else ''}")
            if value is not None or today in MAY_BE_NONE:
                changes[today] = CHECKS[today](value)
        return _scaled(replace(self, **changes), changes)

    @property
    def where(self) -> str | tuple[str, ...]:
        """The device: as said, else a GPU where Ray's options ask for one, else the CPU."""
        return self.device or ("auto" if self.ray_actor_options.get("num_gpus") else "cpu")

    def data(self) -> dict[str, Any]:
        """They as data that travels."""
        scaling = self.autoscaling_config
        environment = self.ray_actor_options.get("runtime_env") or {}
        return {
            "num_replicas": 1 if self.num_replicas is None else self.num_replicas,
            "autoscaling_config": None if scaling is None else scaling.data(),
            "max_ongoing_requests": self.max_ongoing_requests,
            "max_queued_requests": self.max_queued_requests,
            "user_config": self.user_config,
            "health_check_period_s": self.health_check_period_s,
            "health_check_timeout_s": self.health_check_timeout_s,
            "graceful_shutdown_timeout_s": self.graceful_shutdown_timeout_s,
            "max_constructor_retry_count": self.max_constructor_retry_count,
            "device": self.where if isinstance(self.where, str) else list(self.where),
            "threads": self.threads,
            "is_driver_deployment": self.is_driver_deployment,
            "env": dict(environment.get("env_vars") or {}),
            "requirements": list(environment.get("pip") or []),
        }


def _scaled(options: Options, changes: Mapping[str, Any]) -> Options:
    """What was said last of how many replicas there are, a number or a range, takes the place of the other."""
    replicas, scaling = changes.get("num_replicas"), changes.get("autoscaling_config")
    if replicas == "auto":
        wanted = scaling or options.autoscaling_config or AutoscalingConfig(max_replicas=AUTO_MAX_REPLICAS)
        return replace(options, num_replicas=None, autoscaling_config=wanted)
    if replicas is not None and scaling is not None:
        raise OptionError("num_replicas", "a number and autoscaling_config exclude each other")
    if replicas is not None:
        return replace(options, autoscaling_config=None)
    return options if scaling is None else replace(options, num_replicas=None)


# --- what each may be ---------------------------------------------------------------------------


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value or any(char in value for char in "/:#\0\n"):
        raise OptionError("name", f"{value!r} is no name: text without '/', ':' and '#'")
    return value


def _replicas(value: Any) -> int | str | None:
    if value is not None and value != "auto":
        check_whole("num_replicas", value, least=1, most=MOST_REPLICAS)
    found: int | str | None = value
    return found


def _scaling(value: Any) -> AutoscalingConfig | None:
    return None if value is None else AutoscalingConfig.of(value)


def _ongoing(value: Any) -> int:
    check_whole("max_ongoing_requests", value, least=1, most=65536)
    return int(value)


def _queued(value: Any) -> int:
    if value != -1:
        check_whole("max_queued_requests", value, least=1, most=1_000_000)
    return int(value)


def _user_config(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OptionError("user_config", f"it must be what JSON can hold: {error}") from None
    return value


def _seconds(name: str, *, positive: bool = False) -> Any:
    def check(value: Any) -> float:
        check_number(name, value, above=0 if positive else None)
        return float(value)

    return check


def _retries(value: Any) -> int:
    check_whole("max_constructor_retry_count", value, least=0, most=1000)
    return int(value)


def _device(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(one, str) for one in value):
        return tuple(value)
    raise OptionError("device", f'{value!r} is wrong: "cpu", "cuda:N", a list of the latter, or "auto"')


def _threads(value: Any) -> int | str:
    if value != "auto":
        check_whole("threads", value, least=1, most=1024)
    found: int | str = value
    return found


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError("is_driver_deployment", f"{value!r} is wrong: it must be True or False")
    return value


def _ray_actor_options(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise OptionError("ray_actor_options", f"{value!r} is no dict")
    for name in value:
        if name not in RAY_ACTOR_OPTIONS:
            raise OptionError(f"ray_actor_options.{name}", f"unknown; known are {', '.join(RAY_ACTOR_OPTIONS)}")
    if value.get("num_gpus"):
        check_number("ray_actor_options.num_gpus", value["num_gpus"])
    return dict(value)


CHECKS = {
    "name": _name,
    "num_replicas": _replicas,
    "autoscaling_config": _scaling,
    "max_ongoing_requests": _ongoing,
    "max_queued_requests": _queued,
    "user_config": _user_config,
    "health_check_period_s": _seconds("health_check_period_s", positive=True),
    "health_check_timeout_s": _seconds("health_check_timeout_s", positive=True),
    "graceful_shutdown_timeout_s": _seconds("graceful_shutdown_timeout_s"),
    "max_constructor_retry_count": _retries,
    "device": _device,
    "threads": _threads,
    "is_driver_deployment": _flag,
    "ray_actor_options": _ray_actor_options,
}
