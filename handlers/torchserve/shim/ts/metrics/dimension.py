"""A name and a value that a metric is told apart by."""

from dataclasses import dataclass


@dataclass
class Dimension:
    """One dimension."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"
