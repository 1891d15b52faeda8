"""What handlers of DeepSpeed's models inherit from."""

from __future__ import annotations

from typing import Any

from ...handler_utils.distributed.refusal import refuse
from ..base_handler import BaseHandler


class BaseDeepSpeedHandler(BaseHandler):
    """Its `initialize` says why it cannot be served."""

    def initialize(self, ctx: Any) -> None:
        """ImportError where DeepSpeed is not installed, else NotImplementedError."""
        refuse("deepspeed", type(self).__name__)
