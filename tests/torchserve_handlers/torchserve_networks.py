"""Networks that the tests themselves save and compare with."""

from __future__ import annotations

import torch


class Line(torch.nn.Module):
    """What line.py has, for the files that bring their own code."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 10.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight).sum(dim=1)
