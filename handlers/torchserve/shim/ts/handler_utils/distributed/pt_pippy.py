"""A model in several processes by PiPPy: named so that handlers can be imported, and refused when they load."""

from __future__ import annotations

from typing import Any

from .refusal import refuse


def initialize_rpc_workers(local_rank: int, world_size: int, ctx: Any) -> None:
    """ImportError where PiPPy is not installed, else NotImplementedError."""
    refuse("pippy", "initialize_rpc_workers")


def get_pipeline_driver(model: Any, world_size: int, ctx: Any) -> Any:
    """ImportError where PiPPy is not installed, else NotImplementedError."""
    refuse("pippy", "get_pipeline_driver")
