"""A model in several processes by DeepSpeed: named so that handlers can be imported, and refused when they load."""

from __future__ import annotations

from typing import Any

from .refusal import refuse


def get_ds_engine(model: Any, ctx: Any) -> Any:
    """ImportError where DeepSpeed is not installed, else NotImplementedError."""
    refuse("deepspeed", "get_ds_engine")
