"""Which token comes next: the likeliest, or a draw.

A draw with a seed depends on the seed and the logits alone, never on what else is in the batch.
What must not live here: the network, requests' other fields. The source of top-p is Holtzman et al. 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actorserve.handlers.base import Request
from actorserve.handlers.inputs import floating, integer

__all__ = ["Sampler", "sampler_of"]


@dataclass(slots=True)
class Sampler:
    """How one generation draws; temperature 0 takes the likeliest."""

    temperature: float
    top_p: float
    generator: torch.Generator

    def draw(self, logits: Tensor) -> int:
        """The next token, for logits [vocabulary]."""
        if self.temperature == 0:
            return int(logits.argmax())
        chances = torch.softmax(logits.float().cpu() / self.temperature, dim=0)
        if self.top_p < 1:
            ranked, order = chances.sort(descending=True)
            ranked[ranked.cumsum(0) - ranked > self.top_p] = 0  # the likeliest always stays
            return int(order[ranked.multinomial(1, generator=self.generator)])
        return int(chances.multinomial(1, generator=self.generator))


def sampler_of(request: Request) -> Sampler:
    """Read `temperature` (0), `top_p` (1) and `seed` (random)."""
    temperature = floating(request, "temperature", 0.0, 0.0, 5.0)
    generator = torch.Generator()
    seed = integer(request, "seed", -1, 0, 2**63 - 1)
    if seed < 0:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return Sampler(temperature, floating(request, "top_p", 1.0, 0.0, 1.0), generator)
