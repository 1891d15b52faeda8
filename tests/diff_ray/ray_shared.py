"""What both differential tests use, from tests/diff_torchserve: comparing, and the list of what may differ."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "diff_torchserve"))

import compare
from differences import Difference, sort_out

__all__ = ["Difference", "compare", "sort_out"]
