"""Medians and Markdown tables. What must not live here: what the figures mean."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil  # type: ignore[import-untyped]

median = statistics.median


def show(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print one table, with its columns in line."""
    table = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print(f"\n### {title}\n")
    print("\n".join(lines), flush=True)


def count(value: float) -> str:
    """A whole number with its thousands."""
    return f"{value:,.0f}"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, three digits."""
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def microseconds(seconds: float) -> str:
    """Seconds as whole microseconds."""
    return f"{seconds * 1e6:.0f}"


def machine() -> str:
    """What this machine is, in a line."""
    memory = psutil.virtual_memory().total / (1 << 30)
    return f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB; Python {platform.python_version()}"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
