"""EfficientNet-Lite0 in plain torch, for inference: batch norms are folded into the convolutions before them.

The Lite family is EfficientNet without squeeze-and-excitation and with ReLU6 for swish; a convolution of stride 2 pads
as TensorFlow's SAME does (less before than after).
What must not live here: pictures, labels, files. The sources are the EfficientNet paper (Tan and Le 2019, table 1), the
Lite notes in TensorFlow's repository, and the names of the weights in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own custom
from torch import Tensor

__all__ = ["EfficientNetLite0", "fold"]

_EPS = 1e-3


@dataclass(frozen=True, slots=True)
class _Stage:
    blocks: int
    stride: int
    expand: bool


_STAGES = (
    _Stage(1, 1, expand=False),
    _Stage(2, 2, expand=True),
    _Stage(2, 2, expand=True),
    _Stage(3, 2, expand=True),
    _Stage(3, 1, expand=True),
    _Stage(4, 2, expand=True),
    _Stage(1, 1, expand=True),
)
_NORM_OF = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}


def fold(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint's convolutions with the batch norm behind each worked into weight and bias, and the classifier."""
    pairs = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    for block in range(sum(stage.blocks for stage in _STAGES)):
        pairs |= {f"_blocks.{block}.{conv}": f"_blocks.{block}.{norm}" for conv, norm in _NORM_OF.items()}
    folded = {"_fc.weight": checkpoint["_fc.weight"].contiguous(), "_fc.bias": checkpoint["_fc.bias"]}
    for conv, norm in pairs.items():
        if conv + ".weight" not in checkpoint:  # the first block does not expand
            continue
        scale = checkpoint[norm + ".weight"] / torch.sqrt(checkpoint[norm + ".running_var"] + _EPS)
        folded[conv + ".weight"] = (checkpoint[conv + ".weight"] * scale.view(-1, 1, 1, 1)).contiguous()
        folded[conv + ".bias"] = checkpoint[norm + ".bias"] - checkpoint[norm + ".running_mean"] * scale
    return folded


class EfficientNetLite0:
    """The network over folded weights."""

    side = 224

    def __init__(self, folded: Mapping[str, Tensor]) -> None:
        self._w = folded

    def scores(self, pictures: Tensor) -> Tensor:
        """Logits of the thousand classes for pictures [n, 3, 224, 224]."""
        x = F.relu6(self._conv(pictures, "_conv_stem", 2))
        block = 0
        for stage in _STAGES:
            for repeat in range(stage.blocks):
                x = self._block(x, f"_blocks.{block}.", stage, repeat)
                block += 1
        x = F.relu6(self._conv(x, "_conv_head", 1))
        return F.linear(x.mean((2, 3)), self._w["_fc.weight"], self._w["_fc.bias"])

    def _block(self, x: Tensor, at: str, stage: _Stage, repeat: int) -> Tensor:
        """Widen, filter each channel, narrow; blocks after a stage's first add their input."""
        wide = F.relu6(self._conv(x, at + "_expand_conv", 1)) if stage.expand else x
        stride = 1 if repeat else stage.stride
        wide = F.relu6(self._conv(wide, at + "_depthwise_conv", stride, groups=wide.shape[1]))
        narrow = self._conv(wide, at + "_project_conv", 1)
        return x + narrow if repeat else narrow

    def _conv(self, x: Tensor, name: str, stride: int, groups: int = 1) -> Tensor:
        weight, bias = self._w[name + ".weight"], self._w[name + ".bias"]
        around = weight.shape[-1] // 2
        if stride == 1:
            return F.conv2d(x, weight, bias, padding=around, groups=groups)
        x = F.pad(x, (around - 1, around, around - 1, around))
        return F.conv2d(x, weight, bias, stride=stride, groups=groups)
