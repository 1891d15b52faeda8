"""A name and a value that a metric is told apart by."""

from dataclasses import dataclass


@dataclass
class Dimension:
    """One dimension."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"

    def to_dict(self) -> dict[str, str]:
        """As JSON has it."""
        return {"Name": self.name, "Value": self.value}
