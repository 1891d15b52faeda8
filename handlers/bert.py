"""BERT's encoder in plain torch, without padding: texts of a batch lie one behind the other.

The linear layers see all tokens of a batch as one matrix, whatever the texts' lengths. Only attention needs to know
where a text ends: texts of one length stand side by side and attend in one call. So no work is spent on padding, and a
batch of mixed lengths costs what its tokens cost.
What must not live here: tokens, pooling, requests. The source is the BERT paper (Devlin et al. 2018) and the names of
the weights in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

__all__ = ["Bert", "BertConfig", "Group"]


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The numbers that the weights do not show."""

    layers: int
    heads: int
    eps: float


@dataclass(frozen=True, slots=True)
class Group:
    """`count` texts of `length` tokens each, side by side."""

    count: int
    length: int


class Bert:
    """The encoder over mapped weights."""

    def __init__(self, config: BertConfig, weights: Mapping[str, Tensor]) -> None:
        self._config = config
        self._w = weights

    def encode(self, tokens: Tensor, groups: Sequence[Group]) -> Tensor:
        """The last layer's output for each of `tokens`, which lie in `groups`, one behind the other."""
        w, config = self._w, self._config
        positions = torch.cat([torch.arange(group.length).repeat(group.count) for group in groups]).to(tokens.device)
        x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.position_embeddings.weight"][positions]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(config.layers):
            at = f"encoder.layer.{layer}."
            x = self._norm(x + self._attend(x, groups, at), at + "attention.output.LayerNorm")
            wide = F.gelu(self._linear(x, at + "intermediate.dense"))
            x = self._norm(x + self._linear(wide, at + "output.dense"), at + "output.LayerNorm")
        return x

    def _attend(self, x: Tensor, groups: Sequence[Group], at: str) -> Tensor:
        query, key, value = (self._linear(x, f"{at}attention.self.{name}") for name in ("query", "key", "value"))
        sizes = [group.count * group.length for group in groups]
        parts = zip(groups, *(torch.split(of, sizes) for of in (query, key, value)), strict=True)
        seen = [self._attend_group(group, q, k, v) for group, q, k, v in parts]
        return self._linear(torch.cat(seen), at + "attention.output.dense")

    def _attend_group(self, group: Group, *parts: Tensor) -> Tensor:
        shape = (group.count, group.length, self._config.heads, -1)
        query, key, value = (part.view(shape).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(query, key, value)
        return seen.transpose(1, 2).reshape(group.count * group.length, -1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._w[name + ".weight"], self._w[name + ".bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._w[name + ".weight"], self._w[name + ".bias"], self._config.eps)
