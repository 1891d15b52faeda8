"""The Llama network in plain torch, made for continuous batching on a CPU.

1. Every sequence owns its keys and values (`Cache`): joining, leaving and sitting out move nothing.
2. In a decoding step the linear layers take all sequences as one matrix, so the weights are read once for all of them;
   only attention runs sequence by sequence, each over exactly its own length. Nothing is padded.
3. Rotary turns adjacent pairs, as GGUF files lay out the rows of q and k.
What must not live here: tokens, sampling, files. The sources are the Llama papers (Touvron et al. 2023), the rotary
paper (Su et al. 2021) and GGUF's names and layout of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

__all__ = ["Cache", "Llama", "LlamaConfig", "fuse"]

_FEW_ROWS = 8
_SOME_ROWS = 24
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The numbers that the weights do not show."""

    layers: int
    heads: int
    kv_heads: int
    eps: float
    rope_base: float
    context: int


@dataclass(slots=True)
class Cache:
    """One sequence's keys and values, [layers, k and v heads, positions, head size], of which `length` are filled."""

    kept: Tensor
    length: int = 0


def fuse(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Weights under GGUF's names, with q, k, v and gate, up joined: fewer and larger products."""
    fused = {name: weights[name] for name in ("token_embd.weight", "output_norm.weight")}
    if "output.weight" in weights:
        fused["output.weight"] = weights["output.weight"]
    for layer in range(layers):
        at = f"blk.{layer}."
        for name in ("attn_norm", "attn_output", "ffn_norm", "ffn_down"):
            fused[f"{at}{name}.weight"] = weights[f"{at}{name}.weight"]
        fused[at + "qkv"] = torch.cat([weights[f"{at}attn_{name}.weight"] for name in "qkv"])
        fused[at + "gate_up"] = torch.cat([weights[f"{at}ffn_{name}.weight"] for name in ("gate", "up")])
    return fused


class Llama:
    """The network over fused, mapped weights."""

    def __init__(self, config: LlamaConfig, fused: Mapping[str, Tensor]) -> None:
        self._config = config
        self._w = fused
        self._head = fused.get("output.weight", fused["token_embd.weight"])
        self._head_size = fused["blk.0.qkv"].shape[0] // (config.heads + 2 * config.kv_heads)
        self._device = self._head.device
        steps = torch.arange(0, self._head_size, 2, dtype=torch.float64) / self._head_size
        angles = torch.outer(torch.arange(config.context, dtype=torch.float64), config.rope_base**-steps)
        self._turns = torch.polar(torch.ones_like(angles), angles).to(torch.complex64).to(self._device)

    def new_cache(self, positions: int) -> Cache:
        """Room for one sequence; on a CPU, pages that are never written take no memory."""
        config = self._config
        shape = (config.layers, 2 * config.kv_heads, positions, self._head_size)
        return Cache(torch.empty(shape, device=self._device))

    def read(self, tokens: Sequence[int], cache: Cache) -> Tensor:
        """Take in `tokens` of one sequence, all at once; logits after the last of them."""
        start, end = cache.length, cache.length + len(tokens)
        reach = None if start == 0 else self._reach(start, end)
        x = self._embed(tokens)
        for layer in range(self._config.layers):
            query, fresh = self._project(x, layer, self._turns[start:end])
            cache.kept[layer, :, start:end] = fresh.transpose(0, 1)
            keys, values = cache.kept[layer, :, :end].chunk(2)
            seen = F.scaled_dot_product_attention(
                query.transpose(0, 1)[None], keys[None], values[None],
                attn_mask=reach, is_causal=reach is None, enable_gqa=True,
            )  # fmt: skip
            x = self._finish(x, seen[0].transpose(0, 1).reshape(len(tokens), -1), layer)
        cache.length = end
        return self._logits(x[-1:])[0]

    def step(self, tokens: Sequence[int], caches: Sequence[Cache]) -> Tensor:
        """Take in one token of each sequence; logits [sequences, vocabulary]."""
        turns = self._turns[[cache.length for cache in caches]]
        x = self._embed(tokens)
        for layer in range(self._config.layers):
            query, fresh = self._project(x, layer, turns)
            seen = [self._look_back(query[i], fresh[i], cache, layer) for i, cache in enumerate(caches)]
            x = self._finish(x, torch.stack(seen), layer)
        for cache in caches:
            cache.length += 1
        return self._logits(x)

    def _look_back(self, query: Tensor, fresh: Tensor, cache: Cache, layer: int) -> Tensor:
        """One new position's attention. With nothing to mask, heads that share a k and v pass as its queries."""
        cache.kept[layer, :, cache.length] = fresh
        keys, values = cache.kept[layer, :, : cache.length + 1].chunk(2)
        shared = query.view(1, self._config.kv_heads, -1, self._head_size)
        return F.scaled_dot_product_attention(shared, keys[None], values[None]).reshape(-1)

    def _project(self, x: Tensor, layer: int, turns: Tensor) -> tuple[Tensor, Tensor]:
        """Turned queries [tokens, heads, size], and turned keys with values [tokens, k and v heads, size]."""
        config = self._config
        normed = self._norm(x, f"blk.{layer}.attn_norm.weight")
        heads = _product(normed, self._w[f"blk.{layer}.qkv"]).contiguous().view(len(x), -1, self._head_size)
        turning = config.heads + config.kv_heads
        pairs = torch.view_as_complex(heads[:, :turning].view(len(x), turning, -1, 2))
        heads[:, :turning] = torch.view_as_real(pairs * turns[:, None]).flatten(2)
        return heads[:, : config.heads], heads[:, config.heads :]

    def _finish(self, x: Tensor, seen: Tensor, layer: int) -> Tensor:
        """The rest of a layer: attention's output, then the gated feed-forward."""
        w, at = self._w, f"blk.{layer}."
        x = x + _product(seen, w[at + "attn_output.weight"])
        gate, up = _product(self._norm(x, at + "ffn_norm.weight"), w[at + "gate_up"]).chunk(2, dim=-1)
        return x + _product(F.silu(gate) * up, w[at + "ffn_down.weight"])

    def _embed(self, tokens: Sequence[int]) -> Tensor:
        return self._w["token_embd.weight"][torch.tensor(tokens, device=self._device)]

    def _logits(self, x: Tensor) -> Tensor:
        return _product(self._norm(x, "output_norm.weight"), self._head)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self._w[name], self._config.eps)

    def _reach(self, start: int, end: int) -> Tensor:
        """Which positions each of `start`..`end` may look at: itself and all before."""
        return torch.ones(end - start, end, dtype=torch.bool, device=self._device).tril(diagonal=start)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """`x` times the rows of `weight`, in the way that is fastest on a CPU for so many rows of `x`.

    2 to 8: one small product for each 64 rows of `weight`, which then come out of memory once and stay in the cache;
    up to 24: BLAS with the tall matrix on the left. One row, or many: as it is everywhere else.
    """
    rows, height = len(x), weight.shape[0]
    if x.device.type != "cpu" or rows == 1 or rows > _SOME_ROWS:
        return F.linear(x, weight)
    if rows <= _FEW_ROWS and height % _BLOCK == 0:
        blocks = weight.view(height // _BLOCK, _BLOCK, -1).transpose(1, 2)
        return torch.bmm(x.expand(len(blocks), -1, -1), blocks).transpose(0, 1).reshape(rows, height)
    return torch.mm(weight, x.t()).t()
